"""How many steps are under way: the choice, and a measuring that is bounded and honest."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import pytest

from gpu_node.engine.step import CacheShape, Pick, Step, StepResult
from gpu_node.pipeline.depth import Trial, choose, measure, measure_seconds, supposed, trials

CACHE = CacheShape(4, 100, 64)


def speeds(*by_depth: float, rows: int = 8) -> dict[Trial, float]:
    return {Trial(rows, depth): speed for depth, speed in enumerate(by_depth, 1)}


@pytest.mark.parametrize(
    ("measured", "depth"),
    [
        ({}, 1),
        (speeds(100, 104), 1),
        (speeds(100, 106), 2),
        (speeds(100, 190, 195), 2),
        (speeds(100, 90, 180), 3),
        (speeds(100, 90, 80), 1),
        (speeds(100, 120) | speeds(400, 300, rows=32), 1),
        (speeds(100, 99) | speeds(100, 190, rows=32), 2),
        (speeds(100, 190) | {Trial(32, 1): 400.0}, 2),
    ],
)
def test_a_larger_depth_must_be_worth_it(measured: dict[Trial, float], depth: int) -> None:
    found, told = choose(measured)
    assert found == depth
    assert told == {trial.depth: speed for trial, speed in measured.items() if trial.rows == 8}


def test_what_is_tried_fits_the_cache() -> None:
    assert [(trial.rows, trial.depth) for trial in trials(2, CACHE)] == [
        (8, 1),
        (8, 2),
        (8, 3),
        (32, 1),
        (32, 2),
        (32, 3),
    ]
    assert {trial.rows for trial in trials(2, CacheShape(4, 20, 64))} == {8}
    assert trials(3, CacheShape(4, 2, 64)) == (Trial(2, 1), Trial(2, 2))


class Pipe:
    """Stages that each take a fixed time a step and a time a row, by a clock that only they turn on."""

    def __init__(self, stages: int, step_seconds: float, row_seconds: float) -> None:
        self.now, self.most, self.count = 0.0, 0, 0
        self._free = [0.0] * stages
        self._costs = step_seconds, row_seconds
        self._flying: deque[tuple[float, Step]] = deque()

    def begin(self, step: Step) -> None:
        assert (
            len({row.blocks[0] for _, other in self._flying for row in other.rows} & {r.blocks[0] for r in step.rows})
            == 0
        )
        fixed, each = self._costs
        at = self.now
        for number, free in enumerate(self._free):
            at = max(at, free) + fixed + each * len(step.rows)
            self._free[number] = at
        self._flying.append((at, step))
        self.most, self.count = max(self.most, len(self._flying)), self.count + 1

    def finish(self, picks: Sequence[Pick]) -> StepResult:
        at, step = self._flying.popleft()
        assert len(picks) == len(step.rows)
        self.now = max(self.now, at)
        return StepResult(())


@pytest.mark.parametrize(
    ("stages", "step_seconds", "row_seconds", "depth"),
    [
        (2, 0.0, 1e-4, 2),  # smaller groups cost nothing
        (4, 0.0, 1e-4, 4),
        (2, 1e-3, 0.0, 1),  # a small group takes as long as a large one
        (2, 1e-2, 1e-7, 1),
    ],
)
def test_it_finds_what_pays(stages: int, step_seconds: float, row_seconds: float, depth: int) -> None:
    pipe = Pipe(stages, step_seconds, row_seconds)
    measured = measure(pipe, CACHE, stages, lambda: pipe.now)
    assert pipe.most == max(trial.depth for trial in measured) == stages + 1
    assert not pipe._flying and pipe.now < 1.2
    assert choose(measured)[0] == depth


def test_slow_steps_are_not_tried() -> None:
    pipe = Pipe(2, 0.5, 0.0)
    assert measure(pipe, CACHE, 2, lambda: pipe.now) == {}
    assert pipe.count == 2


@pytest.mark.parametrize(
    ("stages", "step_seconds", "row_seconds", "depth"),
    [
        (2, 0.0, 2e-2, 2),  # 0.32 s a step of eight: too slow to be repeated
        (3, 0.0, 2e-2, 3),
        (2, 0.2, 1e-3, 1),  # weights are all that is read: smaller groups gain nothing
    ],
)
def test_slow_steps_are_tried_once_each(stages: int, step_seconds: float, row_seconds: float, depth: int) -> None:
    pipe = Pipe(stages, step_seconds, row_seconds)
    seconds = 2.5
    measured = measure(pipe, CACHE, stages, lambda: pipe.now, seconds)
    assert pipe.now < seconds and not pipe._flying
    assert {trial.depth for trial in measured} >= {1, stages} and {trial.rows for trial in measured} == {8}
    assert choose(measured)[0] == depth


def test_a_burst_foresees_what_many_steps_measure() -> None:
    """The same pipeline, with time for everything and with time for one burst a depth."""
    pipe = Pipe(2, 1e-3, 5e-3)
    long = measure(pipe, CACHE, 2, lambda: pipe.now, 1000.0)
    short = measure(pipe, CACHE, 2, lambda: pipe.now, 0.7)
    assert {trial.depth for trial in short} == {1, 2, 3}
    for trial, speed in short.items():
        assert speed == pytest.approx(long[trial], rel=0.12)


@pytest.mark.parametrize(
    ("seconds", "depth"),
    [
        ((0.5, 0.5), 2),
        ((0.5, 0.51), 2),
        ((0.5, 0.25), 1),  # the slow one would be waited for
        ((0.2, 0.2, 0.2, 0.2), 4),
        ((0.4, 0.3, 0.3), 2),
        ((0.5, None), 1),
        ((0.0, 0.0), 1),
        ((), 1),
    ],
)
def test_without_a_measurement_the_times_of_the_stages_decide(seconds: tuple[float | None, ...], depth: int) -> None:
    assert supposed(seconds) == depth
    assert choose({}, seconds) == (depth, {})
    assert choose(speeds(100, 104), seconds)[0] == 1, "measured is measured"


@pytest.mark.parametrize(("loading", "measuring"), [(0.5, 1.0), (10.0, 1.0), (45.0, 4.5), (3600.0, 10.0)])
def test_what_takes_long_to_load_is_measured_for_longer(loading: float, measuring: float) -> None:
    assert measure_seconds(loading) == pytest.approx(measuring)
