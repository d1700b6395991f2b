"""From shares to rows, picks and reads."""

from __future__ import annotations

import pytest

from gpu_node.engine.block_chain import BlockChain
from gpu_node.engine.planned import PlannedPick, PlannedRead, Submission
from gpu_node.engine.sequence_state import SequenceState
from gpu_node.engine.speculation import Proposal
from gpu_node.engine.step import BlockCopy, Row
from gpu_node.engine.step_builder import StepBuilder


def state(identity: int, tokens: int, computed: int = 0, **options) -> SequenceState:
    ids = list(range(10, 10 + tokens))
    one = SequenceState(identity, Submission(tuple(ids), 100, **options), ids, 100, BlockChain("", 4), True)
    one.computed, one.blocks = computed, list(range(100 * identity, 100 * identity + 9))
    return one


def test_a_decode_a_piece_and_a_last_piece() -> None:
    step = StepBuilder(1, 20, 4)
    step.add(state(1, 9, 8), 1, decode=True)
    step.add(state(2, 30, 4), 5)
    step.add(state(3, 6), 6)
    planned = step.build(2.5)
    assert planned.step.rows == (
        Row(1, (18,), 8, (100, 101, 102), "logits", 1),
        Row(2, (14, 15, 16, 17, 18), 4, (200, 201, 202)),
        Row(3, (10, 11, 12, 13, 14, 15), 0, (300, 301), "logits", 1),
    )
    assert planned.picks == (PlannedPick(0, 1), PlannedPick(2, 3)) and planned.reads == ()
    assert (planned.decodes, planned.prompt_tokens, planned.planned_at, step.left) == (1, 11, 2.5, 8)


def test_drafts_follow_the_certain_token() -> None:
    step = StepBuilder(1, 4, 4)
    one = state(1, 9, 8)
    step.draft(step.add(one, 1, decode=True), Proposal((7, 8, 9), 0), 0.1)
    planned = step.build(0.0)
    assert planned.step.rows == (Row(1, (18, 7, 8, 9), 8, (100, 101, 102), "logits", 4),)
    assert planned.picks == (PlannedPick(0, 1, (7, 8, 9)),) and one.planned == 1 and step.left == 0


def test_samples_that_fork_name_the_same_row() -> None:
    step = StepBuilder(1, 9, 4)
    parent = state(1, 5)
    parent.samples = [state(2, 5), state(3, 5)]
    step.add(parent, 5).forks = 1
    assert step.build(0.0).picks == (PlannedPick(0, 1), PlannedPick(0, 2))


def test_a_piece_grows() -> None:
    step = StepBuilder(1, 9, 4)
    one = state(1, 8)
    share = step.add(one, 3)
    assert not share.last
    step.extend(share, 5)
    assert share.last and one.planned == 8 and step.left == 1
    assert len(step.build(0.0).step.rows[0].tokens) == 8


def test_copies_are_ordered_for_rows_only() -> None:
    step = StepBuilder(1, 9, 4)
    one, other = state(1, 5, 4), state(2, 5, 4)
    one.copy, other.copy = BlockCopy(3, 4), BlockCopy(5, 6)
    step.add(one, 1, decode=True)
    assert step.build(0.0).step.copies == (BlockCopy(3, 4),)


def test_reads_get_what_they_have_not_seen() -> None:
    step = StepBuilder(1, 20, 4)
    middle, again, last = state(1, 9, output="hidden"), state(2, 9, output="logits"), state(3, 5, output="logits")
    again.told = 3
    last.submission = Submission(tuple(last.tokens), 100, output="logits", last_only=True)
    step.add(middle, 4)
    step.add(again, 9)
    step.add(last, 5)
    planned = step.build(0.0)
    assert [(row.output, row.output_tokens) for row in planned.step.rows] == [
        ("hidden", 4),
        ("logits", 6),
        ("logits", 1),
    ]
    assert planned.reads == (PlannedRead(0, 1, False), PlannedRead(1, 2, True), PlannedRead(2, 3, True))
    assert planned.picks == ()


def test_a_piece_without_output_is_not_read() -> None:
    step = StepBuilder(1, 20, 4)
    told, last = state(1, 9, output="logits"), state(2, 9, output="logits", last_only=True)
    told.told = 8
    step.add(told, 4)
    step.add(last, 5)
    planned = step.build(0.0)
    assert [row.output for row in planned.step.rows] == ["nothing", "nothing"]
    assert planned.reads == ()


def test_the_budget_is_kept_and_a_sequence_has_one_share() -> None:
    step = StepBuilder(1, 4, 4)
    one = state(1, 9)
    step.add(one, 3)
    with pytest.raises(AssertionError):
        step.add(one, 1)
    with pytest.raises(AssertionError):
        step.add(state(2, 9), 2)
    with pytest.raises(AssertionError):
        step.extend(step.shares[0], 2)
