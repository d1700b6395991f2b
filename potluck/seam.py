"""Where httpx ends: its exceptions become ours, most specific first, with the original one chained.

Nothing above this line of the package sees an exception of httpx.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from .errors import AnswerTimeout, GatewayUnreachable, Misuse, UnexpectedAnswer


@contextmanager
def translated(url: str) -> Iterator[None]:
    """`url` is the gateway's address, for the sentence."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise GatewayUnreachable(f"no gateway answers at {url} ({reason_of(error)})", url) from error
    except httpx.TimeoutException as error:
        raise AnswerTimeout(f"the gateway at {url} was silent for longer than the timeouts allow") from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise Misuse(f"{url!r} is no address of a gateway: {reason_of(error)}") from error
    except httpx.TransportError as error:
        raise GatewayUnreachable(f"the connection to {url} broke ({reason_of(error)})", url) from error
    except UnicodeDecodeError:  # of a text that came: the caller's
        raise
    except UnicodeError as error:  # the system's, for a name that no name can be: too long, or with empty parts
        raise Misuse(f"{url!r} is no address of a gateway: that is no name of a host") from error
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise UnexpectedAnswer(f"what {url} sent cannot be read ({reason_of(error)})") from error


def reason_of(error: Exception) -> str:
    """In words: without the number of the system's error, and with a name where httpx says nothing at all."""
    return re.sub(r"\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
