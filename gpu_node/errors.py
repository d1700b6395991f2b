"""Every error of the GPU node, one leaf per distinct reaction.

    NodeError
    |-- UsageError               the person at the keyboard: one sentence, exit code 2
    |-- ModelError               the model cannot be provided or loaded: one sentence, requests get 500
    |-- RequestError             the client's mistake: 4xx with a sentence
    |   |-- ContextExceeded      prompt longer than the context while cutting is forbidden
    |   |-- Unsupported          known, and not possible on this node: 501
    |   |-- UnknownHandle        no such buffer in the client's session
    |   |-- SessionGone          what the client comes back to is not there any more: begin anew
    |   `-- DigestMismatch       bytes of a file are not those that were named
    |-- StoreRefused             the model store is full, closed, or does not take this
    |-- NodeBusy                 the queue is full: 503
    |-- NodeStopping             the node ends: 503, a running stream gets an error line
    |-- NoRoom                   other models hold the memory that this one needs: 503, with who holds what
    |-- GenerationFailed         the model failed in the middle of a request: 500, the node lives on
    |   `-- DeadlineExceeded     the request's own time was over: 504
    |-- DeviceOutOfMemory        a forward or a load did not fit; the engine makes room or fails one request
    `-- StageLost                a part of the model is gone with its device; requests wait for a new plan

Texts are whole sentences for people; those that clients of Ollama look for are Ollama's own.
"""

from __future__ import annotations


class NodeError(Exception):
    """Root of the tree; never raised itself."""


class UsageError(NodeError):
    """A mistake in flags, settings or paths."""


class ModelError(NodeError):
    """The model cannot be fetched, converted or loaded."""


class RequestError(NodeError):
    """The request cannot be honoured as it is."""

    def __init__(self, message: str, status: int = 400, field: str | None = None) -> None:
        """`field` names the part of the request that is wrong, where one part is."""
        super().__init__(message)
        self.status, self.field = status, field


class ContextExceeded(RequestError):
    def __init__(self) -> None:
        super().__init__("the input length exceeds the context length")


class Unsupported(RequestError):
    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message, status=501, field=field)


class UnknownHandle(RequestError):
    def __init__(self, handle: int) -> None:
        super().__init__(f"this session has no buffer {handle}", status=404, field="handle")


class SessionGone(RequestError):
    def __init__(self, what: str) -> None:
        super().__init__(what, status=410)


class DigestMismatch(RequestError):
    """What was sent is not what was announced; nothing of it is kept."""


class StoreRefused(NodeError):
    """The model store cannot take what is offered."""

    def __init__(self, message: str, free_bytes: int | None = None, needed_bytes: int | None = None) -> None:
        """The numbers are given where room is what lacks."""
        super().__init__(message)
        self.free_bytes, self.needed_bytes = free_bytes, needed_bytes


class NodeBusy(NodeError):
    def __init__(self) -> None:
        super().__init__("server busy, please try again.  maximum pending requests exceeded")


class NodeStopping(NodeError):
    def __init__(self) -> None:
        super().__init__("the node is shutting down")


class NoRoom(NodeError):
    """A model or a buffer does not fit into the memory account as it is now."""

    def __init__(self, message: str, free_bytes: int | None = None, needed_bytes: int | None = None) -> None:
        super().__init__(message)
        self.free_bytes, self.needed_bytes = free_bytes, needed_bytes


class GenerationFailed(NodeError):
    """The forward pass or the sampling of one request went wrong."""


class DeadlineExceeded(GenerationFailed):
    def __init__(self) -> None:
        super().__init__("the request's deadline has passed")


class DeviceOutOfMemory(NodeError):
    """The device has no room for what was asked of it."""


class StageLost(NodeError):
    """A device that held a part of the model is gone."""

    def __init__(self, message: str = "a device that held a part of the model is gone") -> None:
        super().__init__(message)


class BlocksLost(StageLost):
    """The model is all there, but not what some blocks of the stage's cache held; the runner tells which."""

    def __init__(self, stage: int, message: str) -> None:
        super().__init__(message)
        self.stage = stage
