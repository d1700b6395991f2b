"""The registry of sessions: who comes back to what, who is given up for others, and that memory goes last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gpu_node.errors import NodeBusy, NodeStopping
from gpu_node.relay.presence import SessionTerms
from gpu_node.relay.sessions import ClientSession, Sessions
from tests.gpu_node.relay.relayed import Alarm, failure, generate, hear, scripted, until_true
from tests.gpu_node.serving import NAME, Fleet, Model
from transport.errors import Refused
from wire.messages_memory import Alloc, Allocated
from wire.messages_session import ErrorCode, GoodbyeReason
from wire.messages_work import Load, Loaded
from wire.tensors import DType


class Wire:
    """A connection that only remembers how it was told to end."""

    def __init__(self) -> None:
        self.left: list[GoodbyeReason] = []
        self.heard_at = 0.0

    def leave(self, reason: GoodbyeReason) -> None:
        self.left.append(reason)


class Space:
    """Buffers that are only counted; `order` is what happened to all of them."""

    def __init__(self, owner: str, order: list[str]) -> None:
        self.owner, self.order, self.bytes_held = owner, order, 10

    def release_all(self) -> int:
        self.order.append(f"{self.owner} freed")
        held, self.bytes_held = self.bytes_held, 0
        return held


class Desk:
    def __init__(self, **terms: float) -> None:
        self.alarm, self.order = Alarm(), list[str]()
        self.residents = Fleet().residents()
        made: object = lambda owner: Space(owner, self.order)  # noqa: E731
        numbers = iter(range(1, 1000))
        self.sessions = Sessions(
            self.residents, made, SessionTerms(**terms), self.alarm.times, lambda: next(numbers).to_bytes(32, "big")
        )  # type: ignore[arg-type]

    def enter(self, key: bytes = b"") -> tuple[ClientSession, Wire]:
        wire = Wire()
        session, _ = self.sessions.enter(key, "client", wire)
        return session, wire


@asynccontextmanager
async def desk(**terms: float) -> AsyncIterator[Desk]:
    one = Desk(**terms)
    try:
        yield one
    finally:
        await one.sessions.close()
        await one.residents.close()
        assert one.alarm.waiting == 0


async def test_a_key_is_the_way_back_and_nothing_else() -> None:
    async with desk() as here:
        session, first = here.enter()
        again, second = here.enter(session.key)
        assert again is session and first.left == [GoodbyeReason.REPLACED] and not second.left
        other, _ = here.enter(bytes(32))
        assert other is not session and other.number == 2
        here.sessions.lose(session, first)  # the old connection's end is no news
        assert session.state == "idle"
        here.sessions.lose(session, second)
        assert session.state == "cut" and session.cut_since == here.alarm.now


async def test_times_run_from_the_last_work_and_one_timer_serves_all() -> None:
    async with desk(idle_seconds=100, grace_seconds=10) as here:
        idle, idle_wire = here.enter()
        busy, busy_wire = here.enter()
        cut, cut_wire = here.enter()
        gate = asyncio.Event()
        task = asyncio.create_task(gate.wait())
        busy.tasks.add(task)  # type: ignore[arg-type]
        task.add_done_callback(lambda done: here.sessions.settle(busy, done))  # type: ignore[arg-type]
        here.sessions.lose(cut, cut_wire)
        assert here.alarm.waiting == 1
        await here.alarm.advance(9.9)
        assert len(here.sessions) == 3
        await here.alarm.advance(0.1)
        assert cut.over and len(here.sessions) == 2
        await here.alarm.advance(90)
        assert idle.over and idle_wire.left == [GoodbyeReason.IDLE] and not busy.over
        gate.set()
        await task
        await here.alarm.advance(99)
        assert not busy.over
        await here.alarm.advance(1)
        assert busy.over and busy_wire.left == [GoodbyeReason.IDLE]


async def test_coming_back_in_time_keeps_everything() -> None:
    async with desk(grace_seconds=10) as here:
        session, wire = here.enter()
        here.sessions.lose(session, wire)
        await here.alarm.advance(9)
        here.enter(session.key)
        await here.alarm.advance(9)
        assert not session.over and session.buffers.bytes_held == 10


async def test_work_ends_before_memory_is_freed() -> None:
    async with desk() as here:
        session, wire = here.enter()

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                here.order.append("work over")

        session.tasks.add(task := asyncio.create_task(work()))
        await asyncio.sleep(0)
        await here.sessions.end(session)
        assert here.order == ["work over", "session 1 freed"] and task.done()
        assert wire.left == [GoodbyeReason.FINISHED]


async def test_cut_ones_are_told_longest_first_and_given_up_by_name() -> None:
    async with desk() as here:
        sessions = [here.enter() for _ in range(3)]
        for number in (2, 0):
            here.sessions.lose(*sessions[number])
            here.alarm.now += 1
        assert [one.owner for one in here.sessions.cut()] == ["session 3", "session 1"]
        await here.sessions.give_up("session 3")
        assert here.order == ["session 3 freed"] and sessions[2][0].buffers.bytes_held == 0
        await here.sessions.give_up("session 3")  # it may be on its way already
        assert [one.owner for one in here.sessions.cut()] == ["session 1"]


async def test_giving_up_one_that_is_ending_waits_until_it_has_nothing() -> None:
    async with desk() as here:
        session, _ = here.enter()
        here.sessions.end(session)
        assert session.buffers.bytes_held == 10
        await here.sessions.give_up(session.owner)
        assert session.buffers.bytes_held == 0


async def test_a_full_house_ends_the_longest_cut_or_refuses() -> None:
    async with desk(most=2) as here:
        first, second = here.enter(), here.enter()
        with pytest.raises(NodeBusy):
            here.enter()
        here.sessions.lose(*second)
        here.sessions.lose(*first)
        here.enter()
        assert second[0].over or first[0].over
        assert len(here.sessions) == 2


async def test_after_the_end_nobody_enters() -> None:
    async with desk() as here:
        session, wire = here.enter()
        await here.sessions.close()
        assert session.over and wire.left == [GoodbyeReason.STOPPING]
        with pytest.raises(NodeStopping):
            here.enter()


async def test_what_was_sent_long_ago_over_a_living_line_was_heard() -> None:
    async with desk(grace_seconds=10) as here:
        session, wire = here.enter()
        wire.heard_at = 200.0
        assert session.surely_heard(79.0) and not session.surely_heard(80.0)
        here.sessions.lose(session, wire)
        assert not session.surely_heard(0.0)


async def test_of_what_was_sent_before_a_cut_nobody_knows_whether_it_was_heard() -> None:
    async with desk(grace_seconds=10) as here:
        session, wire = here.enter()
        wire.heard_at = 5.0  # told at 6, when the line was dead already
        back = Wire()
        back.heard_at = 1000.0
        here.sessions.enter(session.key, "client", back)
        back.heard_at = 1100.0
        assert not session.surely_heard(6.0)
        back.heard_at = 1121.0  # it would have asked again by now
        assert session.surely_heard(6.0)


async def test_what_runs_and_is_not_asked_for_by_who_is_back_is_called_off() -> None:
    alarm = Alarm()
    async with scripted(terms=SessionTerms(grace_seconds=30), times=alarm.times) as (here, fleet):
        fleet.script(NAME).hold_at = 1
        link = await here.connect()
        await hear(await link.open(generate(job=b"left")), most=1)
        stream = await link.open(generate(job=b"wanted"))
        heard = await hear(stream, most=1)
        await here.cut(link)
        link = await here.connect(link.welcome.session_key)
        stream = await link.open(generate(job=b"wanted", next_index=1))
        await link.ping()
        await alarm.advance(29)
        assert fleet.script(NAME).running == 2
        await alarm.advance(2)
        await until_true(lambda: fleet.script(NAME).running == 1)
        fleet.script(NAME).go_on.set()
        assert (await hear(stream, heard)).text() == "one two three"


def test_a_key_never_shows() -> None:
    here = Desk()
    session = ClientSession(1, b"k" * 32, "client", here.sessions.terms, here.alarm.times)
    assert "kkkk" not in repr(session)


# With the account

# The first model takes 269 MB of it; what is left holds some buffers, and no other model.
BUDGET = 269_040_000


async def test_a_cut_session_makes_room_for_others_and_a_live_one_does_not() -> None:
    async with scripted(Fleet(budget=BUDGET)) as (here, _):
        free = here.residents.accounts[0].free_bytes
        first, second = await here.connect(), await here.connect()
        await second.ask(Load(NAME))
        await first.ask(Alloc(1, DType.UINT8, (free,)))
        error = await failure(second, Alloc(1, DType.UINT8, (5000,)))
        assert isinstance(error, Refused) and error.code is ErrorCode.NO_ROOM
        assert error.details["free_bytes"] == 0 and error.details["needed_bytes"] == 5000
        await here.cut(first)
        assert isinstance(await second.ask(Alloc(1, DType.UINT8, (5000,))), Allocated) and here.host.ready
        assert not (await here.connect(first.welcome.session_key)).welcome.resumed


async def test_a_model_that_a_live_session_holds_stays_and_one_of_a_cut_session_leaves() -> None:
    fleet = Fleet(models=(Model(NAME), Model("other:1b", 6000)), budget=BUDGET)
    async with scripted(fleet) as (here, _):
        link = await here.connect()
        loaded = await link.ask(Load(NAME))
        assert isinstance(loaded, Loaded)
        other = await here.connect()
        error = await failure(other, Load("other:1b"))
        assert isinstance(error, Refused) and error.code is ErrorCode.NO_ROOM
        await here.cut(link)
        assert isinstance(await other.ask(Load("other:1b")), Loaded)
        assert not here.host.ready


async def test_answers_of_a_cut_session_end_when_others_need_its_room() -> None:
    async with scripted(Fleet(budget=BUDGET)) as (here, fleet):
        fleet.script(NAME).hold_at = 1
        link = await here.connect()
        await link.ask(Alloc(1, DType.UINT8, (2000,)))
        await hear(await link.open(generate(job=b"job")), most=1)
        await here.cut(link)
        free = here.residents.accounts[0].free_bytes
        other = await here.connect()
        await other.ask(Alloc(1, DType.UINT8, (free + 1000,)))
        await until_true(lambda: not fleet.script(NAME).running)
        assert len(here.sessions.all) == 1
