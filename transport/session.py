"""One node over reconnects: one multiplexed connection, any number of callers, nothing lost at a cut.

Skeleton: the signatures stand, what is behind them follows.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from transport.link import Access, Link, Place
from transport.pauses import PausePolicy
from wire.messages import Message
from wire.messages_session import GoodbyeReason
from wire.messages_work import Done, Generate, Progress, Tokens

__all__ = ["RelaySession", "SessionSettings"]


class SessionSettings:
    name: str = ""
    connect_seconds: float = 5.0
    ping_seconds: float = 15.0  # of silence, before the node is asked whether it is there
    silent_pings: int = 2  # without an answer: the line is dead
    pauses: PausePolicy = PausePolicy()


class RelaySession:
    def __init__(self, place: Place, access: Access, settings: SessionSettings | None = None) -> None: ...

    async def link(self) -> Link:
        """Connects, or waits for the reconnect under way. Raises ConnectFailed, WrongToken, Refused, ConnectionLost."""
        raise NotImplementedError

    def generate(self, request: Generate) -> AsyncGenerator[Tokens | Progress | Done, None]:
        """Taken up again after a cut, exactly behind the last TOKENS; closing the generator cancels."""
        raise NotImplementedError

    async def ask(self, message: Message, on_progress: Callable[[Progress], None] | None = None) -> Message:
        """One request, one answer; asked again after a cut where asking twice does no harm."""
        raise NotImplementedError

    async def close(self, reason: GoodbyeReason = GoodbyeReason.FINISHED) -> None:
        raise NotImplementedError
