"""Every error of the gateway, by the reaction it wants.

    GatewayError                     ends a request; has a status, a code, a sentence, perhaps a hint
    ├── RequestInvalid               422 or 400: the caller's own mistake, with the field's name
    ├── ModelNotFound                404: no node has it; the nearest names are in the hint
    ├── NodeUnknown                  404: the fleet has no node of this name
    ├── InvitationUnknown            404: no invitation of this name is open
    ├── ModelInUse                   409: a node answers with the model just now, so it cannot be loaded otherwise
    ├── LoopbackOnly                 409: no phone could reach the gateway, so none is invited
    ├── FleetFileUnusable            409: the fleet file, or the secrets beside it, cannot be read or written
    ├── PathUnknown                  404: there is no such route or page
    ├── MethodRefused                405: the route is there, but not for this method
    ├── CallerRefused                401 or 403: who calls may not
    ├── BodyTooLarge                 413
    ├── OperationUnsupported         501: something a gateway cannot do (pull, create, delete …)
    ├── QueueFull                    429: come back after `retry_after_seconds`
    ├── TooManyTries                 429: of one address, for things that somebody might guess at
    ├── PhoneUnreachable             502: a phone wants to join, and nothing answers where it should
    ├── NoNodes                      503: nothing there that could serve
    ├── GatewayDraining              503: the gateway is being stopped
    ├── DeadlineExceeded             504: the request's own deadline passed
    ├── AnswerBroken                 502: nodes failed and the answer cannot begin, or cannot go on
    └── InternalError                500: our own fault; the log says what it was
    NodeError                        one attempt at one node failed; never leaves `dispatch`
    ├── NodeUnreachable              could not connect, or reset before the answer began
    ├── NodeBusy                     429 or 503: no strike against the node
    ├── NodeBroken                   5xx, an error line, a cut stream, a malformed record
    ├── NodeStalled                  silent for longer than the phase allows
    ├── NodeRefused                  the node blames the request: passed on, no strike, no second try
    │   └── NodeIncapable            it is this node that cannot do it: no strike, others are asked
    └── NoWayOn                      (in `attempt`) it cannot go on with the answer so far: no strike, others are asked
    AdbError                         a question to an adb server, or to a phone behind it, had no answer; stays in `adb`
    ├── AdbServerGone                nobody answers at the server's address, or no adb server does
    └── AdbRefused                   the server said no; the message is its own sentence

This module imports nothing of the gateway.
"""

from __future__ import annotations

from typing import ClassVar

LONGEST_QUOTED = 64  # of what a caller sent, in a sentence
LONGEST_PATH = 200


class GatewayError(Exception):
    """Ends one request. `status` is the HTTP status, `code` the stable word clients may match on."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, hint: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field

    @property
    def http_status(self) -> int:
        return self.status

    @property
    def retry_after(self) -> float | None:
        """Seconds for a Retry-After header, where waiting helps."""
        return None


class RequestInvalid(GatewayError):
    status = 422
    code = "invalid_request"

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None, status: int = 422) -> None:
        super().__init__(message, hint=hint, field=field)
        self._status = status

    @property
    def http_status(self) -> int:
        return self._status


class ModelNotFound(GatewayError):
    status = 404
    code = "model_not_found"

    def __init__(self, model: str, nearest: tuple[str, ...] = ()) -> None:
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else None
        self.model = model if len(model) <= LONGEST_QUOTED else f"{model[:LONGEST_QUOTED]}…"
        super().__init__(f"model '{self.model}' not found", hint=hint, field="model")
        self.nearest = nearest


class NodeUnknown(GatewayError):
    status = 404
    code = "node_not_found"

    def __init__(self, node: str, nearest: tuple[str, ...] = ()) -> None:
        shown = node if len(node) <= LONGEST_QUOTED else f"{node[:LONGEST_QUOTED]}…"
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else None
        super().__init__(f"node '{shown}' not found", hint=hint, field="node")


class InvitationUnknown(GatewayError):
    status = 404
    code = "invitation_not_found"

    def __init__(self, invitation: str) -> None:
        shown = invitation if len(invitation) <= LONGEST_QUOTED else f"{invitation[:LONGEST_QUOTED]}…"
        super().__init__(f"no invitation '{shown}' is open", hint="it may be used, expired or withdrawn already")


class ModelInUse(GatewayError):
    status = 409
    code = "model_in_use"


class LoopbackOnly(GatewayError):
    status = 409
    code = "loopback_only"


class FleetFileUnusable(GatewayError):
    status = 409
    code = "fleet_file_unusable"


class PhoneUnreachable(GatewayError):
    status = 502
    code = "phone_unreachable"


class PathUnknown(GatewayError):
    status = 404
    code = "not_found"

    def __init__(self, path: str) -> None:
        super().__init__(f"there is no {path[:LONGEST_PATH]} here")


class MethodRefused(GatewayError):
    status = 405
    code = "method_not_allowed"

    def __init__(self, path: str, method: str) -> None:
        super().__init__(f"{path[:LONGEST_PATH]} does not take {method[:20]}")


class CallerRefused(GatewayError):
    status = 403
    code = "forbidden"

    def __init__(self, message: str, *, status: int = 403, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self._status = status

    @property
    def http_status(self) -> int:
        return self._status


class BodyTooLarge(GatewayError):
    status = 413
    code = "body_too_large"


class OperationUnsupported(GatewayError):
    status = 501
    code = "unsupported"


class QueueFull(GatewayError):
    status = 429
    code = "queue_full"

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message, hint=f"try again in {max(1, round(retry_after_seconds))} s")
        self.retry_after_seconds = retry_after_seconds

    @property
    def retry_after(self) -> float:
        return self.retry_after_seconds


class TooManyTries(GatewayError):
    status = 429
    code = "too_many_tries"

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message, hint=f"try again in {max(1, round(retry_after_seconds))} s")
        self.retry_after_seconds = retry_after_seconds

    @property
    def retry_after(self) -> float:
        return self.retry_after_seconds


class NoNodes(GatewayError):
    status = 503
    code = "no_nodes"


class GatewayDraining(GatewayError):
    status = 503
    code = "draining"

    @property
    def retry_after(self) -> float:
        return 5.0


class DeadlineExceeded(GatewayError):
    status = 504
    code = "deadline_exceeded"


class AnswerBroken(GatewayError):
    """Nodes failed. `tokens_told` is 0 when nothing had reached the client yet."""

    status = 502
    code = "nodes_failed"

    def __init__(self, message: str, *, node: str, tokens_told: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.node = node
        self.tokens_told = tokens_told


class InternalError(GatewayError):
    """The client gets this sentence; what went wrong stands in the log."""

    def __init__(self) -> None:
        super().__init__("the gateway failed on this request; its log says why")


class NodeError(Exception):
    """One attempt at one node failed. `strike` says whether it counts against the node."""

    strike: ClassVar[bool] = True

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NodeUnreachable(NodeError):
    pass


class NodeBusy(NodeError):
    strike = False

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NodeBroken(NodeError):
    pass


class NodeStalled(NodeError):
    """`phase` is connect, first_token, between_tokens, load, render or total."""

    def __init__(self, message: str, phase: str) -> None:
        super().__init__(message)
        self.phase = phase


class NodeRefused(NodeError):
    """The node says the request is wrong. `status` is what a client of Ollama would have got (4xx)."""

    strike = False

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NodeIncapable(NodeRefused):
    """Nothing is wrong with the request, but this node cannot do it (400, or 501 of its own); another one may."""


class AdbError(Exception):
    """A question to an adb server, or to a phone behind it, was not answered."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class AdbServerGone(AdbError):
    pass


class AdbRefused(AdbError):
    pass
