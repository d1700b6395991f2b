"""One node over reconnects: one multiplexed connection, any number of callers, nothing lost at a cut.

Invariants: there is one connection at most, and one attempt at it; a cut one is made anew at once, with the session's
key, so that buffers and running answers are found again; when the node's grace is over, or it keeps nothing, whoever
waits is told. An answer is told once: behind a cut it goes on at the next token. Where it cannot, the caller gets the
error. Time and chance come from the settings. Must not know what is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from transport.errors import ConnectFailed, ConnectionLost, ProtocolBroken, Refused, StreamEnded, TransportError
from transport.link import CONNECT_SECONDS, Access, Caller, Link, Place, connect
from transport.pauses import Patience, PausePolicy, may_try_again, next_pause
from transport.story import Story
from transport.streams import Stream
from wire.errors import BadPayload, RemoteError
from wire.messages import Message
from wire.messages_memory import Alloc, Free
from wire.messages_session import ErrorCode, GoodbyeReason
from wire.messages_stats import Stats
from wire.messages_work import JOB_BYTES, Done, Embed, Generate, Load, Progress, Tokens, Unload

__all__ = ["Clock", "RelaySession", "SessionSettings", "SystemClock"]

# Asking for these twice is as good as once.
REPEATABLE = (Stats, Load, Unload, Alloc, Free, Embed)


class Clock(Protocol):
    """Steady time in seconds, and waiting; a test has one of its own."""

    @property
    def monotonic(self) -> Callable[[], float]: ...
    @property
    def sleep(self) -> Callable[[float], Awaitable[None]]: ...


@dataclass(frozen=True, slots=True)
class SystemClock:
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """`ping_seconds`: of silence, after which the node is asked; after `silent_pings` in vain the line is dead."""

    name: str = ""
    connect_seconds: float = CONNECT_SECONDS
    ping_seconds: float = 10.0  # below what home routers and phones give a silent connection
    silent_pings: int = 2
    pauses: PausePolicy = field(default_factory=PausePolicy)
    clock: Clock = field(default_factory=SystemClock)
    chance: Callable[[], float] = field(default=random.random, repr=False)


class RelaySession:
    """Belongs to one event loop. Connects at the first use; close it."""

    def __init__(self, place: Place, access: Access, settings: SessionSettings | None = None) -> None:
        self.place = place
        self.signal_dbm: int | None = None  # of the Wi-Fi, where the caller knows it; told at the next ping
        self._access, self._settings = access, settings or SessionSettings()
        self._clock = self._settings.clock
        self._link: Link | None = None
        self._key = b""
        self._grace_seconds = 0.0
        self._cut_at = 0.0
        self._in_vain = 0  # connections, one after the other, that were soon cut and of which nothing came
        self._made_at = 0.0
        self._next: asyncio.Future[Link] | None = None  # of the connection that is being made
        self._connecting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def closed(self) -> bool:
        """By `close`: no connection will be made any more."""
        return self._closed

    @property
    def connected(self) -> Link | None:
        """The link as it is now, or None; makes none."""
        return self._link

    async def link(self) -> Link:
        """Connects, or waits for the connection that is being made.

        Raises ConnectFailed, WrongToken or Refused where the node cannot be reached (after a cut: not within its
        grace), ConnectionLost where this session was closed.
        """
        if self._closed:
            raise ConnectionLost("the session was closed")
        if self._link is not None and self._link.is_over:
            self._part_with(self._link)  # its goodbye has come, its end not yet
        if self._link is not None:
            return self._link
        if self._next is None:
            self._connect(cut_at=None)
        assert self._next is not None
        return await asyncio.shield(self._next)

    def now(self) -> float:
        """On the clock of this session, which `patience` counts by."""
        return self._clock.monotonic()

    def patience(self) -> Patience:
        """For what is asked again after a cut, as often as something comes of it."""
        seconds = self._settings.pauses.patience_seconds
        return Patience(self._grace_seconds if seconds is None else seconds)

    def went_on(self) -> None:
        """Something has come of this connection, so the next cut is mended at once."""
        self._in_vain = 0

    async def generate(self, request: Generate) -> AsyncGenerator[Tokens | Progress | Done, None]:
        """The answer, its Done last. Closing the generator cancels the work on the node.

        Raises Refused, ProtocolBroken (a token is missing or came twice), and what `link` raises when a cut cannot be
        mended.
        """
        async with contextlib.aclosing(self.batches(request)) as batches:
            async for batch in batches:
                for message in batch:
                    yield message

    async def batches(self, request: Generate) -> AsyncGenerator[list[Tokens | Progress | Done], None]:
        """As `generate`, with all that arrived together in one list: for who passes many answers on at once."""
        story = Story(request, os.urandom(JOB_BYTES), self._clock.monotonic())
        asked_under: bytes | None = None
        gone, patience = False, Patience(0.0)
        while True:
            link = await self.link()
            if asked_under is None:
                patience = self.patience()
            elif asked_under != link.welcome.session_key:
                story.begin_anew(os.urandom(JOB_BYTES), self._clock.monotonic())
            asked_under = link.welcome.session_key
            stream: Stream | None = None
            try:
                stream = await link.open(story.request())
                while not story.ended:
                    if batch := story.take_all(await stream.messages()):
                        gone = False
                        patience.went_on()
                        self.went_on()
                        yield batch
                return
            except RemoteError as error:
                assert stream is not None, "nothing was received before"
                raise stream.break_off(error) from error
            except StreamEnded as error:
                assert stream is not None, "it was open"
                raise stream.break_off(BadPayload("the stream ended without DONE")) from error
            except ProtocolBroken:
                raise
            except ConnectionLost:
                if self._closed or patience.is_over(self._clock.monotonic()):
                    raise
            except Refused as error:
                if error.code is not ErrorCode.SESSION_GONE or gone:
                    raise
                gone = True  # what begins anew has nothing that could be gone
                story.begin_anew(os.urandom(JOB_BYTES), self._clock.monotonic())
            finally:
                if stream is not None:
                    stream.cancel()

    async def ask(self, message: Message, on_progress: Callable[[Progress], None] | None = None) -> Message:
        """One request, one answer; asked once more after a cut where asking twice does no harm.

        Raises Refused, ConnectionLost, and what `link` raises.
        """
        try:
            return await self._ask(message, on_progress)
        except ProtocolBroken:
            raise
        except ConnectionLost:
            if self._closed or not isinstance(message, REPEATABLE):
                raise
        except Refused as error:  # it has crossed the end of a session that was idle for too long
            if error.code is not ErrorCode.SESSION_GONE or not isinstance(message, REPEATABLE):
                raise
        return await self._ask(message, on_progress)

    async def _ask(self, message: Message, on_progress: Callable[[Progress], None] | None) -> Message:
        answer = await (await self.link()).ask(message, on_progress)
        self.went_on()
        return answer

    async def close(self, reason: GoodbyeReason = GoodbyeReason.FINISHED) -> None:
        """Says goodbye; with FINISHED the node frees all of the session, with others it keeps it for its grace."""
        self._closed = True
        self._give_up(ConnectionLost("the session was closed"))
        link, self._link = self._link, None
        running = {task for task in (self._connecting, self._watching) if task is not None}
        for task in running:
            task.cancel()
        if link is not None:
            await link.close(reason)
        if running := running | self._closing:
            await asyncio.wait(running)

    def _connect(self, cut_at: float | None) -> None:
        """Begins to connect; `cut_at` is when the connection before was lost, None where there was none."""
        self._next = asyncio.get_running_loop().create_future()
        self._connecting = asyncio.get_running_loop().create_task(self._try(cut_at), name=f"connect {self.place}")

    async def _try(self, cut_at: float | None) -> None:
        settings, failures = self._settings, max(self._in_vain - 1, 0)
        while True:
            await self._clock.sleep(next_pause(settings.pauses, failures, settings.chance()))
            try:
                caller = Caller(settings.name, self._key, self.signal_dbm)
                link = await connect(
                    self.place, self._access, caller,
                    timeout_seconds=settings.connect_seconds, on_lost=self._lost,
                )  # fmt: skip
            except Exception as error:  # of our own making too, such as a name too long: those who wait must hear of it
                failures += 1
                if not self._may_try_again(error, cut_at):
                    self._give_up(error)
                    return
            else:
                self._took(link)
                return

    def _may_try_again(self, error: Exception, cut_at: float | None) -> bool:
        if cut_at is None or not isinstance(error, ConnectFailed):
            return False
        refused = isinstance(error.__cause__, ConnectionRefusedError)
        cut_for = self._clock.monotonic() - cut_at
        return may_try_again(self._settings.pauses, self._grace_seconds, cut_for, refused=refused)

    def _took(self, link: Link) -> None:
        self._link, self._key = link, link.welcome.session_key
        self._grace_seconds = float(link.welcome.grace_seconds)
        self._made_at = self._clock.monotonic()
        waiting, self._next = self._next, None
        if waiting is not None and not waiting.done():
            waiting.set_result(link)
        self._watching = asyncio.get_running_loop().create_task(self._watch(link), name=f"watch {self.place}")

    def _give_up(self, error: Exception) -> None:
        """There is no connection; who waits for one hears why, and the next who asks begins anew."""
        waiting, self._next = self._next, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)
            waiting.exception()  # it may be that nobody waits

    def _lost(self, link: Link) -> None:
        """Called by the link at its end."""
        closing = asyncio.get_running_loop().create_task(link.wait_closed(), name=f"close {self.place}")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        if self._link is not link:
            return
        self._part_with(link)
        if not self._closed and link.goodbye is None:
            self._count()
            self._connect(self._cut_at)

    def _part_with(self, link: Link) -> None:
        self._link = None
        if self._watching is not None:
            self._watching.cancel()
        if not link.keeps_session or (link.goodbye is not None and link.goodbye.reason is GoodbyeReason.REPLACED):
            self._key = b""

    def _count(self) -> None:
        """A connection that breaks as soon as it is there is a failure like one that cannot be made."""
        now = self._clock.monotonic()
        if now - self._made_at > self._settings.pauses.longest_seconds:
            self.went_on()
        self._in_vain += 1
        if self._in_vain == 1:
            self._cut_at = now

    async def _watch(self, link: Link) -> None:
        """Finds a line that is dead and does not say so."""
        in_vain, heard = 0, -1
        while link.lost is None:
            in_vain = 0 if link.driver.received_bytes != heard else in_vain + 1
            if in_vain > self._settings.silent_pings:
                link.cut("the node is silent")
                return
            heard = link.driver.received_bytes
            with contextlib.suppress(TransportError):
                if in_vain:
                    await link.poke(self.signal_dbm)
            await self._clock.sleep(self._settings.ping_seconds)
