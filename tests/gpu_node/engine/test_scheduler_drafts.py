"""Drafts take what is left, push nobody out and change nothing."""

from __future__ import annotations

from dataclasses import replace

from gpu_node.engine.scheduler import Limits
from gpu_node.engine.step_costs import StepCosts
from tests.gpu_node.engine.paged_model import LIMITS, Play, text


def test_drafts_save_steps_and_change_nothing() -> None:
    steps = []
    for max_drafts in (0, 8):
        play = Play(replace(LIMITS, max_drafts=max_drafts))
        (identity,) = play.submit([0, 1, 4, 6, 5, 2, 0, 1, 4, 6, 5, 2], 80)
        play.run()
        play.assert_told()
        assert play.stories[identity].complete
        steps.append(len(play.steps))
        counts = play.scheduler.counts()
        assert (counts.drafts > counts.accepted_drafts > 0) == bool(max_drafts)
    assert steps[1] < steps[0]


def test_drafts_take_only_what_is_left() -> None:
    play = Play(replace(LIMITS, max_drafts=8, mixed_step_tokens=5))
    play.submit([1, 2] * 5, 20)
    play.step()
    play.submit(text(50, 3), 1)
    planned = play.step()
    assert planned.step.token_count == 5 and not planned.picks[0].drafts


def test_drafts_push_nobody_out() -> None:
    limits = Limits(block_tokens=2, block_count=14, max_running=2, max_drafts=8)
    play = Play(limits)
    for first in (1, 2):
        play.submit([first, 0] * 5, 4)
    play.run()
    assert play.scheduler.counts().preemptions == 0
    play.assert_told()


def test_drafts_can_be_switched_off_and_on() -> None:
    play = Play(replace(LIMITS, max_drafts=8))
    (identity,) = play.submit([0, 1, 4, 6, 5, 2, 0, 1, 4, 6, 5, 2], 80, speculate=False)
    for _ in range(20):
        assert not play.step().picks[0].drafts
    play.scheduler.speculate(identity, True)
    while not (planned := play.step()).picks[0].drafts:
        pass
    (pick,), (row,) = planned.picks, planned.step.rows
    assert row.output_tokens == 1 + len(pick.drafts) and row.tokens[1:] == pick.drafts


def test_a_crowd_writes_without_drafts() -> None:
    """Each token more costs a share of the step that everybody waits for."""
    loop = [0, 1, 4, 6, 5, 2, 0, 1, 4, 6, 5, 2]
    drafts = []
    for crowd in (1, 12):
        wide = Limits(4, 400, max_running=16, step_tokens=400, mixed_step_tokens=400, max_drafts=8)
        play = Play(wide)
        for first in range(crowd):
            play.submit([*loop, first % 7, *loop], 60)
        play.run()
        full = [planned for planned in play.steps if planned.decodes == crowd]
        assert len(full) > 10
        drafts.append(sum(len(pick.drafts) for planned in full for pick in planned.picks))
    assert drafts[0] > 0 == drafts[1]


def test_only_steps_without_prompts_tell_what_a_draft_costs() -> None:
    play = Play(LIMITS)
    play.submit(text(5), 9)
    play.step()
    assert play.scheduler._planner.costs == StepCosts()
    play.step()
    assert play.scheduler._planner.costs == StepCosts().after(1, 0.5)
    play.submit(text(5, 1), 9)
    before = play.scheduler._planner.costs
    play.step()
    assert play.scheduler._planner.costs == before


def test_drafts_stay_within_the_context() -> None:
    play = Play(replace(LIMITS, max_drafts=8))
    play.submit([1, 2] * 5, 4)
    while play.scheduler.busy:
        for row in play.step().step.rows:
            assert row.start + len(row.tokens) <= 14
