"""Every way in which talking to the other side fails; one leaf per distinct reaction.

    TransportError
    |-- ConnectFailed      nobody answers there, or not in time: try later or elsewhere
    |-- WrongToken         the two sides do not share a token: ask the user, do not try again
    |-- ConnectionLost     the connection is over, and with it every stream: connect anew, resume
    |   `-- ProtocolBroken the peer broke the protocol and was told so
    |-- Refused            an ERROR on one stream; the connection is well
    |-- StreamEnded        the other side has said all on this stream
    `-- Cancelled          the client wants no more of this stream (only a server sees it)

Misuse by our own side is `wire.errors.LocalError`. Must not know sockets.
"""

from __future__ import annotations

from wire.errors import RemoteError
from wire.messages_session import Error, ErrorCode
from wire.scalars import Table, Value

__all__ = [
    "Cancelled",
    "ConnectFailed",
    "ConnectionLost",
    "ProtocolBroken",
    "Refused",
    "StreamEnded",
    "TransportError",
    "WrongToken",
]


class TransportError(Exception):
    """Root of the tree; never raised itself."""


class ConnectFailed(TransportError):
    """No connection to `address` ("host:port"), and why."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"{address}: {reason}")
        self.address, self.reason = address, reason


class WrongToken(TransportError):
    """This side or the other one does not know the token."""


class ConnectionLost(TransportError):
    """The connection is over. `code` is the peer's, when it said with an ERROR why it gave up."""

    def __init__(self, reason: str, code: ErrorCode | None = None) -> None:
        super().__init__(reason)
        self.reason, self.code = reason, code

    def again(self) -> ConnectionLost:
        """The same told to somebody else: an exception that two tasks raise mixes up their tracebacks."""
        return ConnectionLost(self.reason, self.code)


class ProtocolBroken(ConnectionLost):
    """The peer is at fault; `error` says how, and its code was sent to the peer."""

    def __init__(self, error: RemoteError) -> None:
        super().__init__(f"{type(error).__name__}: {error}", ErrorCode(error.code))
        self.error = error

    def again(self) -> ProtocolBroken:
        return ProtocolBroken(self.error)


class Refused(TransportError):
    """The server answered a stream with ERROR."""

    def __init__(self, code: ErrorCode, text: str = "", retry_after_ms: int | None = None, details: Table = ()) -> None:
        super().__init__(f"{code.name}: {text}" if text else code.name)
        self.code, self.text, self.retry_after_ms = code, text, retry_after_ms
        self.details: dict[str, Value] = dict(details)

    @classmethod
    def by(cls, error: Error) -> Refused:
        """As the ERROR message says."""
        return cls(error.code, error.text, error.retry_after_ms, error.details)


class StreamEnded(TransportError):
    """Nothing comes any more on this stream."""


class Cancelled(TransportError):
    """The client has cancelled this stream; what is left is to end it, with `fail` or a last answer."""
