from __future__ import annotations

from collections.abc import Sequence

import pytest

from gpu_node.engine.isolation import compute
from gpu_node.engine.sequence import SamplingOptions
from gpu_node.engine.step import BlockCopy, Choice, Pick, Row, Step, StepResult
from gpu_node.errors import DeviceOutOfMemory

ROWS = tuple(Row(number, (number,), 0, (number * 10, number * 10 + 1), "logits", 1) for number in range(4))
OPTIONS = SamplingOptions()


class Picky:
    """Fails as a whole for rows of some sequences; chooses the row's sequence number."""

    def __init__(self, bad: set[int], error: Exception | None = None) -> None:
        self.bad, self.error = bad, error or RuntimeError("bad row")
        self.steps: list[Step] = []

    def run(self, step: Step, picks: Sequence[Pick]) -> StepResult:
        self.steps.append(step)
        if any(row.sequence in self.bad for row in step.rows):
            raise self.error
        choices = tuple(Choice((step.rows[pick.row].sequence,)) for pick in picks)
        return StepResult(choices, {0: step.rows[0].sequence * 100} if not picks else {})


def pick(row: int) -> Pick:
    return Pick(row, OPTIONS, key=row, written=0, history=(row,))


def test_a_good_step_is_computed_once() -> None:
    runner = Picky(set())
    computed = compute(runner, Step(ROWS), [pick(row) for row in range(4)])
    assert [choice.tokens for choice in computed.choices] == [(0,), (1,), (2,), (3,)]
    assert len(runner.steps) == 1 and not computed.errors


def test_rows_are_computed_alone_and_answers_come_back_in_their_places() -> None:
    runner = Picky({2})
    computed = compute(runner, Step(ROWS), [pick(3), pick(0), pick(0), pick(2)])
    assert [choice.tokens for choice in computed.choices[:3]] == [(3,), (0,), (0,)]
    assert computed.choices[3].error
    assert list(computed.errors) == [2] and "bad row" in computed.errors[2]
    assert computed.arrays == {1: 100}


def test_copies_go_with_the_row_that_writes_to_them_and_with_no_other() -> None:
    runner = Picky({0})
    compute(runner, Step(ROWS, (BlockCopy(1, 11), BlockCopy(1, 31))), [pick(1)])
    assert [step.copies for step in runner.steps[1:]] == [(), (BlockCopy(1, 11),), (), (BlockCopy(1, 31),)]


def test_a_single_row_is_not_tried_again() -> None:
    runner = Picky({0})
    computed = compute(runner, Step(ROWS[:1]), [pick(0)])
    assert len(runner.steps) == 1 and computed.choices[0].error and 0 in computed.errors


def test_running_out_of_memory_is_a_matter_of_the_whole_step() -> None:
    with pytest.raises(DeviceOutOfMemory):
        compute(Picky({0}, DeviceOutOfMemory("full")), Step(ROWS), [])
