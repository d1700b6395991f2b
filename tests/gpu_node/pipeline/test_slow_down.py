"""A device of half the speed takes twice as long."""

from __future__ import annotations

import pytest

from gpu_node.pipeline.slow_down import Pace, rest_seconds


@pytest.mark.parametrize(("speed", "rest"), [(1.0, 0.0), (0.5, 2.0), (0.25, 6.0)])
def test_rest_is_what_the_speed_lacks(speed: float, rest: float) -> None:
    assert rest_seconds(speed, 2.0) == rest


@pytest.mark.parametrize("speed", [0.0, -1.0, 1.5])
def test_what_is_no_speed_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed"):
        Pace(speed, lambda _: None)


def test_work_and_rest_together_are_counted() -> None:
    now, waited = [100.0], []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        now[0] += seconds

    pace = Pace(0.5, wait, lambda: now[0])
    for worked in (3.0, 1.0):
        pace.begin()
        now[0] += worked
        assert pace.end() == 2 * worked
    assert waited == [3.0, 1.0]


def test_full_speed_waits_for_nothing() -> None:
    now = [0.0]

    def wait(seconds: float) -> None:
        raise AssertionError(f"it rests for {seconds} s")

    pace = Pace(1.0, wait, lambda: now[0])
    pace.begin()
    now[0] = 5.0
    assert pace.end() == 5.0


def test_a_rest_that_is_cut_short_is_counted_as_it_was() -> None:
    now = [0.0]
    pace = Pace(0.001, lambda _: None, lambda: now[0])
    pace.begin()
    now[0] = 1.0
    assert pace.end() == 1.0
