"""Who sits where: late binding, homes, and a fleet that changes. On a loop whose clock jumps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.affinity import Held
from server.nodes import ModelKey
from server.registry import NodeGone, NodeListed, NodeProbed, NodeUnlisted, ProbeFailed
from server.seating import SeatingLimits
from tests.fakes.clock_loop import on_clock_loop
from tests.server.hall import A, B, Hall, hall_with, home_at, results, settled, started
from tests.server.scripted_nodes import MODEL, list_node, report_of, spec_of


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


# --- homes


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


@on_clock_loop
async def test_a_node_that_is_gone_leaves_nothing_in_any_roster() -> None:
    async with hall_with("a", "b") as hall:
        await hall.visit("1")
        rosters = [hall.seating.roster(model) for model in (MODEL, None)]
        for node_id in (A, B):
            hall.registry.emit(NodeGone(node_id))
        assert [(roster.seats, roster.rotation.order, roster.rotation.parked) for roster in rosters] == [
            ({}, {}, {})
        ] * 2


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
