"""The client's end of one connection after the handshake: requests, pings, the end.

Skeleton: the signatures stand, what is behind them follows.
"""

from __future__ import annotations

from collections.abc import Callable

from transport.errors import TransportError
from transport.places import Access, Place
from transport.streams import Stream
from wire.messages import Message
from wire.messages_session import GoodbyeReason, Welcome
from wire.messages_work import Progress

__all__ = ["Access", "Link", "Place", "connect"]


async def connect(
    place: Place,
    access: Access,
    *,
    name: str = "",
    session_key: bytes = b"",
    timeout_seconds: float = 5.0,
    signal_dbm: int | None = None,
) -> Link:
    """Raises ConnectFailed, WrongToken, Refused (the node has no room for us), ProtocolBroken."""
    raise NotImplementedError


class Link:
    place: Place
    welcome: Welcome
    lost: TransportError | None
    draining: bool  # the node stops: it opens no new streams

    async def open(self, message: Message, *, ends: bool = True) -> Stream:
        """A request. Raises ConnectionLost, and Refused with STOPPING when the node opens no more."""
        raise NotImplementedError

    async def ask(self, message: Message, on_progress: Callable[[Progress], None] | None = None) -> Message:
        """One request, one last answer. Raises Refused, ConnectionLost."""
        raise NotImplementedError

    async def ping(self, signal_dbm: int | None = None) -> float:
        """Seconds there and back."""
        raise NotImplementedError

    async def close(self, reason: GoodbyeReason = GoodbyeReason.FINISHED) -> None:
        raise NotImplementedError

    def cut(self, reason: str) -> None:
        """Ends the connection without a word; the session stays for its grace."""
        raise NotImplementedError

    async def wait_closed(self) -> None:
        raise NotImplementedError
