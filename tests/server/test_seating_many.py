"""Thousands that wait: each event asks those only whom it concerns, and yet nobody waits who could sit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from server.errors import NoNodes
from server.nodes import NodeId
from server.registry import NodeProbed, ProbeFailed
from server.roster import Seat
from server.routing import Choice, choose
from server.seating import Claim, SeatingLimits
from tests.fakes.clock_loop import on_clock_loop
from tests.server.hall import A, B, Hall, hall_with, home_at, results, settled, started
from tests.server.scripted_nodes import MODEL, list_node, report_of


class Able:
    """Every seat will do; counts how often that was asked."""

    asked = 0

    def __call__(self, seat: Seat) -> bool:
        self.asked += 1
        return True


async def occupied(hall: Hall) -> dict[str, Choice]:
    choices = [await hall.seat(hall.claim()) for _ in hall.registry.loads]
    return {choice.seat.id: choice for choice in choices}


@contextmanager
def waiting(hall: Hall, claims: list[Claim]) -> Iterator[None]:
    with ExitStack() as stack:
        for claim in claims:
            assert hall.seating.take(claim) is None
            stack.enter_context(hall.seating.wait(claim))
        yield


def give_back(hall: Hall, choices: dict[str, Choice], *names: str) -> None:
    for name in names:
        hall.seating.give_back(choices.pop(name).seat)


@on_clock_loop
async def test_who_enters_is_judged_alone() -> None:
    async with hall_with("a") as hall:
        choices = await occupied(hall)
        able = Able()
        with waiting(hall, [hall.claim(f"caller{number % 5}", able=able) for number in range(200)]):
            assert able.asked == 200
        give_back(hall, choices, "a")


@on_clock_loop
async def test_a_free_slot_is_not_offered_to_those_whom_its_node_does_not_suit() -> None:
    """A hundred that want a large context wait for the one node that has it, beside many that come and go."""
    async with hall_with() as hall:
        for number in range(20):
            context = 32768 if number == 0 else 4096
            list_node(hall.registry, f"n{number}", report_of(resident=[MODEL], context=context))
        choices = await occupied(hall)
        able = Able()
        with waiting(hall, [hall.claim(context_tokens=32768, able=able) for _ in range(100)]):
            able.asked = 0
            give_back(hall, choices, *(f"n{number}" for number in range(1, 20)))
            assert able.asked <= 2 * 19
            assert hall.seating.room.waiting == 100
            give_back(hall, choices, "n0")
            assert hall.seating.room.waiting == 99


@on_clock_loop
async def test_a_node_concerns_only_those_who_wait_for_it_and_those_who_take_any() -> None:
    async with hall_with(*(f"n{number}" for number in range(50))) as hall:
        choices = await occupied(hall)
        able = Able()
        claims = [hall.claim(home=home_at(hall, f"n{number % 50}", 60.0), able=able) for number in range(500)]
        with waiting(hall, claims):
            able.asked = 0
            give_back(hall, choices, "n7")
            assert able.asked < 10
            assert [claims.index(claim) for claim in claims if claim.future is not None and claim.future.done()] == [7]
        give_back(hall, choices, *list(choices))


@on_clock_loop
async def test_news_that_change_nothing_for_them_ask_nobody() -> None:
    async with hall_with("a", "b") as hall:
        choices = await occupied(hall)
        able = Able()
        with waiting(hall, [hall.claim(able=able) for _ in range(10)]):
            able.asked = 0
            hall.registry.emit(ProbeFailed(A, "once", 0.0))
            assert able.asked == 0
            hall.registry.emit(NodeProbed(A, report_of(slots=3), 0.0))
            assert hall.seating.room.waiting == 8
        give_back(hall, choices, "a", "b")


@on_clock_loop
async def test_those_that_wait_for_a_silent_node_look_over_the_fleet_once() -> None:
    async with hall_with("b", limits=SeatingLimits(no_node_seconds=3.0)) as hall:
        list_node(hall.registry, "a", report_of(["other"]))
        for _ in range(3):
            hall.registry.emit(ProbeFailed(B, "x", 0.0))
        outlook = hall.seating.outlook
        with waiting(hall, [hall.claim() for _ in range(100)]):
            assert hall.seating.outlook is outlook
            assert outlook.returning == {(MODEL, frozenset()): True}


# --- homes that are lost, that rest, and others that are better


@on_clock_loop
async def test_when_a_home_is_lost_those_who_wait_for_it_take_any_node() -> None:
    async with hall_with("a", "b") as hall:
        choices = await occupied(hall)
        tasks = started(*(hall.visit(str(n), 1.0, hall.claim(home=home_at(hall, "a", 60.0))) for n in range(2)))
        await asyncio.sleep(1.0)
        give_back(hall, choices, "b")
        await asyncio.sleep(1.0)
        assert hall.events == []
        for _ in range(3):
            hall.registry.emit(ProbeFailed(A, "x", 0.0))
        await results(tasks)
        assert hall.events == ["0 b 2", "1 b 3"]
        give_back(hall, choices, "a")


@on_clock_loop
async def test_a_home_that_rests_is_waited_for_only_by_those_who_have_the_patience() -> None:
    async with hall_with("a", "b") as hall:
        choices = await occupied(hall)
        patience = {"long": 60.0, "short": 20.0}
        tasks = started(*(hall.visit(n, 1.0, hall.claim(home=home_at(hall, "a", s))) for n, s in patience.items()))
        await settled()
        give_back(hall, choices, "b")
        await asyncio.sleep(1.0)
        hall.rest("a", 30.0)
        give_back(hall, choices, "a")
        await results(tasks)
        assert hall.events[0] == "short b 1"
        assert hall.events[1].split()[:2] == ["long", "a"]
        assert float(hall.events[1].split()[2]) == pytest.approx(31.0, abs=0.01)


@on_clock_loop
async def test_a_seat_that_nobody_wants_is_offered_to_those_who_wait_elsewhere() -> None:
    """A node that reads the whole prompt before the home would be free is the better one."""
    async with hall_with("slow", "quick") as hall:
        hall.load("slow").prompt_tokens_per_second, hall.load("quick").prompt_tokens_per_second = 10.0, 1000.0
        choices = await occupied(hall)
        task = started(hall.visit("comes", 1.0, hall.claim(prompt_tokens=200, home=home_at(hall, "slow", 10.0))))
        await asyncio.sleep(1.0)
        give_back(hall, choices, "quick")
        await results(task)
        assert hall.events == ["comes quick 1"]
        give_back(hall, choices, "slow")


@on_clock_loop
async def test_who_has_waited_for_its_home_long_enough_is_like_all_others() -> None:
    async with hall_with("a", "b") as hall:
        choices = await occupied(hall)
        claims = [hall.claim(home=home_at(hall, "a", 5.0)), hall.claim()]
        with waiting(hall, claims):
            assert len(hall.seating.room.groups) == 2
            await asyncio.sleep(6.0)
            assert len(hall.seating.room.groups) == 1
            give_back(hall, choices, "b")
            assert [claim.future.done() for claim in claims if claim.future is not None] == [True, False]
        give_back(hall, choices, "a")


# --- hope


@on_clock_loop
async def test_each_has_its_own_moment_of_grace() -> None:
    async with hall_with("a", limits=SeatingLimits(no_node_seconds=3.0)) as hall:
        hall.rest("a", 60.0)
        tasks = started(hall.visit("early"))
        await asyncio.sleep(2.0)
        tasks += started(hall.visit("late"))
        assert all(isinstance(outcome, NoNodes) for outcome in await results(tasks))
        assert hall.events == ["early no_nodes 3", "late no_nodes 5"]


@on_clock_loop
async def test_without_a_moment_of_grace_it_ends_at_once() -> None:
    async with hall_with("a", limits=SeatingLimits(no_node_seconds=0.0)) as hall:
        hall.rest("a", 60.0)
        with pytest.raises(NoNodes):
            hall.seating.take(hall.claim())


@on_clock_loop
async def test_all_that_wait_for_what_nobody_can_ever_serve_are_told_at_once() -> None:
    async with hall_with("a") as hall:
        choices = await occupied(hall)
        tasks = started(*(hall.visit(str(number)) for number in range(3)))
        await asyncio.sleep(1.0)
        hall.registry.emit(NodeProbed(A, report_of(["other"]), 0.0))
        assert all(isinstance(outcome, NoNodes) for outcome in await results(tasks))
        assert sorted(hall.events) == ["0 no_nodes 1", "1 no_nodes 1", "2 no_nodes 1"]
        give_back(hall, choices, "a")


# --- nobody waits who could sit


def nobody_waits_in_vain(hall: Hall) -> None:
    for ticket in hall.seating.room:
        demand = ticket.item.demand
        outcome = choose(demand, hall.seating.roster(demand.model), hall.seating.policy, hall.now())
        assert not isinstance(outcome, Choice), (ticket, outcome)


@pytest.mark.parametrize("seed", range(15))
@on_clock_loop
async def test_whatever_happens_nobody_waits_who_could_sit(seed: int) -> None:
    draw = random.Random(seed)
    names = "abcd"
    async with hall_with(*names, limits=SeatingLimits(1000, 1000.0, 500.0)) as hall:

        async def visit(number: int) -> None:
            await asyncio.sleep(draw.random() * 30)
            home = home_at(hall, draw.choice(names), draw.random() * 8)
            demand: dict[str, Any] = draw.choice(
                [
                    {},
                    {"home": home},
                    {"home": home},
                    {"model": None},
                    {"excluded": frozenset({NodeId(draw.choice(names))})},
                ]
            )
            await hall.visit(str(number), draw.random() * 6, hall.claim(draw.choice("xyz"), 0, **demand))

        tasks = started(*(visit(number) for number in range(80)))
        for _ in range(150):
            await asyncio.sleep(draw.random() * 0.4)
            name, roll = draw.choice(names), draw.random()
            if roll < 0.15:
                hall.rest(name, draw.random() * 6)
                hall.seating.pump(NodeId(name))
            elif roll < 0.25:
                for _ in range(3):
                    hall.registry.emit(ProbeFailed(NodeId(name), "x", 0.0))
            elif roll < 0.6:
                hall.registry.emit(NodeProbed(NodeId(name), report_of(slots=draw.choice([1, 1, 2])), 0.0))
            await asyncio.sleep(0.002)  # a look that is due comes a thousandth later
            nobody_waits_in_vain(hall)
        for name in names:
            hall.registry.emit(NodeProbed(NodeId(name), report_of(version="new"), 0.0))
        assert all(outcome is None for outcome in await results(tasks))
