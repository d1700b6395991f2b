"""Those who wait when phones begin to rest, and when they recover. On a loop whose clock jumps."""

from __future__ import annotations

import asyncio

from server.care import Condition
from server.nodes import NodeId
from server.registry import NodeCondition
from server.seating import SeatingLimits
from tests.fakes.clock_loop import on_clock_loop
from tests.server.hall import Hall, hall_with, home_at, results, settled, started


def tell(hall: Hall, name: str, celsius: float) -> None:
    now = hall.now()
    hall.registry.emit(NodeCondition(NodeId(name), Condition(temperature_c=celsius, at=now), now))


@on_clock_loop
async def test_an_answer_goes_on_at_a_phone_that_becomes_hot_and_the_next_goes_elsewhere() -> None:
    async with hall_with("a", "b") as hall:
        tasks = started(hall.visit("1", 10.0), hall.visit("2", 1.0))
        await settled()
        tell(hall, "a", 45.0)
        assert await results(tasks) == ["a", "b"]
        assert await results(started(hall.visit("3"), hall.visit("4"))) == ["b", "b"]
        assert hall.load("a").in_flight == 0


@on_clock_loop
async def test_who_waits_for_a_phone_to_come_home_to_goes_elsewhere_when_it_rests() -> None:
    async with hall_with("a", "b") as hall:
        tasks = started(hall.visit("1", 20.0), hall.visit("2", 1.0))
        await settled()
        homing = asyncio.create_task(hall.visit("3", 1.0, hall.claim(home=home_at(hall, "a", 15.0))))
        await asyncio.sleep(3.0)
        assert not homing.done()
        tell(hall, "a", 45.0)
        assert await homing == "b"
        assert hall.events[:3] == ["1 a 0", "2 b 0", "3 b 3"]
        await results(tasks)


@on_clock_loop
async def test_who_waits_is_served_by_the_least_strained_once_all_rest() -> None:
    async with hall_with("a", "b") as hall:
        tell(hall, "b", 44.0)
        tasks = started(hall.visit("1", 10.0), hall.visit("2", 1.0))
        await asyncio.sleep(2.0)
        tell(hall, "a", 45.0)
        assert await results(tasks) == ["a", "b"]
        assert hall.events == ["1 a 0", "2 b 2"]


@on_clock_loop
async def test_a_seat_that_is_given_back_in_an_emergency_goes_to_who_waits() -> None:
    async with hall_with("a") as hall:
        tell(hall, "a", 44.0)
        await results(started(hall.visit("1", 4.0), hall.visit("2", 1.0)))
        assert hall.events == ["1 a 0", "2 a 4"]


@on_clock_loop
async def test_who_waits_is_served_as_soon_as_a_phone_has_recovered() -> None:
    async with hall_with("a", limits=SeatingLimits(no_node_seconds=30.0)) as hall:
        tell(hall, "a", 55.0)
        tasks = started(hall.visit("1", 1.0))
        await asyncio.sleep(5.0)
        tell(hall, "a", 38.0)
        assert await results(tasks) == ["a"]
        assert hall.events == ["1 a 5"]


@on_clock_loop
async def test_a_fleet_that_can_bear_no_work_says_so() -> None:
    async with hall_with("a", limits=SeatingLimits(no_node_seconds=3.0)) as hall:
        tell(hall, "a", 55.0)
        (error,) = await results(started(hall.visit("1")))
        assert hall.events == ["1 no_nodes 3"]
        assert "1 too hot or low on battery" in str(error)


@on_clock_loop
async def test_who_waits_for_the_only_phone_is_served_though_it_begins_to_rest() -> None:
    async with hall_with("a") as hall:
        tasks = started(hall.visit("1", 10.0), hall.visit("2", 1.0))
        await asyncio.sleep(2.0)
        tell(hall, "a", 45.0)
        assert await results(tasks) == ["a", "a"]
        assert hall.events == ["1 a 0", "2 a 10"]


@on_clock_loop
async def test_an_answer_runs_to_its_end_at_a_phone_that_bears_no_more_and_who_waits_is_told() -> None:
    async with hall_with("a", limits=SeatingLimits(no_node_seconds=3.0)) as hall:
        tasks = started(hall.visit("1", 10.0), hall.visit("2", 1.0))
        await asyncio.sleep(2.0)
        tell(hall, "a", 55.0)
        served, refused = await results(tasks)
        assert served == "a" and "too hot" in str(refused)
        assert hall.events == ["1 a 0", "2 no_nodes 5"]
        assert hall.load("a").in_flight == 0
        tell(hall, "a", 30.0)
        assert await results(started(hall.visit("3", 1.0))) == ["a"]
