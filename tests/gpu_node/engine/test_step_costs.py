"""The measured cost of one token more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_node.engine.step_costs import GUESS, LARGEST, StepCosts


def measured(sizes: list[int], base: float, each: float) -> StepCosts:
    costs = StepCosts()
    for size in sizes:
        costs = costs.after(size, base + each * size)
    return costs


@pytest.mark.parametrize("unit", [1e-4, 1.0])
@pytest.mark.parametrize("each", [0.0, 0.01, 0.3, 1.0])
def test_the_slope_is_found_whatever_the_unit(each: float, unit: float) -> None:
    costs = measured([1, 8, 4, 16, 2, 12, 6, 1, 9] * 6, unit, each * unit)
    assert costs.share(1) == pytest.approx(each / (1 + each), abs=0.02)
    assert costs.share(8) == pytest.approx(each / (1 + 8 * each), abs=0.02)


def test_before_anything_is_seen_a_guess_serves() -> None:
    assert StepCosts().share(1) == GUESS
    assert measured([4] * 50, 1.0, 0.0).share(4) == pytest.approx(GUESS)


def test_old_steps_are_forgotten() -> None:
    costs = measured([1, 8] * 50, 1.0, 0.0)
    for size in [1, 8] * 100:
        costs = costs.after(size, 1.0 + 0.5 * size)
    assert costs.share(1) == pytest.approx(1 / 3, abs=0.03)


def test_steps_that_read_prompts_and_nonsense_are_left_out() -> None:
    costs = measured([1, 8], 1.0, 0.1)
    assert costs.after(LARGEST + 1, 100.0) is costs
    assert costs.after(4, 0.0) is costs and costs.after(0, 1.0) is costs


def test_a_pause_of_the_machine_moves_little() -> None:
    costs = measured([1, 8] * 30, 1.0, 0.05)
    assert costs.after(8, 1_000.0).share(4) < 3 * costs.share(4)


@given(st.lists(st.tuples(st.integers(-1, 80), st.floats(0, 10)), max_size=40), st.integers(1, 64))
def test_a_share_is_always_a_share(steps: list[tuple[int, float]], tokens: int) -> None:
    costs = StepCosts()
    for size, seconds in steps:
        costs = costs.after(size, seconds)
    assert 0.0 <= costs.share(tokens) <= 1.0
