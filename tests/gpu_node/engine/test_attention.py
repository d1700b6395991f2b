"""The path that runs against the reference, over random shapes; and the reference against plain attention."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from gpu_node.engine.attention import (
    FEW_TOKENS,
    GROUP_ELEMENTS,
    AttentionTerms,
    PagedAttention,
    ReferenceAttention,
    alike,
    groups_of,
)
from gpu_node.engine.batch import Batch, batch_of
from gpu_node.engine.kv_pool import KvPool, LayerShape
from gpu_node.engine.step import Row

BLOCK_COUNT = 800


def scattered_rows(sizes: Sequence[tuple[int, int]], block_tokens: int, seed: int) -> list[Row]:
    """One row for each (past, new), over blocks in no order."""
    free = list(range(BLOCK_COUNT))
    random.Random(seed).shuffle(free)
    rows = []
    for sequence, (past, new) in enumerate(sizes):
        needed = -(-(past + new) // block_tokens)
        rows.append(Row(sequence, list(range(new)), past, [free.pop() for _ in range(needed)]))
    return rows


def filled_pool(shapes: Sequence[LayerShape], block_tokens: int, dtype: torch.dtype = torch.float32) -> KvPool:
    pool = KvPool(shapes, block_tokens, BLOCK_COUNT, dtype)
    pool.storage.copy_(torch.randn(pool.storage.shape))
    return pool


def made(
    sizes: Sequence[tuple[int, int]], shape: LayerShape, heads: int, block_tokens: int = 4, seed: int = 0
) -> tuple[torch.Tensor, Batch, KvPool]:
    torch.manual_seed(seed)
    pool = filled_pool([shape, shape], block_tokens)
    batch = batch_of(scattered_rows(sizes, block_tokens, seed), block_tokens)
    return torch.randn(len(batch.tokens), heads, shape.key_dim), batch, pool


MIXED = [(7, 1), (0, 13), (30, 1), (5, 3), (0, 1), (31, 11), (8, 3), (100, 1)]


@pytest.mark.parametrize("sizes", [MIXED, [(50, 1)], [(3, 1), (3, 1)], [(0, 40)], [(17, 20)], [(2, FEW_TOKENS)]])
@pytest.mark.parametrize("window", [None, 1, 5, 1000])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("sinks", [False, True])
def test_both_ways_agree(sizes: list[tuple[int, int]], window: int | None, soft_cap: float | None, sinks: bool) -> None:
    query, batch, pool = made(sizes, LayerShape(2, 16, 16), heads=6)
    terms = AttentionTerms(0.3, window, soft_cap, torch.randn(6) if sinks else None)
    expected = ReferenceAttention().attend(query, 1, batch, pool, terms)
    found = PagedAttention().attend(query, 1, batch, pool, terms)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_both_ways_agree_on_random_shapes(seed: int) -> None:
    choose = random.Random(seed)
    sizes = [(choose.randrange(60), choose.choice([1, 1, 2, 5, 9, 23])) for _ in range(choose.randint(1, 9))]
    kv_heads, shared = choose.randint(1, 3), choose.randint(1, 4)
    shape = LayerShape(kv_heads, choose.choice([8, 12, 16]), choose.choice([8, 16]))
    query, batch, pool = made(sizes, shape, kv_heads * shared, choose.choice([1, 4, 16]), seed)
    terms = AttentionTerms(0.25, choose.choice([None, 3, 16]))
    expected = ReferenceAttention().attend(query, 0, batch, pool, terms)
    found = PagedAttention(wide=True).attend(query, 0, batch, pool, terms)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_the_reference_is_attention_as_torch_knows_it() -> None:
    query, batch, pool = made([(0, 9)], LayerShape(2, 8, 8), heads=4)
    blocks = batch.tables[0]
    key = pool.keys(0)[blocks].flatten(0, 1)[:9].repeat_interleave(2, 1)
    value = pool.values(0)[blocks].flatten(0, 1)[:9].repeat_interleave(2, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), is_causal=True, scale=0.5
    )
    found = ReferenceAttention().attend(query, 0, batch, pool, AttentionTerms(0.5))
    torch.testing.assert_close(found, expected.transpose(0, 1))


def test_a_window_counts_the_token_itself() -> None:
    query, batch, pool = made([(11, 1)], LayerShape(1, 8, 8), heads=1)
    alone = pool.values(0)[batch.slots][0]
    for attention in (ReferenceAttention(), PagedAttention()):
        torch.testing.assert_close(attention.attend(query, 0, batch, pool, AttentionTerms(1.0, window=1))[0], alone)


def test_single_precision_over_a_cache_of_sixteen_bits() -> None:
    torch.manual_seed(0)
    pool = filled_pool([LayerShape(2, 16, 16)], 4, torch.bfloat16)
    batch = batch_of(scattered_rows(MIXED, 4, 0), 4)
    query = torch.randn(len(batch.tokens), 4, 16)
    expected = ReferenceAttention().attend(query, 0, batch, pool, AttentionTerms(0.25))
    wide = PagedAttention(wide=True).attend(query, 0, batch, pool, AttentionTerms(0.25))
    torch.testing.assert_close(wide, expected, atol=2e-6, rtol=1e-5)
    narrow = PagedAttention(wide=True).attend(query.bfloat16(), 0, batch, pool, AttentionTerms(0.25))
    assert narrow.dtype is torch.bfloat16
    torch.testing.assert_close(narrow.float(), expected, atol=3e-2, rtol=3e-2)


def test_long_prompts_with_a_soft_cap_are_scored_in_pieces() -> None:
    query, batch, pool = made([(5, 40)], LayerShape(2, 8, 8), heads=4)
    terms = AttentionTerms(0.5, soft_cap=3.0)
    expected = ReferenceAttention().attend(query, 0, batch, pool, terms)
    found = PagedAttention(scores_at_once=4 * 45 * 7).attend(query, 0, batch, pool, terms)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_a_row_of_garbage_harms_nobody_else() -> None:
    query, batch, pool = made([(3, 1), (9, 1)], LayerShape(1, 8, 8), heads=2)
    expected = PagedAttention().attend(query, 0, batch, pool, AttentionTerms(1.0))[1]
    pool.keys(0)[batch.tables[0]] = float("nan")
    pool.values(0)[batch.tables[0]] = float("nan")
    found = PagedAttention().attend(query, 0, batch, pool, AttentionTerms(1.0))
    assert found[0].isnan().all()
    assert torch.equal(found[1], expected)


def test_rows_of_like_length_go_together() -> None:
    assert alike([], 9) == []
    assert alike([5, 5, 5], 9) == [[0, 1, 2]]
    assert alike([1, 10, 2], 9) == [[1, 2], [0]]
    assert alike([10, 100], 9) == [[1], [0]]


@pytest.mark.parametrize("seed", range(5))
def test_filling_up_has_a_limit(seed: int) -> None:
    choose = random.Random(seed)
    sizes = [choose.randrange(1, 2000) for _ in range(30)]
    groups = alike(sizes, 300)
    assert sorted(at for group in groups for at in group) == list(range(30))
    assert len(groups) < 30
    for group in groups:
        assert sum(max(sizes[at] for at in group) - sizes[at] for at in group) <= 300


def test_all_layers_share_one_plan() -> None:
    _, batch, _ = made(MIXED, LayerShape(1, 8, 8), heads=1)
    first = groups_of(batch, None, torch.float32, 16)
    assert groups_of(batch, None, torch.float32, 16) is first
    assert groups_of(batch, 4, torch.float32, 16) is not first
    assert [group.rows for group in first if group.count == 1] == [4]
    wide = groups_of(batch, None, torch.float32, GROUP_ELEMENTS // 100)
    assert [group.rows for group in wide if group.count == 1] == [2, 2]
