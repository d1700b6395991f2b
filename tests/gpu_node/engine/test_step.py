from __future__ import annotations

import pytest

from gpu_node.engine.step import CacheShape, ModelRunner, Row, Step, StepByStep, StepResult
from tests.fakes.scripted_runner import ScriptedRunner


class Counting(StepByStep):
    def __init__(self) -> None:
        super().__init__()
        self.ran: list[Step] = []

    def run(self, step, picks):
        self.ran.append(step)
        if not step.rows:
            raise ValueError("nothing to do")
        return StepResult(())


STEPS = [Step((Row(number, (1,), 0, (0,)),)) for number in range(3)]


def test_a_step_is_computed_where_it_ends_and_in_its_order() -> None:
    runner = Counting()
    for step in STEPS:
        runner.begin(step)
    assert not runner.ran
    for _ in STEPS:
        runner.finish(())
    assert runner.ran == STEPS


def test_a_step_that_failed_is_not_under_way_any_more() -> None:
    runner = Counting()
    runner.begin(Step(()))
    runner.begin(STEPS[0])
    with pytest.raises(ValueError):
        runner.finish(())
    runner.finish(())
    assert runner.ran[1:] == STEPS[:1]


def test_what_is_dropped_is_not_computed() -> None:
    runner = Counting()
    runner.begin(STEPS[0])
    runner.drop()
    runner.begin(STEPS[1])
    runner.finish(())
    assert runner.ran == STEPS[1:2]


def test_nothing_of_a_plain_runner_ever_changes() -> None:
    runner: ModelRunner = ScriptedRunner()
    runner.listen(lambda: None)
    assert (runner.depth, runner.restless, runner.lends, runner.pipeline) == (1, False, False, None)
    assert runner.tend(5) is None


def test_contexts_count_on_promised_blocks_only() -> None:
    assert CacheShape(4, 10, 100).promised_count == 10
    assert CacheShape(4, 10, 100, promised=6).promised_count == 6
