"""Many rows at once on a device and one row in main memory come to the same token."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.engine.candidates import CHUNK, FIRST_LOOK, drawn, likeliest, ranked
from gpu_node.engine.draws import Draw, NoToken
from gpu_node.engine.host_draw import draw_on_host, leading

# Numbers that are no round share of equal chances: exactly between two tokens the last bit of a sum decides, and the
# device and the host need not add in one order.
UNIFORM = st.integers(0, 2**32).map(lambda number: number * 0.6180339887498949 % 1.0)

DRAWS = st.builds(
    Draw,
    uniform=UNIFORM,
    temperature=st.sampled_from([0.2, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 200, 100_000]),
    top_p=st.sampled_from([0.0, 0.4711, 0.9173, 1.0]),
    min_p=st.sampled_from([0.0, 0.0613, 1.0]),
    typical_p=st.sampled_from([0.0, 0.5417, 1.0, 1.0]),
)


def rows_of(seed: int, count: int, width: int, spread: float, grid: int) -> torch.Tensor:
    """Logits that repeat, as those of 16 bits do, with some that are shut out."""
    random = np.random.default_rng(seed)
    rows = np.round(random.normal(0, spread, (count, width)) * grid) / grid + 0.0
    rows[random.random(rows.shape) < 0.05] = -np.inf
    rows[:, width // 2] = 0.5
    return torch.from_numpy(rows.astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    draws=st.lists(DRAWS, min_size=1, max_size=4),
    width=st.sampled_from([1, 2, 40, 150]),
    spread=st.sampled_from([0.1, 1.0, 4.0]),
    grid=st.sampled_from([2, 16, 1 << 20]),
)
def test_rows_on_a_device_come_to_the_same_tokens(
    seed: int, draws: list[Draw], width: int, spread: float, grid: int
) -> None:
    rows = rows_of(seed, len(draws), width * CHUNK, spread, grid)
    tokens = drawn(rows, draws).tolist()
    whole = drawn(rows, draws, everything=True).tolist()
    for row, draw, quick, slow in zip(rows.numpy(), draws, tokens, whole, strict=True):
        assert draw_on_host(row, draw, CHUNK, FIRST_LOOK) == slow
        assert quick in (slow, NoToken.UNDECIDED)
        assert draw_on_host(row, draw, CHUNK, row.size) == slow


def test_few_draws_are_left_undecided() -> None:
    """Logits as a model has them: nearly everything lies within the first look."""
    rows = rows_of(3, 64, 150 * CHUNK, 4.0, 1 << 20)
    draws = [Draw(number / 64, 0.8, 0, 0.95, 0.0, 1.0) for number in range(64)]
    assert drawn(rows, draws).tolist().count(NoToken.UNDECIDED) < 4


@pytest.mark.parametrize("count", [1, 7, 40, 139, 150 * CHUNK])
@pytest.mark.parametrize("grid", [1, 1 << 20])
def test_the_likeliest_come_in_order_and_equals_by_token(count: int, grid: int) -> None:
    rows = rows_of(5, 3, 150 * CHUNK, 2.0, grid)
    values, tokens, peaks = ranked(rows, count)
    for row, logits, found, peak in zip(rows.tolist(), values, tokens, peaks, strict=True):
        right = sorted(range(len(row)), key=lambda token: (-row[token], token))[:count]
        assert found.tolist() == right
        assert logits.tolist() == [row[token] for token in right]
        assert peak == max(row)
        on_host = leading(np.array(row, dtype=np.float32), count, CHUNK)
        assert on_host[1].tolist() == right
        assert on_host[0].tolist() == logits.tolist()


@pytest.mark.parametrize(("bad", "reason"), [(np.nan, NoToken.NOT_FINITE), (np.inf, NoToken.NOT_FINITE)])
def test_rows_that_are_not_finite_say_so(bad: float, reason: NoToken) -> None:
    rows = rows_of(1, 2, 40 * CHUNK, 1.0, 4)
    rows[0, 77] = bad
    draw = Draw(0.5, 1.0, 40, 0.9, 0.0, 1.0)
    for changes in ({}, {"top_k": 0}, {"typical_p": 0.5}):
        one = dataclasses.replace(draw, **changes)
        first, second = drawn(rows, [one, one]).tolist()
        assert first == reason == draw_on_host(rows[0].numpy(), one, CHUNK, FIRST_LOOK)
        assert second == draw_on_host(rows[1].numpy(), one, CHUNK, FIRST_LOOK) or second == NoToken.UNDECIDED
    assert likeliest(rows).tolist()[0] == reason
    rows[:] = -np.inf
    assert drawn(rows, [draw, draw]).tolist() == likeliest(rows).tolist() == [NoToken.NOTHING_ALLOWED] * 2
    assert draw_on_host(rows[0].numpy(), draw, CHUNK, FIRST_LOOK) == NoToken.NOTHING_ALLOWED


def test_a_uniform_number_next_to_one_takes_the_last_that_is_kept() -> None:
    row = torch.full((1, 4 * CHUNK), -torch.inf)
    row[0, :10] = 0.0
    draw = Draw(1 - 2**-53, 1.0, 0, 1.0, 0.0, 1.0)
    assert drawn(row, [draw], everything=True).tolist() == [9] == [draw_on_host(row[0].numpy(), draw, CHUNK, 4)]
