"""Every exception that the clients raise; one leaf per distinct reaction.

PotluckError
├── Misuse               the call made no sense, nothing was sent (also a ValueError)      -> mend the code
├── GatewayUnreachable   no connection, or it broke before anything was told               -> start it, try again
├── NodeUnreachable      a relay node: no connection, or it broke for good                 -> start it, try again
├── AnswerTimeout        connected, but silent for longer than Timeouts allow              -> wait longer
├── UnexpectedAnswer     what came back is not what a gateway says                         -> check the address
├── AnswerCutShort       the answer began and did not end; holds the text so far           -> keep or ask again
└── RequestRefused       the gateway said no: status, code, field, hint
    ├── InvalidRequest   a field is wrong; `field` names it                                -> mend the request
    ├── KeyRefused       no key, a wrong one, or a caller that is not welcome              -> give a key
    ├── ModelUnknown     no node has this model; the hint names near ones                  -> choose another
    ├── QueueFull        too many are waiting; `retry_after_seconds`                       -> come back later
    ├── NoNodes          nobody can answer now                                             -> add or wake a node
    ├── DeadlinePassed   the request's own `deadline_s` ran out                            -> give it more time
    ├── GatewayFailed    nodes or the gateway failed at it                                 -> try again
    ├── NodeFailed       a relay node failed at it, or is being stopped                    -> try again, or another
    ├── NoRoom           a relay node's memory is held by others; `free_bytes`             -> free some, ask for less
    └── SessionLost      what a relay node held for this client is gone (buffers)          -> put it there again

The module knows nothing of HTTP libraries; `seam.py` translates those.
"""

from __future__ import annotations


class PotluckError(Exception):
    """Root of the tree. `hint` is one more sentence that says what to do, or None."""

    hint: str | None = None

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class Misuse(PotluckError, ValueError):
    """The arguments contradict each other or are out of range; nothing was sent."""


class GatewayUnreachable(PotluckError):
    """No connection could be made to `url`, or it broke before an answer began."""

    def __init__(self, message: str, url: str) -> None:
        super().__init__(message)
        self.url = url


class NodeUnreachable(PotluckError):
    """No connection to the relay node at `place`, or it broke and could not be made anew in time."""

    def __init__(self, message: str, place: str) -> None:
        super().__init__(message)
        self.place = place


class AnswerTimeout(PotluckError):
    """The gateway was silent for longer than the caller's `Timeouts` allow."""


class UnexpectedAnswer(PotluckError):
    """Whatever answered does not speak like a gateway."""


class AnswerCutShort(PotluckError):
    """The answer began but did not end. `text` is what was told, `nodes` who told it where that is known."""

    def __init__(self, message: str, *, text: str, nodes: tuple[str, ...] = (), code: str | None = None) -> None:
        super().__init__(message)
        self.text = text
        self.nodes = nodes
        self.code = code


class RequestRefused(PotluckError):
    """The gateway, or a relay node, refused: `status` is HTTP's (None in streams, batches, relays), `code` its word."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        field: str | None = None,
        hint: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field
        self.hint = hint
        self.retry_after_seconds = retry_after_seconds


class InvalidRequest(RequestRefused):
    """A field of the request is wrong, missing or too large."""


class KeyRefused(RequestRefused):
    """The key is missing or wrong, or this caller is not welcome."""


class ModelUnknown(RequestRefused):
    """No node of the fleet has the model."""


class QueueFull(RequestRefused):
    """Too many requests are waiting; `retry_after_seconds` says when to come back, where the gateway knows."""


class NoNodes(RequestRefused):
    """No node can answer now."""


class DeadlinePassed(RequestRefused):
    """The request's own `deadline_s` passed before the answer was complete."""


class GatewayFailed(RequestRefused):
    """The nodes, or the gateway itself, failed at the request."""


class NodeFailed(RequestRefused):
    """A relay node failed at the request or is being stopped; `code` is its own word."""


class NoRoom(RequestRefused):
    """Models or buffers of others hold the relay node's memory. Bytes are None where the node does not tell them."""

    free_bytes: int | None = None
    needed_bytes: int | None = None


class SessionLost(RequestRefused):
    """What the relay node held for this client is gone: it was away for longer than the node waits."""
