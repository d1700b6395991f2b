"""Parts put together against the slow reference over one pool."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.engine.attention import AttentionTerms, ReferenceAttention
from gpu_node.engine.kv_pool import LayerShape
from gpu_node.memory.partial_attention import Partial, merged, spread
from tests.gpu_node.memory.scattered import batch_over, filled, form_of, held_of, tables_of

BLOCKS = 60
MIXED = [(7, 1), (0, 13), (30, 1), (5, 3), (0, 1), (31, 11), (8, 3), (40, 1)]


def whole_and_parts(
    sizes: list[tuple[int, int]], shape: LayerShape, heads: int, terms: AttentionTerms, owner: numpy.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the reference gives, and what the places give together; every place holds its blocks as several ranges."""
    form = form_of(shape)
    pool = filled(form, BLOCKS)
    batch = batch_over(sizes, BLOCKS)
    tokens = len(batch.tokens)
    query = torch.randn(tokens, heads, shape.key_dim)
    key, value = (
        torch.randn(tokens, shape.kv_heads, shape.key_dim),
        torch.randn(tokens, shape.kv_heads, shape.value_dim),
    )
    parts = []
    for place, (scene, mine) in tables_of(batch).places(owner).items():
        ranges = [(int(first), int(first) + 1) for first in numpy.flatnonzero(owner == place)]
        if place == 0:
            ranges = [(0, BLOCKS)]
        held = held_of(form, pool, ranges)
        staged = held.stage(scene)
        written = torch.from_numpy(mine[scene.write_tokens])
        held.write(staged, 1, key[written], value[written])
        part = held.attend(staged, 1, query[torch.from_numpy(mine)], terms)
        parts.append(spread(part, torch.from_numpy(mine), tokens))
    pool.clear(batch.fresh)
    pool.write(1, batch.slots, key, value)
    expected = ReferenceAttention().attend(query, 1, batch, pool, terms)
    return expected, merged(parts, terms.sinks).output


@pytest.mark.parametrize("window", [None, 1, 5, 1000])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("places", [1, 2, 3])
def test_the_parts_are_the_whole(window: int | None, soft_cap: float | None, sinks: bool, places: int) -> None:
    torch.manual_seed(1)
    heads = 6
    terms = AttentionTerms(0.3, window, soft_cap, torch.randn(heads) * 2 if sinks else None)
    owner = numpy.random.default_rng(3).integers(0, places, BLOCKS)
    expected, found = whole_and_parts(MIXED, LayerShape(2, 8, 12, window), heads, terms, owner)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12)), min_size=1, max_size=6),
    grouping=st.sampled_from([(1, 1), (1, 4), (2, 2), (3, 9)]),
    window=st.none() | st.integers(1, 20),
    soft_cap=st.none() | st.floats(0.5, 30),
    sinks=st.booleans(),
    places=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_the_parts_are_the_whole_for_any_rows(
    sizes: list[tuple[int, int]],
    grouping: tuple[int, int],
    window: int | None,
    soft_cap: float | None,
    sinks: bool,
    places: int,
    seed: int,
) -> None:
    kv_heads, heads = grouping
    terms = AttentionTerms(0.5, window, soft_cap, torch.randn(heads) if sinks else None)
    owner = numpy.random.default_rng(seed).integers(0, places, BLOCKS)
    expected, found = whole_and_parts(sizes, LayerShape(kv_heads, 8, 8, window), heads, terms, owner)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_part_that_saw_nothing_changes_nothing() -> None:
    part = Partial(torch.randn(3, 2, 4), torch.randn(3, 2))
    nothing = Partial.nothing(3, 2, 4)
    for parts in ([part, nothing], [nothing, part], [nothing, part, nothing]):
        found = merged(parts)
        torch.testing.assert_close(found.output, part.output)
        torch.testing.assert_close(found.lse, part.lse)
    both = merged([nothing, nothing])
    assert torch.equal(both.output, nothing.output) and torch.equal(both.lse, nothing.lse)


def test_sinks_take_their_weight_once() -> None:
    """One slot of score 0 and a sink of score 0 share the weight, whether the slot is in the first part or the last."""
    seen, nothing = Partial(torch.ones(1, 1, 1), torch.zeros(1, 1)), Partial.nothing(1, 1, 1)
    for parts in ([seen], [seen, nothing], [nothing, nothing, seen]):
        assert merged(parts, torch.zeros(1)).output.item() == pytest.approx(0.5)


def test_large_scores_overflow_nowhere() -> None:
    small, large = (
        Partial(torch.zeros(1, 1, 1), torch.full((1, 1), -900.0)),
        Partial(torch.ones(1, 1, 1), torch.full((1, 1), 900.0)),
    )
    assert merged([small, large]).output.item() == 1.0
    assert merged([small, large]).lse.item() == 900.0
