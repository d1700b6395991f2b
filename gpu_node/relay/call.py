"""One request of a relay client, as the code that answers it sees it.

A handler reads the request and what follows it on the stream, answers there, and raises a `NodeError` for what it
refuses; who called it tells the client. It may touch nothing but the session it was given. Must not know sockets.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from wire.connection import FrameReceived
from wire.errors import BadPayload
from wire.frames import FrameType
from wire.messages import Message, decode_message

if TYPE_CHECKING:
    from gpu_node.relay.buffers import BufferSpace
    from gpu_node.relay.holds import Holds
    from gpu_node.relay.jobs import Jobs
    from transport.streams import Stream

SessionState = Literal["live", "cut", "idle"]
Asked = TypeVar("Asked", bound=Message)


class Session(Protocol):
    """What one client owns on this node, over all its connections."""

    @property
    def number(self) -> int:
        """For logs and lists; says nothing about the session's key."""
        ...

    @property
    def owner(self) -> str:
        """Who holds memory, for the account: "session 3"."""
        ...

    @property
    def state(self) -> SessionState:
        """live: connected, with something under way or lately asked for; cut: without a connection, in its grace;
        idle: connected, nothing under way."""
        ...

    @property
    def cut_since(self) -> float | None:
        """On the sessions' clock; None while it is connected."""
        ...

    @property
    def models(self) -> Collection[str]:
        """Names of the models that it holds by LOAD."""
        ...

    @property
    def buffers(self) -> BufferSpace:
        """Its tensors."""
        ...

    @property
    def holds(self) -> Holds:
        """Its models, to take and give back."""
        ...

    @property
    def jobs(self) -> Jobs:
        """Its answers under way."""
        ...

    def surely_heard(self, told_at: float) -> bool:
        """Whether what was sent at that time of the event loop has arrived beyond doubt."""
        ...


@dataclass(frozen=True, slots=True)
class RelayCall:
    """`request` is released by `message`; a handler of a frame that carries no message (WRITE) releases it itself."""

    session: Session
    stream: Stream
    request: FrameReceived

    def message(self, kind: type[Asked]) -> Asked:
        """The request, which needs no room any more afterwards: call once, and for requests without blobs only.

        Raises RemoteErrors, which the handler lets through: the client is then told so and the connection ends.
        """
        message = decode_message(self.request.type, self.request.payload)
        self.stream.release(self.request)
        if not isinstance(message, kind):
            raise BadPayload(f"{self.request.type.name} where {kind.__name__} belongs")
        return message


# Raises NodeErrors (told to the client on the stream), and lets through what `transport.Stream` and `wire` raise.
Handler = Callable[[RelayCall], Awaitable[None]]
Handlers = Mapping[FrameType, Handler]
