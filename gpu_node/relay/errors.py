"""What an error of the node is to a relay client: one table from types to codes, and what goes with them.

Invariants: every error of the tree has a code; a text fits its frame; nothing of another session is in any of it. Must
not know streams.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpu_node.errors import (
    ContextExceeded,
    DeadlineExceeded,
    DeviceOutOfMemory,
    DigestMismatch,
    GenerationFailed,
    ModelError,
    NodeBusy,
    NodeError,
    NodeStopping,
    NoRoom,
    RequestError,
    SessionGone,
    StoreRefused,
    UnknownHandle,
    Unsupported,
)
from wire.messages_session import ERROR_TEXT_BYTES, ErrorCode
from wire.scalars import Table

# The most special first: the first that fits counts.
CODES: tuple[tuple[type[NodeError], ErrorCode], ...] = (
    (ContextExceeded, ErrorCode.CONTEXT_EXCEEDED),
    (Unsupported, ErrorCode.UNSUPPORTED),
    (UnknownHandle, ErrorCode.UNKNOWN_HANDLE),
    (SessionGone, ErrorCode.SESSION_GONE),
    (DigestMismatch, ErrorCode.DIGEST_MISMATCH),
    (RequestError, ErrorCode.BAD_REQUEST),
    (StoreRefused, ErrorCode.STORE_REFUSED),
    (NodeBusy, ErrorCode.BUSY),
    (NodeStopping, ErrorCode.STOPPING),
    (NoRoom, ErrorCode.NO_ROOM),
    (DeadlineExceeded, ErrorCode.DEADLINE_EXCEEDED),
    (GenerationFailed, ErrorCode.GENERATION_FAILED),
    (DeviceOutOfMemory, ErrorCode.NO_ROOM),
    (ModelError, ErrorCode.MODEL_FAILED),
    (NodeError, ErrorCode.INTERNAL),
)
# A full queue moves on with the next answer that ends.
BUSY_MS = 1000


@dataclass(frozen=True, slots=True)
class Failure:
    """The fields of an ERROR on a stream."""

    code: ErrorCode
    text: str
    retry_after_ms: int | None = None
    details: Table = ()


class Failed(NodeError):
    """A request has failed as another one that it follows."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


CANCELLED = Failure(ErrorCode.CANCELLED, "as asked")
INTERNAL = Failure(ErrorCode.INTERNAL, "a defect of the node; its log says more")


def failure_of(error: NodeError) -> Failure:
    if isinstance(error, Failed):
        return error.failure
    return Failure(_code(error), shortened(str(error)), _retry_after(error), _details(error))


def shortened(text: str, most_bytes: int = ERROR_TEXT_BYTES) -> str:
    """At most so many bytes of UTF-8, whole characters; surrogates cannot travel."""
    return text.encode(errors="replace")[:most_bytes].decode(errors="ignore")


def _code(error: NodeError) -> ErrorCode:
    if isinstance(error, RequestError) and error.status == 404 and error.field == "model":
        return ErrorCode.MODEL_NOT_FOUND
    return next(code for kind, code in CODES if isinstance(error, kind))


def _retry_after(error: NodeError) -> int | None:
    return BUSY_MS if isinstance(error, NodeBusy) else None


def _details(error: NodeError) -> Table:
    named: dict[str, int | str | None] = {}
    if isinstance(error, RequestError):
        named["field"] = error.field
        named["status"] = error.status  # as over HTTP: 409 is another reaction than 400
    if isinstance(error, NoRoom | StoreRefused):
        named |= {"free_bytes": error.free_bytes, "needed_bytes": error.needed_bytes}
    return tuple((name, value) for name, value in named.items() if value is not None)
