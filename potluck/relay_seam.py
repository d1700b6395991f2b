"""Where the transport ends: its errors become the client's, most specific first, with the original one chained.

Nothing above this line of the package sees an error of `transport` or `wire`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transport.errors import ConnectFailed, ConnectionLost, ProtocolBroken, Refused, TransportError, WrongToken
from wire.errors import LocalError
from wire.messages_session import ErrorCode

from .errors import (
    DeadlinePassed,
    InvalidRequest,
    KeyRefused,
    Misuse,
    ModelUnknown,
    NodeFailed,
    NodeUnreachable,
    NoRoom,
    PotluckError,
    QueueFull,
    RequestRefused,
    SessionLost,
    UnexpectedAnswer,
)

_TYPES: dict[ErrorCode, type[RequestRefused]] = {
    ErrorCode.BAD_REQUEST: InvalidRequest,
    ErrorCode.UNSUPPORTED: InvalidRequest,
    ErrorCode.CONTEXT_EXCEEDED: InvalidRequest,
    ErrorCode.DIGEST_MISMATCH: InvalidRequest,
    ErrorCode.MODEL_NOT_FOUND: ModelUnknown,
    ErrorCode.BUSY: QueueFull,
    ErrorCode.DEADLINE_EXCEEDED: DeadlinePassed,
    ErrorCode.NO_ROOM: NoRoom,
    ErrorCode.STORE_REFUSED: NoRoom,
    ErrorCode.UNKNOWN_HANDLE: SessionLost,
    ErrorCode.SESSION_GONE: SessionLost,
}


@contextmanager
def translated(place: str) -> Iterator[None]:
    """`place` is the node's address, for the sentence."""
    try:
        yield
    except Refused as error:
        raise refusal(error) from error
    except WrongToken as error:
        raise KeyRefused(f"the node at {place} and this client do not share a token", code="WRONG_PROOF") from error
    except ConnectFailed as error:
        raise NodeUnreachable(f"no node answers at {place} ({error.reason})", place) from error
    except ProtocolBroken as error:
        raise UnexpectedAnswer(f"what the node at {place} sent cannot be read ({error.reason})") from error
    except ConnectionLost as error:
        raise NodeUnreachable(f"the connection to {place} broke ({error.reason})", place) from error
    except LocalError as error:
        raise Misuse(str(error)) from error
    except TransportError as error:
        raise PotluckError(f"{place}: {error}") from error


def refusal(error: Refused) -> RequestRefused:
    """The node's ERROR as the leaf that says what to do about it."""
    kind = _TYPES.get(error.code, NodeFailed)
    field = error.details.get("field")
    wait = error.retry_after_ms
    told = kind(
        error.text or error.code.name.lower().replace("_", " "),
        code=error.code.name,
        field=field if isinstance(field, str) else None,
        retry_after_seconds=None if wait is None else wait / 1000,
    )
    if isinstance(told, NoRoom):
        told.free_bytes, told.needed_bytes = _bytes(error, "free_bytes"), _bytes(error, "needed_bytes")
    return told


def _bytes(error: Refused, name: str) -> int | None:
    value = error.details.get(name)
    return value if isinstance(value, int) else None
