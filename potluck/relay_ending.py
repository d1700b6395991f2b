"""The end of a request's stream, however it comes: shared by all that is asked over streams of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transport.errors import StreamEnded
from transport.streams import Stream
from wire.errors import BadPayload, RemoteError

__all__ = ["ended"]


@contextlib.contextmanager
def ended(stream: Stream) -> Iterator[None]:
    """Whatever happens, the stream is over; what breaks the protocol breaks the connection (ProtocolBroken)."""
    try:
        yield
    except RemoteError as error:
        raise stream.break_off(error) from error
    except StreamEnded as error:
        raise stream.break_off(BadPayload("the stream ended before its answer")) from error
    finally:
        stream.cancel()
