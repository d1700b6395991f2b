"""Who sits where: late binding, waiting with an end, and seats that are given back exactly once.

Runs on a loop whose clock jumps: minutes of waiting take no time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from server.affinity import Held, Match
from server.breaker import Breaker, BreakerState, on_success
from server.errors import DeadlineExceeded, GatewayError, NoNodes, QueueFull, RequestInvalid
from server.exchange import CallerId
from server.nodes import Load, ModelKey, Node, NodeId
from server.registry import NodeGone, NodeListed, NodeProbed, NodeUnlisted, ProbeFailed, Registry
from server.routing import STRATEGIES, Choice, Demand, Home, Policy, Seat
from server.seating import Claim, Seating, SeatingLimits
from tests.fakes.clock_loop import on_clock_loop
from tests.server.scripted_nodes import MODEL, list_node, report_of, spec_of

A, B = NodeId("a"), NodeId("b")


@dataclass
class Hall:
    """A seating over a registry of its own, and what its visitors got."""

    registry: Registry = field(default_factory=Registry)
    limits: SeatingLimits = field(default_factory=SeatingLimits)
    starting: bool = False
    events: list[str] = field(default_factory=list)
    seating: Seating = field(init=False)

    def __post_init__(self) -> None:
        self.seating = Seating(
            self.registry,
            Policy(STRATEGIES["weighted_round_robin"]),
            self.limits,
            self.now,
            absence=lambda: "plug in a phone",
            starting=lambda: self.starting,
        )

    @staticmethod
    def now() -> float:
        return asyncio.get_running_loop().time()

    def load(self, name: str) -> Load:
        return self.registry.loads[NodeId(name)]

    def claim(self, caller: str = "alice", priority: int = 0, deadline: float | None = None, **demand: Any) -> Claim:
        wanted = Demand(**{"model": MODEL, "prompt_tokens": 10, **demand})
        return self.seating.claim(CallerId(caller), priority, wanted, deadline)

    async def seat(self, claim: Claim) -> Choice:
        """A seat, however long it takes."""
        choice = self.seating.take(claim)
        if choice is None:
            with self.seating.wait(claim) as waiting:
                while choice is None:
                    choice = await waiting.seat(0.5)
        claim.seated = True
        return choice

    async def visit(self, name: str, seconds: float = 1.0, claim: Claim | None = None) -> str:
        """Sit down, stay for a while, get up. What happened is written down."""
        try:
            choice = await self.seat(claim or self.claim())
        except GatewayError as error:
            self.events.append(f"{name} {error.code} {self.now():g}")
            raise
        self.events.append(f"{name} {choice.seat.id} {self.now():g}")
        try:
            await asyncio.sleep(seconds)
        finally:
            choice.seat.load.breaker = on_success(choice.seat.load.breaker)
            self.seating.give_back(choice.seat)
        return choice.seat.id

    def rest(self, name: str, seconds: float) -> None:
        self.load(name).breaker = Breaker(BreakerState.OPEN, 3, 1, self.now() + seconds)
        self.seating.touch(NodeId(name))

    def is_empty(self) -> bool:
        loads = self.registry.loads.values()
        nothing_runs = all(load.in_flight == 0 and not load.in_flight_by_model for load in loads)
        return nothing_runs and self.seating.room.waiting == 0 and not self.seating.room.lines


@asynccontextmanager
async def hall_with(*nodes: str, **changes: Any) -> AsyncIterator[Hall]:
    """Every node has one slot, unless the test lists its own. At the end nobody sits or waits."""
    hall = Hall(**changes)
    for name in nodes:
        list_node(hall.registry, name)
    yield hall
    assert hall.is_empty()
    hall.seating.close()


def started(*visits: Any) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(visit) for visit in visits]


async def results(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


# --- binding


@on_clock_loop
async def test_a_free_seat_is_taken_at_once() -> None:
    async with hall_with("a") as hall:
        claim = hall.claim()
        choice = hall.seating.take(claim)
        assert choice is not None
        assert (hall.load("a").in_flight, hall.load("a").in_flight_by_model) == (1, {MODEL: 1})
        assert hall.seating.take(hall.claim()) is None
        hall.seating.give_back(choice.seat)


@on_clock_loop
async def test_a_request_is_bound_only_when_a_slot_is_free() -> None:
    """Late binding through one queue: no node owns a request that a free one could have started."""
    async with hall_with("a", "b") as hall:
        slow, quick = hall.visit("1", 100.0), hall.visit("2", 1.0)
        tasks = started(slow, quick, *(hall.visit(str(number), 1.0) for number in (3, 4, 5)))
        await results(tasks)
        assert hall.events == ["1 a 0", "2 b 0", "3 b 1", "4 b 2", "5 b 3"]


@on_clock_loop
async def test_a_node_with_several_slots_serves_several() -> None:
    async with hall_with() as hall:
        list_node(hall.registry, "a", max_concurrency=3)
        await results(started(*(hall.visit(str(number), 10.0) for number in range(5))))
        assert [event.split()[2] for event in hall.events] == ["0", "0", "0", "10", "10"]


@on_clock_loop
async def test_slots_are_shared_by_all_models_of_a_node() -> None:
    async with hall_with() as hall:
        list_node(hall.registry, "a", report_of(["one", "two"]))
        first = hall.visit("1", 5.0, hall.claim(model=ModelKey("one")))
        second = hall.visit("2", 5.0, hall.claim(model=ModelKey("two")))
        third = hall.visit("3", 5.0, hall.claim(model=None))
        await results(started(first, second, third))
        assert hall.events == ["1 a 0", "2 a 5", "3 a 10"]


@on_clock_loop
async def test_callers_take_turns() -> None:
    """Equal turns per caller."""
    async with hall_with("a") as hall:
        visits = [hall.visit(f"a{number}", 1.0, hall.claim("alice")) for number in range(4)]
        await results(started(*visits, hall.visit("b0", 1.0, hall.claim("bob"))))
        assert [event.split()[0] for event in hall.events] == ["a0", "a1", "b0", "a2", "a3"]


@on_clock_loop
async def test_a_model_that_nobody_can_serve_now_holds_up_nobody() -> None:
    async with hall_with() as hall:
        list_node(hall.registry, "a", report_of(["one"]))
        list_node(hall.registry, "b", report_of(["two"]))
        one, two = ({"model": ModelKey(name)} for name in ("one", "two"))
        tasks = started(*(hall.visit(f"one{number}", 50.0, hall.claim(**one)) for number in range(2)))
        tasks += started(*(hall.visit(f"two{number}", 1.0, hall.claim(**two)) for number in range(3)))
        await results(tasks)
        assert hall.events == ["one0 a 0", "two0 b 0", "two1 b 1", "two2 b 2", "one1 a 50"]


@on_clock_loop
async def test_the_place_in_the_queue_is_visible() -> None:
    async with hall_with("a") as hall:
        choice = hall.seating.take(hall.claim())
        assert choice is not None
        first, second = hall.claim("bob"), hall.claim("bob")
        assert hall.seating.take(first) is hall.seating.take(second) is None
        with hall.seating.wait(first) as one, hall.seating.wait(second) as two:
            assert (one.position, two.position) == (1, 2)
            assert await two.seat(0.5) is None
            hall.seating.give_back(choice.seat)
            assert one.position == 1
            got = await one.seat(0.5)
            assert got is not None
        hall.seating.give_back(got.seat)


# --- an end to waiting


@on_clock_loop
async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    """Bounded; full -> 429 with Retry-After."""
    async with hall_with("a", limits=SeatingLimits(queue_limit=2)) as hall:
        tasks = started(*(hall.visit(str(number), 1.0) for number in range(3)))
        await settled()
        with pytest.raises(QueueFull) as caught:
            hall.seating.take(hall.claim())
        assert caught.value.retry_after is not None
        assert caught.value.retry_after == hall.seating.expected_wait() == 3 * 10.0
        await results(tasks)


@on_clock_loop
async def test_the_expected_wait_follows_slots_and_the_usual_length() -> None:
    async with hall_with("a", "b") as hall:
        assert hall.seating.expected_wait() == 5.0
        hall.seating.request_seconds = 60.0
        list_node(hall.registry, "c", max_concurrency=4)
        assert hall.seating.expected_wait() == 10.0
        hall.seating.request_seconds = 0.01
        assert hall.seating.expected_wait() == 1.0


@on_clock_loop
async def test_a_half_told_answer_is_never_turned_away_at_the_door() -> None:
    async with hall_with("a", limits=SeatingLimits(queue_limit=1)) as hall:
        tasks = started(hall.visit("1", 1.0), hall.visit("2", 1.0))
        await settled()
        claim = hall.claim()
        claim.seated = True
        assert hall.seating.take(claim) is None
        await results(tasks)


@on_clock_loop
async def test_waiting_has_an_end() -> None:
    async with hall_with("a", limits=SeatingLimits(queue_seconds=30.0)) as hall:
        tasks = started(hall.visit("1", 100.0), hall.visit("2"))
        await results(tasks)
        assert hall.events == ["1 a 0", "2 queue_full 30"]


@on_clock_loop
async def test_only_waiting_counts_as_waiting() -> None:
    """An answer that ran for an hour before its node broke may still wait for another node."""
    async with hall_with("a", limits=SeatingLimits(queue_seconds=30.0)) as hall:
        claim = hall.claim()
        choice = await hall.seat(claim)
        await asyncio.sleep(3600)
        hall.seating.give_back(choice.seat)
        other = started(hall.visit("other", 20.0))
        await settled()
        assert await hall.visit("again", 1.0, claim) == "a"
        await results(other)


@on_clock_loop
async def test_waiting_is_counted_over_all_attempts() -> None:
    async with hall_with("a", limits=SeatingLimits(queue_seconds=30.0)) as hall:
        claim = hall.claim()
        tasks = started(hall.visit("1", 20.0), hall.visit("2", 10.0, claim))
        await results(tasks)
        assert claim.waited == pytest.approx(20.0)
        other = started(hall.visit("3", 20.0))
        await settled()
        with pytest.raises(QueueFull):
            await hall.visit("again", 1.0, claim)
        assert hall.events[-1] == "again queue_full 40"
        await results(other)


@on_clock_loop
async def test_a_deadline_ends_waiting() -> None:
    """Deadlines: the request's own end comes before the queue's."""
    async with hall_with("a") as hall:
        claim = hall.claim(deadline=7.0)
        tasks = started(hall.visit("1", 100.0), hall.visit("2", 1.0, claim), hall.visit("3", 1.0))
        outcome = await results(tasks)
        assert isinstance(outcome[1], DeadlineExceeded)
        assert hall.events == ["1 a 0", "2 deadline_exceeded 7", "3 a 100"]


@on_clock_loop
async def test_without_any_node_nobody_waits() -> None:
    """503 with the sentence that says what to do."""
    async with hall_with() as hall:
        with pytest.raises(NoNodes, match="there are no nodes") as caught:
            hall.seating.take(hall.claim())
        assert caught.value.hint == "plug in a phone"


@on_clock_loop
async def test_a_model_that_no_known_node_has_is_not_waited_for() -> None:
    async with hall_with() as hall:
        list_node(hall.registry, "a", report_of(["other"]))
        with pytest.raises(NoNodes):
            hall.seating.take(hall.claim())


@pytest.mark.parametrize("trouble", ["rests", "is silent", "is unknown"])
@on_clock_loop
async def test_a_node_that_may_come_back_is_waited_for_a_moment(trouble: str) -> None:
    async with hall_with(limits=SeatingLimits(no_node_seconds=3.0)) as hall:
        if trouble == "is unknown":
            hall.registry.emit(NodeListed(spec_of("a"), 0.0))
        else:
            list_node(hall.registry, "a")
        if trouble == "rests":
            hall.rest("a", 30.0)
        if trouble == "is silent":
            for _ in range(3):
                hall.registry.emit(ProbeFailed(A, "nothing", 0.0))
        await results(started(hall.visit("1"), hall.visit("2")))
        assert [event.split()[:2] for event in hall.events] == [["1", "no_nodes"], ["2", "no_nodes"]]
        assert all(3.0 <= float(event.split()[2]) < 3.1 for event in hall.events)


@on_clock_loop
async def test_a_node_that_comes_back_in_time_serves() -> None:
    async with hall_with(limits=SeatingLimits(no_node_seconds=3.0)) as hall:
        hall.registry.emit(NodeListed(spec_of("a"), 0.0))
        tasks = started(hall.visit("1", 1.0), hall.visit("2", 1.0))
        await asyncio.sleep(2.0)
        hall.registry.emit(NodeProbed(A, report_of(), 2.0))
        await results(tasks)
        assert hall.events == ["1 a 2", "2 a 3"]


@on_clock_loop
async def test_a_rest_that_ends_in_time_is_noticed_without_any_news() -> None:
    async with hall_with("a", limits=SeatingLimits(no_node_seconds=3.0)) as hall:
        hall.rest("a", 2.0)
        await results(started(hall.visit("1")))
        assert [event.split()[1] for event in hall.events] == ["a"]
        assert float(hall.events[0].split()[2]) == pytest.approx(2.0, abs=0.01)


@on_clock_loop
async def test_the_moment_of_grace_begins_anew_each_time_all_nodes_are_gone() -> None:
    async with hall_with("a", limits=SeatingLimits(no_node_seconds=3.0)) as hall:
        choice = await hall.seat(hall.claim())
        tasks = started(hall.visit("waits", 1.0))
        for _ in range(3):
            hall.rest("a", 60.0)
            hall.seating.pump()
            await asyncio.sleep(2.0)
            hall.load("a").breaker = Breaker()
            hall.seating.touch(A)
            hall.seating.pump()
            await asyncio.sleep(10.0)
        hall.seating.give_back(choice.seat)
        assert await results(tasks) == ["a"]


@on_clock_loop
async def test_hope_that_ends_for_one_does_not_hold_up_the_next() -> None:
    """One gives up in the very moment in which the node comes back: the others are served at once."""
    async with hall_with("a", limits=SeatingLimits(no_node_seconds=3.0)) as hall:
        hall.rest("a", 60.0)
        tasks = started(hall.visit("1", 1.0))
        await asyncio.sleep(1.0)
        tasks += started(hall.visit("2", 1.0))
        await asyncio.sleep(1.9)
        asyncio.get_running_loop().call_at(3.0, hall.seating.pump)
        hall.load("a").breaker = Breaker()
        hall.seating.touch(A)  # nobody pumps yet: the first one's time is up first

        def hopeless_then_back() -> None:
            hall.rest("a", 60.0)
            hall.seating.pump()
            hall.load("a").breaker = Breaker()
            hall.seating.touch(A)
            hall.seating.pump()

        hall.rest("a", 60.0)
        asyncio.get_running_loop().call_at(3.05, hopeless_then_back)
        outcome = await results(tasks)
        assert isinstance(outcome[0], NoNodes)
        assert outcome[1] == "a"
        assert float(hall.events[-1].split()[2]) == pytest.approx(3.05)


@on_clock_loop
async def test_while_the_embedded_node_starts_one_waits() -> None:
    async with hall_with(starting=True, limits=SeatingLimits(no_node_seconds=1.0, queue_seconds=60.0)) as hall:
        tasks = started(hall.visit("1", 1.0))
        await asyncio.sleep(30.0)
        list_node(hall.registry, "a")
        await results(tasks)
        assert hall.events == ["1 a 30"]


@on_clock_loop
async def test_when_the_embedded_node_gives_up_without_a_word_the_waiting_ends() -> None:
    async with hall_with(starting=True, limits=SeatingLimits(no_node_seconds=3.0)) as hall:
        tasks = started(hall.visit("1"))
        await asyncio.sleep(30.0)
        hall.starting = False
        assert isinstance((await results(tasks))[0], NoNodes)
        assert float(hall.events[0].split()[2]) < 36


@on_clock_loop
async def test_a_context_that_no_node_has_is_refused_with_the_limit_named() -> None:
    async with hall_with() as hall:
        list_node(hall.registry, "a", report_of(resident=[MODEL], context=4096))
        with pytest.raises(RequestInvalid) as caught:
            hall.seating.take(hall.claim(context_tokens=8192))
        assert caught.value.field == "options.num_ctx"
        assert "4096" in str(caught.value.hint)


# --- homes


def home_at(hall: Hall, name: str, waits: float) -> Home:
    return Home(NodeId(name), Match(100, 0, True), waits, hall.now() + waits)


@on_clock_loop
async def test_a_homecoming_waits_and_then_takes_any_free_node_without_any_news() -> None:
    """A homecoming waits at most as long as coming home saves, then takes any free node: a timer sees to it."""
    async with hall_with("a", "b") as hall:
        task = started(hall.visit("sits", 100.0, hall.claim(home=home_at(hall, "a", 1.0))))
        await settled()
        assert hall.events == ["sits a 0"]
        await hall.visit("comes", 1.0, hall.claim(home=home_at(hall, "a", 5.0)))
        assert hall.events[1].split()[:2] == ["comes", "b"]
        assert float(hall.events[1].split()[2]) == pytest.approx(5.0, abs=0.01)
        await results(task)


@on_clock_loop
async def test_a_home_that_gets_free_is_taken_at_once() -> None:
    async with hall_with("a", "b") as hall:
        task = started(hall.visit("sits", 2.0, hall.claim(home=home_at(hall, "a", 1.0))))
        await settled()
        await hall.visit("comes", 1.0, hall.claim(home=home_at(hall, "a", 5.0)))
        assert hall.events[1] == "comes a 2"
        await results(task)


@on_clock_loop
async def test_several_homecomings_each_have_their_own_time() -> None:
    async with hall_with("a", "b", "c") as hall:
        task = started(hall.visit("sits", 100.0, hall.claim(home=home_at(hall, "a", 1.0))))
        await settled()
        waits = (9.0, 2.0, 5.0)
        claims = [hall.claim(home=home_at(hall, "a", seconds)) for seconds in waits]
        await results(
            started(*(hall.visit(f"h{c.demand.home.saving_seconds:g}", 1.0, c) for c in claims if c.demand.home))
        )
        moments = {event.split()[0]: float(event.split()[2]) for event in hall.events[1:]}
        assert moments == {
            "h2": pytest.approx(2, abs=0.01),
            "h5": pytest.approx(5, abs=0.01),
            "h9": pytest.approx(9, abs=0.01),
        }
        await results(task)


@on_clock_loop
async def test_with_no_room_to_wait_in_a_homecoming_takes_any_free_node() -> None:
    async with hall_with(limits=SeatingLimits(queue_limit=1)) as hall:
        list_node(hall.registry, "a", report_of([MODEL, "two"]))
        list_node(hall.registry, "b")
        task = started(
            hall.visit("sits", 10.0, hall.claim(model=ModelKey("two"))),
            hall.visit("waits", 1.0, hall.claim(model=ModelKey("two"))),
        )
        await settled()
        assert await hall.visit("comes", 1.0, hall.claim(home=home_at(hall, "a", 5.0))) == "b"
        await results(task)


# --- the fleet changes


@on_clock_loop
async def test_a_draining_node_gets_nothing_new_and_keeps_what_it_has() -> None:
    async with hall_with("a", "b") as hall:
        choice = await hall.seat(hall.claim(excluded=frozenset({B})))
        hall.registry.emit(NodeUnlisted(A, 1.0))
        assert [await hall.visit(str(number)) for number in range(3)] == ["b", "b", "b"]
        hall.seating.give_back(choice.seat)


@on_clock_loop
async def test_a_node_that_leaves_while_it_serves_and_comes_back_is_counted_right() -> None:
    async with hall_with("a") as hall:
        choice = await hall.seat(hall.claim())
        hall.registry.emit(NodeGone(A))
        list_node(hall.registry, "a")
        again = await hall.seat(hall.claim())
        hall.seating.give_back(choice.seat)
        assert hall.load("a").in_flight == 1
        hall.seating.give_back(again.seat)


@on_clock_loop
async def test_a_new_node_serves_who_waits() -> None:
    async with hall_with("a") as hall:
        tasks = started(hall.visit("1", 100.0), hall.visit("2", 1.0))
        await asyncio.sleep(3.0)
        list_node(hall.registry, "b")
        await results(tasks)
        assert hall.events == ["1 a 0", "2 b 3"]


@on_clock_loop
async def test_more_slots_serve_who_waits() -> None:
    async with hall_with("a") as hall:
        tasks = started(hall.visit("1", 100.0), hall.visit("2", 1.0))
        await asyncio.sleep(3.0)
        hall.registry.emit(NodeProbed(A, report_of(slots=2), 3.0))
        await results(tasks)
        assert hall.events == ["1 a 0", "2 a 3"]


def holding(hall: Hall, key: int = 1) -> None:
    memory = hall.seating.memories.of(A)
    memory.write(Held((key,), MODEL, "d", 100, 0.0))
    memory.pinned_contexts[MODEL] = 8192


@pytest.mark.parametrize(
    ("events", "held", "pinned"),
    [
        ([NodeProbed(A, report_of(resident=[MODEL]), 1.0)], 1, True),
        ([NodeProbed(A, report_of(resident=[]), 1.0)], 0, False),
        ([NodeProbed(A, report_of(resident=[MODEL], version="0.33.0"), 1.0)], 0, False),
        ([NodeProbed(A, report_of(resident=[MODEL], context=8192), 1.0)], 0, True),
        ([NodeProbed(A, report_of(resident=[MODEL], context=None), 1.0)], 1, True),
        ([NodeListed(spec_of("a", host="10.9.9.9"), 1.0)], 0, False),
        ([NodeListed(spec_of("a", weight=9.0), 1.0)], 1, True),
        ([NodeGone(A)], 0, False),
        ([ProbeFailed(A, "x", 1.0)], 1, True),
        ([ProbeFailed(A, "x", 1.0, refused=True), NodeProbed(A, report_of(resident=[MODEL]), 2.0)], 0, False),
    ],
)
@on_clock_loop
async def test_entries_go_when_the_model_unloads_or_reloads_or_the_node_restarts(
    events: list[Any], held: int, pinned: bool
) -> None:
    """Entries go when the model unloads, reloads (`/api/ps`) or the node restarts."""
    async with hall_with() as hall:
        list_node(hall.registry, "a", report_of(resident=[MODEL]))
        holding(hall)
        for event in events:
            hall.registry.emit(event)
        memory = hall.seating.memories.of(A)
        assert len(memory) == held
        assert (MODEL in memory.pinned_contexts) is pinned
        assert len(hall.seating.memories.holders) == held


# --- seats are given back exactly once


@on_clock_loop
async def test_a_request_that_leaves_the_queue_leaves_nothing_behind() -> None:
    async with hall_with("a") as hall:
        tasks = started(hall.visit("1", 5.0), hall.visit("2"), hall.visit("3", 1.0))
        await asyncio.sleep(1.0)
        tasks[1].cancel()
        await results(tasks)
        assert hall.events == ["1 a 0", "3 a 5"]


@on_clock_loop
async def test_a_request_that_leaves_before_it_hears_of_its_seat_gives_it_back() -> None:
    """Bound and cancelled in the same turn of the loop: the next one gets the seat."""
    async with hall_with("a") as hall:
        choice = await hall.seat(hall.claim())
        tasks = started(hall.visit("2"), hall.visit("3"))
        await settled()
        hall.seating.give_back(choice.seat)
        tasks[0].cancel()
        await results(tasks)
        assert hall.events == ["3 a 0"]


@on_clock_loop
async def test_a_trial_that_leaves_before_it_hears_of_its_seat_lets_another_try() -> None:
    """Exactly one request tries after the rest; if it leaves unheard, the next one does: no node is lost for ever."""
    async with hall_with("a", limits=SeatingLimits(no_node_seconds=60.0)) as hall:
        hall.rest("a", 10.0)
        claim = hall.claim()
        assert hall.seating.take(claim) is None
        with hall.seating.wait(claim):
            await asyncio.sleep(10.5)
            assert hall.load("a").breaker.state is BreakerState.HALF_OPEN
            assert hall.load("a").in_flight == 1
        assert hall.load("a").in_flight == 0
        assert await hall.visit("next") == "a"
        assert hall.load("a").breaker == Breaker()


@on_clock_loop
async def test_only_one_of_many_tries_a_node_after_its_rest() -> None:
    async with hall_with(limits=SeatingLimits(no_node_seconds=60.0)) as hall:
        list_node(hall.registry, "a", max_concurrency=4)
        hall.rest("a", 10.0)
        await results(started(*(hall.visit(str(number), 2.0) for number in range(4))))
        moments = [round(float(event.split()[2]), 1) for event in hall.events]
        assert moments == [10.0, 12.0, 12.0, 12.0]


@on_clock_loop
async def test_an_error_that_nobody_hears_is_no_noise() -> None:
    async with hall_with("a", limits=SeatingLimits(no_node_seconds=1.0)) as hall:
        hall.rest("a", 60.0)
        claim = hall.claim()
        assert hall.seating.take(claim) is None
        with hall.seating.wait(claim):
            await asyncio.sleep(2.0)
        assert hall.seating.room.waiting == 0


@on_clock_loop
async def test_a_claim_keeps_its_place_after_a_busy_answer() -> None:
    """429 and 503 mean busy: the request goes back to its own place, before those of its caller that came later."""
    async with hall_with("a") as hall:
        claim = hall.claim()
        choice = await hall.seat(claim)
        tasks = started(*(hall.visit(f"later{number}", 1.0) for number in range(2)))
        await settled()
        hall.load("a").busy_until = hall.now() + 5.0
        hall.seating.give_back(choice.seat)
        await hall.visit("first", 1.0, claim)
        await results(tasks)
        assert [event.split()[0] for event in hall.events] == ["first", "later0", "later1"]
        assert float(hall.events[0].split()[2]) == pytest.approx(5.0, abs=0.01)


@pytest.mark.parametrize("seed", range(25))
@on_clock_loop
async def test_whatever_is_cancelled_whenever_every_seat_is_given_back(seed: int) -> None:
    """Cancels in every state, nodes that come, rest and go: at the end nobody sits, nobody waits, all can be served."""
    draw = random.Random(seed)
    async with hall_with("a", "b", "c", limits=SeatingLimits(40, 50.0, 2.0)) as hall:
        for name in "abc":
            hall.registry.emit(NodeListed(spec_of(name, max_concurrency=draw.randint(1, 3)), 0.0))

        async def visit(number: int) -> None:
            await asyncio.sleep(draw.random() * 20)
            demand: dict[str, Any] = draw.choice(
                [{}, {"home": home_at(hall, draw.choice("abc"), 4.0)}, {"model": None}, {"excluded": frozenset({A})}]
            )
            deadline = hall.now() + 10 if draw.random() < 0.3 else None
            await hall.visit(str(number), draw.random() * 4, hall.claim(draw.choice("xyz"), 0, deadline, **demand))

        tasks = started(*(visit(number) for number in range(60)))
        for _ in range(120):
            await asyncio.sleep(draw.random() * 0.4)
            name = draw.choice("abc")
            roll = draw.random()
            if roll < 0.5:
                draw.choice(tasks).cancel()
            elif roll < 0.6:
                hall.rest(name, draw.random() * 5)
            elif roll < 0.7:
                hall.load(name).busy_until = hall.now() + draw.random()
                hall.seating.touch(NodeId(name))
            elif roll < 0.75:
                for _ in range(3):
                    hall.registry.emit(ProbeFailed(NodeId(name), "x", 0.0))
            else:
                hall.registry.emit(NodeProbed(NodeId(name), report_of(version=draw.choice(["1", "2"])), 0.0))
        for outcome in await results(tasks):
            assert outcome is None or isinstance(outcome, asyncio.CancelledError | GatewayError), outcome
        assert hall.is_empty()
        for name in "abc":
            hall.registry.emit(NodeProbed(NodeId(name), report_of(version="3"), 0.0))
        choices = [await hall.seat(hall.claim()) for _ in range(sum(seats_of(hall)))]
        assert hall.seating.take(hall.claim()) is None
        for choice in choices:
            hall.seating.give_back(choice.seat)


def seats_of(hall: Hall) -> Iterator[int]:
    nodes: list[Node] = list(hall.registry.fleet.nodes.values())
    return (node.slots for node in nodes)


@on_clock_loop
async def test_weights_that_were_learned_reach_every_roster() -> None:
    async with hall_with() as hall:
        list_node(hall.registry, "a", weight=None)
        rosters = [hall.seating.roster(model) for model in (MODEL, None)]
        before = rosters[0].seats[A].weight
        hall.load("a").tokens_per_second = 80.0
        hall.seating.reweigh(A)
        weights = {roster.seats[A].weight for roster in rosters}
        assert len(weights) == 1
        assert weights.pop() > before


@on_clock_loop
async def test_a_seat_knows_its_node_as_it_was_when_it_was_taken() -> None:
    async with hall_with("a") as hall:
        choice = await hall.seat(hall.claim())
        seat: Seat = choice.seat
        hall.registry.emit(NodeListed(spec_of("a", weight=5.0), 1.0))
        assert seat.node.spec.weight == 1.0
        assert hall.seating.roster(MODEL).seats[A].node.spec.weight == 5.0
        hall.seating.give_back(seat)


@on_clock_loop
async def test_demands_change_between_attempts() -> None:
    """After a failure the claim excludes the node and goes on with the same place."""
    async with hall_with("a", "b") as hall:
        claim = hall.claim()
        first = await hall.seat(claim)
        claim.demand = replace(claim.demand, excluded=frozenset({first.seat.id}))
        hall.seating.give_back(first.seat)
        assert await hall.visit("again", 1.0, claim) != first.seat.id
