"""A seat that was taken is given back exactly once, whatever is cancelled whenever. On a loop whose clock jumps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from server.breaker import Breaker, BreakerState
from server.errors import GatewayError
from server.nodes import Node, NodeId
from server.registry import NodeListed, NodeProbed, ProbeFailed
from server.roster import Seat
from server.seating import SeatingLimits
from tests.fakes.clock_loop import on_clock_loop
from tests.server.hall import A, Hall, hall_with, home_at, results, settled, started
from tests.server.scripted_nodes import MODEL, list_node, report_of, spec_of


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
