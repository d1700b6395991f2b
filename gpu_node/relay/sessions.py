"""The sessions of all clients: who comes back to what, and when everything of one is given back.

Invariants: a session is found by its key alone, which is secret and never shown; one connection belongs to a session,
the latest; when a session ends, its work ends first and then its memory is free. One timer serves all. Must not know
frames or sockets.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gpu_node.departures import CutSession
from gpu_node.errors import NodeBusy, NodeStopping
from gpu_node.relay.call import SessionState
from gpu_node.relay.holds import Holds
from gpu_node.relay.jobs import Jobs
from gpu_node.relay.presence import Presence, SessionTerms, over_at
from gpu_node.residents import Residents
from wire.messages_session import SESSION_KEY_BYTES, GoodbyeReason

if TYPE_CHECKING:
    from gpu_node.relay.buffers import BufferSpace

log = logging.getLogger("gpu_node.relay")


# A client that hears nothing any more notices by its pings, within less.
SURE_SECONDS = 120.0


class Timer(Protocol):
    def cancel(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Times:
    """Where the time comes from: `after` calls back once, so many seconds later."""

    clock: Callable[[], float] = time.monotonic
    after: Callable[[float, Callable[[], None]], Timer] | None = None  # None: the event loop's

    def call_after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        if self.after is not None:
            return self.after(seconds, callback)
        return asyncio.get_running_loop().call_later(seconds, callback)


class Leash(Protocol):
    """A session's connection."""

    @property
    def heard_at(self) -> float:
        """When anything last came over it, on the event loop's clock."""
        ...

    def leave(self, reason: GoodbyeReason) -> None:
        """Say goodbye, and end soon, without waiting for what is under way."""
        ...


class ClientSession:
    """What one client owns on this node, over all its connections."""

    def __init__(self, number: int, key: bytes, name: str, terms: SessionTerms, times: Times) -> None:
        self.number, self.name = number, name
        self.key = key
        self.over = False
        self.connection: Leash | None = None
        self.jobs = Jobs()
        self.tasks: set[asyncio.Task[None]] = set()  # requests that are being answered
        self._holds: Holds | None = None
        self._buffers: BufferSpace | None = None
        self._grace_seconds = terms.grace_seconds
        self._clock, self._since = times.clock, times.clock()
        self._joined_at = 0.0  # on the event loop's clock: when the connection became this session's
        self.recall: Timer | None = None  # what runs and is not asked for by then is called off

    @property
    def owner(self) -> str:
        return f"session {self.number}"

    @property
    def presence(self) -> Presence:
        return Presence(self.connection is not None, bool(self.tasks) or self.jobs.running > 0, self._since)

    @property
    def state(self) -> SessionState:
        return self.presence.state

    @property
    def cut_since(self) -> float | None:
        return None if self.connection is not None else self._since

    @property
    def models(self) -> frozenset[str]:
        return self.holds.names

    @property
    def holds(self) -> Holds:
        assert self._holds is not None, "it is furnished"
        return self._holds

    @property
    def buffers(self) -> BufferSpace:
        assert self._buffers is not None, "it is furnished"
        return self._buffers

    def furnish(self, holds: Holds, buffers: BufferSpace) -> None:
        """Once, before anybody sees the session; both are made for its `owner`."""
        self._holds, self._buffers = holds, buffers

    def surely_heard(self, told_at: float) -> bool:
        """Whoever still talks over a connection long after something was sent on it has got that; and who has come
        back on another one and not asked for it long ago has no need of it."""
        since = max(told_at, self._joined_at)
        return self.connection is not None and self.connection.heard_at - since > max(self._grace_seconds, SURE_SECONDS)

    def join(self, connection: Leash) -> Leash | None:
        """Belongs to this connection from now on; the one before is returned."""
        before, self.connection = self.connection, connection
        self._joined_at = connection.heard_at
        self.touch()
        return before

    def touch(self) -> None:
        """A sign of life, or of its end: times count from now."""
        self._since = self._clock()


class Sessions:
    """Also what `residents` asks for room; see `gpu_node.departures.Yielding`."""

    def __init__(
        self,
        residents: Residents,
        make_buffers: Callable[[str], BufferSpace],
        terms: SessionTerms,
        times: Times = Times(),
        make_key: Callable[[], bytes] = lambda: secrets.token_bytes(SESSION_KEY_BYTES),
    ) -> None:
        self.terms = terms
        self._residents, self._make_buffers, self._make_key = residents, make_buffers, make_key
        self._times = times
        self._by_key: dict[bytes, ClientSession] = {}
        self._numbers = 0
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._endings: dict[ClientSession, asyncio.Task[None]] = {}
        self._errands: set[asyncio.Task[None]] = set()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def all(self) -> tuple[ClientSession, ...]:
        return tuple(self._by_key.values())

    # Coming and going

    def enter(self, key: bytes, name: str, connection: Leash) -> tuple[ClientSession, bool]:
        """The session of that key, or a new one; whether it is the old one. Raises `NodeBusy`, `NodeStopping`."""
        if self._stopped:
            raise NodeStopping()
        session = self._by_key.get(key)
        if session is None:
            session = self._begin(name)
            session.join(connection)
            return session, False
        before = session.join(connection)
        if before is not None:
            before.leave(GoodbyeReason.REPLACED)
        self._recall(session)
        log.info("%s is back", session.owner)
        return session, True

    def cut(self) -> Sequence[CutSession]:
        """Those without a connection, the longest cut first."""
        return sorted(
            (
                CutSession(one.owner, one.cut_since, one.models)
                for one in self._by_key.values()
                if one.cut_since is not None
            ),
            key=lambda one: one.cut_since,
        )

    def held(self) -> Collection[str]:
        """Models that connected sessions hold."""
        return {name for one in self._by_key.values() if one.connection is not None for name in one.models}

    def lose(self, session: ClientSession, connection: Leash) -> None:
        """The connection is over without a goodbye: the client may come back."""
        if session.connection is connection and not session.over:
            session.connection = None
            session.touch()
            self._watch(session)

    def settle(self, session: ClientSession, task: asyncio.Task[None]) -> None:
        """A request has been answered."""
        session.tasks.discard(task)
        if session.connection is not None:
            session.touch()  # the grace of one that was cut runs on
            self._watch(session)

    def end(self, session: ClientSession, reason: GoodbyeReason = GoodbyeReason.FINISHED) -> asyncio.Task[None]:
        """All that it does ends, all that it has is freed; the task is done when that is so."""
        if session not in self._endings:
            session.over = True
            self._by_key.pop(session.key, None)
            connection, session.connection = session.connection, None
            if session.recall is not None:
                session.recall.cancel()
            if connection is not None:
                connection.leave(reason)
            task = asyncio.get_running_loop().create_task(self._free(session), name=f"end {session.owner}")
            self._endings[session] = task
            task.add_done_callback(lambda _: self._endings.pop(session, None))
        return self._endings[session]

    async def give_up(self, owner: str) -> None:
        """End this one, since others need the room; returns when it holds nothing any more."""
        session = next((one for one in self._by_key.values() if one.owner == owner), None)
        if session is not None:
            await asyncio.shield(self.end(session))
            return
        task = next((task for one, task in self._endings.items() if one.owner == owner), None)
        if task is not None:
            await asyncio.shield(task)

    async def close(self) -> None:
        """End them all; nobody enters any more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for session in self.all:
            self.end(session, GoodbyeReason.STOPPING)
        while self._endings or self._errands:
            await asyncio.gather(*self._endings.values(), *self._errands, return_exceptions=True)

    def _begin(self, name: str) -> ClientSession:
        if len(self._by_key) >= self.terms.most:
            cut = self.cut()
            if not cut:
                raise NodeBusy()
            self.end(next(one for one in self.all if one.owner == cut[0].owner))
        self._numbers += 1
        session = ClientSession(self._numbers, self._make_key(), name, self.terms, self._times)
        session.furnish(Holds(self._residents, session.owner), self._make_buffers(session.owner))
        self._by_key[session.key] = session
        self._watch(session)
        return session

    async def _free(self, session: ClientSession) -> None:
        for task in session.tasks:
            task.cancel()
        await asyncio.gather(*session.tasks, return_exceptions=True)
        await session.jobs.stop()
        freed = session.buffers.release_all()
        left = session.holds.drop_all()
        log.info("%s is over; %d bytes of buffers are free", session.owner, freed)
        if left and not self._stopped:
            # Not waited for: whoever makes room waits for this session, and models leave one after the other.
            self._begin_errand(session.holds.leave_behind(left), f"models of {session.owner}")

    def _recall(self, session: ClientSession) -> None:
        """A CANCEL may have been lost with the line: what a client that is back does not ask for it does not want."""
        connection = session.connection

        def call_off() -> None:
            session.recall = None
            if session.connection is connection:
                self._begin_errand(session.jobs.stop_unheard(), f"answers that {session.owner} left")

        if session.recall is not None:
            session.recall.cancel()
        session.recall = self._times.call_after(self.terms.grace_seconds, call_off) if session.jobs.running else None

    def _begin_errand(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._errands.add(task)
        task.add_done_callback(self._errand_over)

    def _errand_over(self, task: asyncio.Task[None]) -> None:
        self._errands.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s cannot be given back", task.get_name(), exc_info=task.exception())

    # Time

    def look(self) -> None:
        """End those whose time is over, and come back when the next one's may be."""
        now = self._times.clock()
        self._timer, nexts = None, []
        for session in self.all:
            at = over_at(session.presence, self.terms)
            if at is not None and at <= now:
                self.end(session, GoodbyeReason.IDLE)
            else:
                nexts.append(now + self.terms.idle_seconds if at is None else at)
        if nexts:
            self._look_at(min(nexts))

    def _watch(self, session: ClientSession) -> None:
        at = over_at(session.presence, self.terms)
        if at is not None and not self._stopped:
            self._look_at(at)

    def _look_at(self, at: float) -> None:
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._times.call_after(max(at - self._times.clock(), 0.0), self.look)
