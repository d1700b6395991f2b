"""What goes into a step while others are under way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.gpu_node.engine.flow import Flow
from tests.gpu_node.engine.paged_model import LIMITS, parts, text


def answering(flow: Flow, count: int, length: int = 60) -> list[int]:
    """So many that have begun to answer, and nothing under way."""
    ids = [flow.submit(text(3, first), length)[0] for first in range(count)]
    while not all(flow.stories[identity].written for identity in ids):
        flow.step()
    flow.land_all()
    return ids


@pytest.mark.parametrize(
    ("depth", "count", "sizes"), [(1, 6, [6]), (2, 6, [3, 3]), (2, 5, [3, 2]), (3, 5, [2, 2, 1]), (4, 2, [1, 1])]
)
def test_decodes_are_shared_out(depth: int, count: int, sizes: list[int]) -> None:
    flow = Flow(LIMITS, depth=depth)
    ids = answering(flow, count)
    planned = []
    while (one := flow.launch()) is not None:
        planned.append(one)
    assert [one.decodes for one in planned] == sizes
    assert sorted(identity for one in planned for identity in parts(one)) == ids


def test_groups_take_turns_and_never_melt_into_one() -> None:
    flow = Flow(replace(LIMITS, block_count=200), depth=2)
    ids = answering(flow, 8)
    flow.launch()
    for _ in range(12):
        assert flow.launch().decodes == 4
        flow.land()
        before = {identity: len(flow.stories[identity].written) for identity in ids}
        assert max(before.values()) - min(before.values()) <= 2


def test_who_has_waited_longest_goes_first() -> None:
    flow = Flow(replace(LIMITS, block_count=200), depth=3)
    ids = answering(flow, 7)
    order = [identity for _ in range(14) for identity in parts(flow.step())]
    for start in range(0, len(order) - 7, 7):
        assert sorted(order[start : start + 7]) == ids


def test_a_prompt_goes_on_while_its_first_piece_is_under_way() -> None:
    flow = Flow(replace(LIMITS, step_tokens=10, mixed_step_tokens=10), depth=3)
    flow.submit(text(50), 3)
    pieces = [flow.launch().step.rows[0] for _ in range(3)]
    assert [(row.start, len(row.tokens)) for row in pieces] == [(0, 10), (10, 10), (20, 10)]
    assert flow.launch() is None
    flow.land()
    assert flow.launch().step.rows[0].start == 30
    flow.run()
    flow.assert_told()


def test_behind_its_last_piece_a_prompt_waits_for_its_token() -> None:
    flow = Flow(LIMITS, depth=3)
    flow.submit(text(6), 3)
    assert flow.launch().picks and flow.launch() is None
    flow.land()
    assert flow.launch().decodes == 1


def test_rows_that_are_read_come_once_though_pieces_overlap() -> None:
    flow = Flow(replace(LIMITS, step_tokens=7, mixed_step_tokens=7), depth=3)
    reading = flow.submit_text(text(40))
    flow.launch(), flow.launch(), flow.launch()
    flow.drop()
    flow.launch(), flow.launch()
    flow.land()
    flow.run()
    assert flow.read[reading] == text(40)


def test_pieces_are_such_that_no_stage_waits_long_for_a_single_prompt() -> None:
    limits = replace(LIMITS, step_tokens=200, mixed_step_tokens=10, block_count=100)
    alone, overlapped = Flow(limits, depth=1), Flow(limits, depth=2)
    for flow in (alone, overlapped):
        flow.submit(text(160), 1)
    assert alone.launch().step.token_count == 160
    assert [overlapped.launch().step.token_count for _ in range(2)] == [40, 30]
    short = Flow(limits, depth=2)
    short.submit(text(12), 1)
    assert short.launch().step.token_count == 10


def test_a_step_without_answers_is_small_while_answers_are_under_way() -> None:
    flow = Flow(LIMITS, depth=2)
    (early,) = answering(flow, 1)
    flow.submit(text(100, 5), 1)
    assert early in parts(flow.launch())
    alone = flow.launch()
    assert early not in parts(alone) and alone.step.token_count == LIMITS.mixed_step_tokens


def test_nobody_with_rows_under_way_gives_way() -> None:
    flow = Flow(replace(LIMITS, block_count=9, max_running=2), depth=2)
    (old,), (young,) = flow.submit(text(15), 17), flow.submit(text(16, 1), 16)
    flow.run()  # each time that a step is planned it is looked at
    assert flow.scheduler.counts().preemptions and sorted(flow.done) == [old, young]
    flow.assert_told()


def test_samples_of_two_prompts_under_way_do_not_take_the_same_seat() -> None:
    flow = Flow(replace(LIMITS, max_running=4, step_tokens=6, mixed_step_tokens=6), depth=2)
    for first in range(2):
        flow.submit(text(6, first), 4, samples=3)
    while flow.scheduler.busy or flow.flying:
        flow.step()
        assert flow.scheduler.counts().running <= 4
    flow.assert_told()
    assert all(story.complete for story in flow.stories.values())


# What comes too late


def test_what_a_step_chose_for_somebody_who_was_picked_anew_is_not_wanted() -> None:
    flow = Flow(LIMITS, depth=2)
    (identity,) = answering(flow, 1)
    first = flow.launch()
    flow.scheduler._people.preempt(flow.scheduler._people.states[identity])
    again = flow.launch()
    assert again.picks and flow.scheduler.live(first) == () and flow.scheduler.live(again) == again.picks
    before = len(flow.stories[identity].written)
    flow.land()
    assert len(flow.stories[identity].written) == before
    flow.run()
    flow.assert_told()


def test_what_a_step_chose_for_somebody_who_only_lost_its_blocks_counts() -> None:
    flow = Flow(LIMITS, depth=2)
    (identity,) = answering(flow, 1)
    first = flow.launch()
    flow.scheduler._people.preempt(flow.scheduler._people.states[identity])
    before = len(flow.stories[identity].written)
    assert flow.scheduler.live(first) == first.picks
    flow.land()
    assert len(flow.stories[identity].written) == before + 1
    flow.run()
    flow.assert_told()


@pytest.mark.parametrize("launches", [0, 1])
def test_samples_go_on_when_the_first_leaves_with_their_tokens_under_way(launches: int) -> None:
    flow = Flow(LIMITS, depth=3)
    ids = flow.submit(text(6), 5, samples=3)
    flow.launch()
    flow.scheduler.cancel(ids[0])
    for _ in range(launches):  # the next one reads the prompt anew, with the samples
        flow.launch()
    flow.check()
    flow.run()
    flow.assert_told()
    assert all(flow.stories[identity].complete for identity in ids[1:])


def test_a_context_shift_makes_what_is_under_way_void() -> None:
    flow = Flow(LIMITS, depth=2)
    (identity,) = answering(flow, 1)
    first = flow.launch()
    story = flow.stories[identity]
    story.length -= len(story.written)
    story.prompt, story.written = (*story.prompt[:1], *story.written), []
    flow.scheduler.rebase(identity, story.prompt)
    assert flow.scheduler.live(first) == ()
    flow.run()
    flow.assert_told()


def test_abandoning_a_step_abandons_those_behind_it() -> None:
    flow = Flow(replace(LIMITS, step_tokens=10), depth=3)
    flow.submit(text(25), 3)
    flow.launch(), flow.launch(), flow.launch()
    oldest = flow.flying[0][0]
    flow.drop()
    state = flow.scheduler._people.states[1]
    assert state.planned == state.computed == 0
    assert flow.scheduler.commit(oldest, {}, 0.0) == ()
    flow.run()
    flow.assert_told()


def test_a_step_in_the_middle_can_be_abandoned() -> None:
    flow = Flow(replace(LIMITS, step_tokens=10, mixed_step_tokens=10), depth=3)
    flow.submit(text(45), 3)
    flow.launch(), flow.launch(), flow.launch()
    flow.scheduler.abandon(flow.flying[1][0])
    assert flow.scheduler._people.states[1].planned == 10


def test_steps_end_in_their_order() -> None:
    flow = Flow(replace(LIMITS, step_tokens=10), depth=3)
    flow.submit(text(25), 3)
    flow.launch()
    second = flow.launch()
    with pytest.raises(AssertionError, match="in their order"):
        flow.scheduler.commit(second, {}, 0.0)


def test_what_a_step_costs_is_counted_from_the_end_of_the_one_before() -> None:
    flow = Flow(LIMITS, depth=2)
    answering(flow, 2)
    scheduler = flow.scheduler
    scheduler._planner.costs = type(scheduler._planner.costs)()
    scheduler._committed_at = 10.0
    one, two = scheduler.schedule(20.0, 2), scheduler.schedule(20.0, 2)
    scheduler.commit(one, {}, 23.0)
    scheduler.commit(two, {}, 24.0)
    assert scheduler._planner.costs.seconds == pytest.approx((3.0 * 0.95 + 1.0) / 1.95)
