"""What follows from a sequence's numbers."""

from __future__ import annotations

import pytest

from gpu_node.engine.block_chain import BlockChain
from gpu_node.engine.planned import Submission
from gpu_node.engine.sequence_state import ENOUGH_PREEMPTIONS, RunningSet, SequenceState
from gpu_node.engine.step import BlockCopy


def state(identity: int = 1, tokens: int = 9, **options) -> SequenceState:
    submission = Submission(tuple(range(tokens)), 20, **options)
    return SequenceState(identity, submission, list(range(tokens)), 20, BlockChain("", 4), True)


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2)])
def test_one_token_at_least_is_not_taken_from_the_cache(tokens: int, blocks: int) -> None:
    assert state(tokens=tokens).shareable_blocks() == blocks


def test_logits_that_nobody_has_seen_are_not_left_out() -> None:
    one = state(tokens=20, output="logits")
    assert one.shareable_blocks() == 0
    one.told = 11
    assert one.shareable_blocks() == 2
    assert state(tokens=20, output="logits", last_only=True).shareable_blocks() == 4


def test_what_is_under_way_is_not_to_be_planned_again() -> None:
    one = state(tokens=9)
    one.computed = 4
    assert one.pending == 5
    one.planned = 3
    assert one.pending == 2
    one.tokens.append(1)
    assert one.pending == 3


def test_without_blocks_nothing_is_computed() -> None:
    one = state()
    one.blocks, one.computed, one.published, one.planned, one.answering = [1, 2], 8, 2, 1, True
    one.copy = BlockCopy(1, 2)
    one.forget_blocks()
    assert (one.blocks, one.computed, one.published, one.planned) == ([], 0, 0, 0)
    assert one.copy is None and not one.answering and one.tokens == list(range(9))


def test_the_running_stand_by_seniority() -> None:
    running = RunningSet()
    often = state(5)
    often.preempted = ENOUGH_PREEMPTIONS
    for one in (state(3), state(1, priority=-1), state(4, priority=2), often, state(2)):
        running.add(one)
    assert [one.id for one in running] == [5, 4, 2, 3, 1] and len(running) == 5
    running.remove(often)
    assert not often.running and [one.id for one in running] == [4, 2, 3, 1]
