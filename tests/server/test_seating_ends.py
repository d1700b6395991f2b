"""Waiting has an end: full, too long, past the deadline, or hopeless. On a loop whose clock jumps."""

from __future__ import annotations

import asyncio

import pytest

from server.breaker import Breaker
from server.errors import DeadlineExceeded, NoNodes, QueueFull, RequestInvalid
from server.registry import NodeListed, NodeProbed, ProbeFailed
from server.seating import SeatingLimits
from tests.fakes.clock_loop import on_clock_loop
from tests.server.hall import A, hall_with, results, settled, started
from tests.server.scripted_nodes import MODEL, list_node, report_of, spec_of


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
