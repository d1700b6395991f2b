"""Moves between waiting, held and running."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu_node.engine.planned import Limits, Submission
from gpu_node.engine.population import Population
from gpu_node.engine.sequence_state import SequenceState

LIMITS = Limits(block_tokens=4, block_count=20, max_running=4)


def ids(length: int, first: int = 0) -> tuple[int, ...]:
    return (first, *range(1, length))


def enter(people: Population, length: int, first: int = 0, **options) -> SequenceState:
    return people.states[people.enter(Submission(ids(length, first), 60, **options))[0]]


def test_whoever_is_admitted_has_blocks_for_its_whole_prompt() -> None:
    people = Population(LIMITS)
    one = enter(people, 17)
    assert people.admit() is one and one.running and len(one.blocks) == 5
    assert people.admit() is None


def test_room_is_left_for_those_who_run_to_grow() -> None:
    people = Population(LIMITS)
    enter(people, 40)
    second = enter(people, 37, 1)
    assert people.admit() is not None
    assert people.admit() is None and not second.running  # ten are there, all of them wanted by somebody soon
    third = Population(LIMITS)
    enter(third, 40)
    enter(third, 36, 1)
    assert third.admit() is not None and third.admit() is not None


def test_who_found_no_room_looks_again_only_after_a_release() -> None:
    people = Population(LIMITS)
    first, second = enter(people, 60), enter(people, 60, 1)
    assert people.admit() is first
    assert people.admit() is None and people.admit() is None
    people.leave(first)
    assert people.admit() is second


def test_held_ones_keep_a_seat_and_come_back_when_the_prefix_is_there() -> None:
    people = Population(replace(LIMITS, max_running=3))
    first, second, third = enter(people, 16), enter(people, 15), enter(people, 14)
    fourth = enter(people, 3, 1)
    assert people.admit() is first
    assert people.admit() is None  # the second and the third are held: all seats are taken
    assert second.awaits and third.awaits and not fourth.running and people.room_to_run == 0
    first.computed = 16
    people.settle(first, people.tables.publish(first, 16))
    assert people.admit() is second and second.computed == 12
    assert people.admit() is third and third.computed == 12
    assert people.prefix_hit_tokens == 24 and people.prompt_tokens == 45


@pytest.mark.parametrize("place", ["fresh", "running"])
def test_the_heir_takes_the_place_of_who_left(place: str) -> None:
    people = Population(LIMITS)
    before = enter(people, 3, 1)
    first, second, third = (people.states[one] for one in people.enter(Submission(ids(6), 60, samples=3)))
    if place == "running":
        assert people.admit() is before and people.admit() is first
    people.leave(first)
    assert second.parent is None and second.samples == [third] and third.parent is second
    waiting = [one for line in people.line.lines.values() for one in line]
    assert (people.line.returned, waiting) == (([], [before, second]) if place == "fresh" else ([second], []))
    people.leave(third)
    assert second.samples == []


def test_freed_samples_wait_for_themselves() -> None:
    people = Population(LIMITS)
    first, second, third = (people.states[one] for one in people.enter(Submission(ids(6), 60, samples=3)))
    people.free_samples(first)
    assert people.line.returned == [second, third] and not first.samples and second.parent is None


def test_starting_over_renames_the_blocks() -> None:
    people = Population(LIMITS)
    one = enter(people, 9)
    people.admit()
    keys = [key.digest for key in one.chain.keys]
    people.start_over(one, [5, 6, 7, 8, 9])
    assert one.tokens == [5, 6, 7, 8, 9] and not one.running and people.line.returned == [one]
    assert people.admit() is one and one.chain.keys[0].digest not in keys
    assert people.preemptions == 0


def test_a_reset_changes_the_size_of_blocks_too() -> None:
    people = Population(LIMITS)
    running, held, fresh = enter(people, 9), enter(people, 10), enter(people, 9, 2)
    people.admit()
    people.admit()
    assert running.running and held.awaits
    assert people.reset(replace(LIMITS, block_tokens=2, block_count=6)) == ()
    assert len(people.line) == 3 and people.promises.holding == 0 and people.tables.pool.available == 6
    assert {one.max_context for one in (running, held, fresh)} == {12}
    assert people.admit() is running and len(running.blocks) == 5


def test_deadlines_of_those_who_left_do_not_pile_up() -> None:
    people = Population(LIMITS)
    for _ in range(1_000):
        people.leave(enter(people, 3, deadline=1e9))
    assert len(people._deadlines) < 200
    stays = enter(people, 3, deadline=5.0)
    assert people.next_deadline() == 5.0 and people.expired(5.0) == (stays.id,)


# Blocks that are wanting, and blocks that come and go


def test_there_is_no_shortage_while_there_is_room() -> None:
    people = Population(LIMITS)
    assert people.shortage == 0
    enter(people, 40)
    assert people.shortage == 0
    people.admit()
    assert people.shortage == 0


def test_who_waits_for_blocks_is_short_of_them_and_who_waits_for_a_seat_is_not() -> None:
    people = Population(replace(LIMITS, max_running=2))
    enter(people, 60)
    second, third = enter(people, 37, 1), enter(people, 37, 2)
    people.admit()
    assert people.admit() is None
    assert people.shortage == 1 + 10 - 5  # five are there, and who runs may soon want another one
    people.leave(second)
    assert people.shortage == 6
    people.leave(third)
    assert people.shortage == 0


def test_what_the_cache_has_is_no_shortage() -> None:
    people = Population(LIMITS)
    first = enter(people, 41)
    people.admit()
    first.computed = 40
    people.settle(first, people.tables.publish(first, 40))
    enter(people, 50)  # shares ten blocks
    enter(people, 50, 1)
    assert people.shortage == 1 + 3 + 13 - 9


def test_who_will_soon_need_a_block_is_short_of_it() -> None:
    people = Population(replace(LIMITS, block_count=10))
    one = people.states[people.enter(Submission(ids(40), 40))[0]]
    people.admit()
    assert people.shortage == 0  # its context is full
    one.max_context = 60
    assert people.shortage == 1


def test_who_holds_a_block_that_goes_gives_way() -> None:
    people = Population(replace(LIMITS, promised=16))
    people.tables.pool.restore(range(16, 20))
    stays, goes = enter(people, 40), enter(people, 30, 1)
    people.admit(), people.admit()
    assert set(goes.blocks) & {16, 17} and not set(stays.blocks) & {16, 17}
    people.retire([16, 17, 18, 19])
    assert stays.running and not goes.running and people.line.peek() is goes
    assert people.tables.pool.retired == 4 and people.admit() is None
    people.tables.pool.restore([18, 19, 16])
    assert people.admit() is goes, "found no room before, and looks again"


def test_the_source_of_a_copy_is_held_too() -> None:
    people = Population(LIMITS)
    one = enter(people, 6)
    people.admit()
    sample = people._state(one.submission)
    one.samples, sample.parent = [sample], one
    people.fork(one, sample, 6)
    source = sample.blocks[1]
    sample.tokens.append(5)
    assert people.tables.make_room(sample, 7) and sample.copy is not None and sample.copy.source == source
    people.retire([source])
    assert not one.running and not sample.running and people.tables.pool.used == 0
