"""Ranges in host memory are of one pool, cost nothing until written, and nothing again once they are let go."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
import pytest
import torch

from gpu_node.engine.attention import AttentionTerms
from gpu_node.engine.kv_pool import LayerShape
from gpu_node.memory.arena import Arena
from gpu_node.memory.errors import LeaseFault
from gpu_node.memory.places import CacheForm, HeldBlocks
from gpu_node.memory.scene import Scene

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux only")
FORM = CacheForm((LayerShape(2, 8, 8),), 4, torch.float32)
MIB = 1 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_comes_with_what_is_written_and_goes_with_what_is_let_go() -> None:
    before = resident_bytes()
    arena = Arena(MIB, 1024)
    assert resident_bytes() - before < 16 * MIB
    arena.memory[: 64 * MIB] = 7
    assert resident_bytes() - before > 60 * MIB
    arena.let_go(0, 32)
    arena.let_go(40, 64)
    assert resident_bytes() - before < 24 * MIB
    assert int(arena.memory[32 * MIB]) == 7 and int(arena.memory[39 * MIB]) == 7
    assert int(arena.memory[31 * MIB]) == 0 and int(arena.memory[40 * MIB]) == 0


def test_only_whole_pages_of_a_range_are_let_go() -> None:
    arena = Arena(1000, 30)
    arena.memory.fill_(3)
    arena.let_go(1, 29)
    assert arena.memory[:1000].eq(3).all() and arena.memory[29_000:].eq(3).all()
    assert arena.memory[8192:24_576].eq(0).all()


def scene_of(blocks: list[int]) -> Scene:
    """One decode over these blocks, filled but for the last slot, which is written."""
    length = len(blocks) * FORM.block_tokens
    one = numpy.array([1])
    ids = numpy.array(blocks)
    none = numpy.zeros(0, dtype=numpy.int64)
    return Scene(
        one * (length - 1), one, one * len(blocks), ids, numpy.arange(len(blocks)), one * 0, ids[-1:], one * 3, none
    )


def test_however_many_ranges_there_are_a_step_is_one_piece() -> None:
    torch.manual_seed(3)
    query, new = torch.randn(1, 4, 8), torch.randn(1, 2, 8)
    content = torch.randn(6, FORM.block_elements)
    terms = AttentionTerms(0.3)
    found = []
    for most in (0, 20):  # pools of their own, and one for all
        held = HeldBlocks(FORM, "cpu", most)
        for first in (4, 8, 12):
            held.add(first, first + 2)
        blocks = [13, 4, 9, 5, 8, 12]
        held.put(blocks, content)
        staged = held.stage(scene_of(blocks))
        held.write(staged, 0, new, new)
        found.append(held.attend(staged, 0, query, terms))
        assert len(staged.pieces[None]) == (1 if most else 3)
        assert held.bytes == 6 * FORM.block_bytes
    torch.testing.assert_close(found[0].output, found[1].output)
    torch.testing.assert_close(found[0].lse, found[1].lse)


def test_what_was_let_go_is_nobodys() -> None:
    held = HeldBlocks(FORM, "cpu", 20)
    held.add(4, 8)
    held.add(8, 12)
    held.remove(4)
    assert held.bytes == 4 * FORM.block_bytes
    assert not held.holds(numpy.array([5])) and held.holds(numpy.array([8, 11]))
    with pytest.raises(LeaseFault):
        held.read([5])
    with pytest.raises(LeaseFault):
        held.add(10, 14)


def test_rows_of_very_different_lengths_are_not_filled_up_to_the_longest() -> None:
    """A short row that is padded reads in vain; alone it reads its own, and the numbers are the same."""
    torch.manual_seed(4)
    form = CacheForm((LayerShape(8, 64, 64),), 16, torch.float32)
    held = HeldBlocks(form, "cpu", 80)
    held.add(0, 80)
    held.put(range(80), torch.randn(80, form.block_elements))
    sizes = numpy.array([30, 2, 29, 1])
    lengths, ones, none = sizes * 16, numpy.ones(4, dtype=numpy.int64), numpy.zeros(0, dtype=numpy.int64)
    blocks = numpy.arange(sizes.sum())
    at = numpy.concatenate([numpy.arange(size) for size in sizes])
    staged = held.stage(Scene(lengths - 1, ones, sizes, blocks, at, none, none, none, none))
    query, terms = torch.randn(4, 8, 64), AttentionTerms(0.1)
    found = held.attend(staged, 0, query, terms)
    pieces = [piece for _, piece in staged.pieces[None]]
    assert sorted(tuple(piece.tables.shape) for piece in pieces) == [(2, 2), (2, 30)]
    for row, end in enumerate(numpy.cumsum(sizes)):
        size = sizes[row : row + 1]
        mine = slice(end - sizes[row], end)
        one = Scene(size * 16 - 1, ones[:1], size, blocks[mine], at[mine], none, none, none, none)
        alone = held.attend(held.stage(one), 0, query[row : row + 1], terms)
        torch.testing.assert_close(found.output[row : row + 1], alone.output)
        torch.testing.assert_close(found.lse[row : row + 1], alone.lse)
