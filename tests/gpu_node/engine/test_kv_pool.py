"""The pool against plain indexing: what is written is found, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpu_node.engine.kv_pool import KvPool, LayerShape, token_bytes

EVEN = (LayerShape(2, 8, 8), LayerShape(2, 8, 8, window=5))
UNEVEN = (LayerShape(3, 8, 4), LayerShape(1, 6, 6), LayerShape(2, 4, 8))
SHAPES = pytest.mark.parametrize("shapes", [EVEN, UNEVEN], ids=["even", "uneven"])


@SHAPES
def test_what_is_written_is_found_and_nothing_else_changed(shapes: tuple[LayerShape, ...]) -> None:
    torch.manual_seed(0)
    pool = KvPool(shapes, 4, 6, torch.float32)
    slots = (torch.tensor([5, 0, 5]), torch.tensor([3, 1, 0]))
    written = []
    for layer, shape in enumerate(shapes):
        key = torch.randn(3, shape.kv_heads, shape.key_dim)
        value = torch.randn(3, shape.kv_heads, shape.value_dim)
        pool.write(layer, slots, key, value)
        written.append((key, value))
    for layer, (key, value) in enumerate(written):
        assert torch.equal(pool.keys(layer)[slots], key)
        assert torch.equal(pool.values(layer)[slots], value)
    assert int(pool.storage.count_nonzero()) == sum(key.numel() + value.numel() for key, value in written)


@SHAPES
def test_a_gather_brings_heads_in_the_order_of_tokens(shapes: tuple[LayerShape, ...]) -> None:
    pool = KvPool(shapes, 4, 6, torch.float32)
    pool.storage.copy_(torch.randn(pool.storage.shape))
    tables = torch.tensor([[3, 0], [5, 5]])
    for layer in range(len(shapes)):
        found = pool.gather(layer, tables)
        for part, view in zip(found, (pool.keys(layer), pool.values(layer)), strict=True):
            expected = view[tables].flatten(1, 2).transpose(1, 2)
            assert torch.equal(part, expected)
            assert part.is_contiguous()


@SHAPES
def test_a_block_is_one_run_of_memory_over_all_layers(shapes: tuple[LayerShape, ...]) -> None:
    pool = KvPool(shapes, 4, 6, torch.float32)
    for layer in range(len(shapes)):
        pool.keys(layer)[2] = 1.0
        pool.values(layer)[2] = 1.0
    assert bool((pool.storage[2] == 1).all()) and pool.storage[2].is_contiguous()
    assert int(pool.storage.count_nonzero()) == pool.storage.shape[1]
    assert pool.block_bytes == pool.storage[2].numel() * 4 == token_bytes(shapes, torch.float32) * 4


def test_copies_and_clears_are_of_whole_blocks() -> None:
    pool = KvPool(UNEVEN, 4, 4, torch.bfloat16)
    pool.storage.copy_(torch.randn(pool.storage.shape))
    before = pool.storage.clone()
    pool.copy(1, 3)
    pool.clear([0])
    assert torch.equal(pool.storage[3], before[1])
    assert torch.equal(pool.storage[1:3], before[1:3])
    assert int(pool.storage[0].count_nonzero()) == 0


def test_keys_are_kept_in_the_dtype_of_the_pool() -> None:
    pool = KvPool(EVEN, 4, 2, torch.bfloat16)
    key = torch.randn(1, 2, 8)
    pool.write(0, (torch.tensor([1]), torch.tensor([2])), key, key)
    assert torch.equal(pool.keys(0)[1, 2], key[0].bfloat16())
    assert pool.block_bytes == 4 * 2 * 2 * 16 * 2


def test_memory_is_taken_when_it_is_used() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell how much memory is resident")
    before = resident()
    pool = KvPool((LayerShape(8, 128, 128),), 16, 8192, torch.float32)  # 1 GiB
    pool.storage[17] = 1.0
    assert pool.storage.numel() * 4 == 1 << 30
    assert resident() - before < 100 << 20


def test_a_pool_may_be_empty() -> None:
    assert KvPool(EVEN, 4, 0, torch.float32).storage.numel() == 0
