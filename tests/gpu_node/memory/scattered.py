"""A cache whose blocks lie in several places, and the same cache in one pool."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy
import torch

from gpu_node.engine.batch import Batch, batch_of
from gpu_node.engine.kv_pool import KvPool, LayerShape
from gpu_node.engine.step import Row
from gpu_node.memory.places import CacheForm, HeldBlocks
from gpu_node.memory.scene import StepTables

BLOCK_TOKENS = 4


def form_of(shape: LayerShape, layers: int = 2, dtype: torch.dtype = torch.float32) -> CacheForm:
    return CacheForm((shape,) * layers, BLOCK_TOKENS, dtype)


def filled(form: CacheForm, blocks: int, seed: int = 0) -> KvPool:
    pool = KvPool(form.shapes, form.block_tokens, blocks, form.dtype)
    torch.manual_seed(seed)
    pool.storage.copy_(torch.randn(pool.storage.shape))
    return pool


def held_of(form: CacheForm, whole: KvPool, ranges: Sequence[tuple[int, int]]) -> HeldBlocks:
    """With the content that `whole` has in these ranges."""
    held = HeldBlocks(form)
    for first, behind in ranges:
        held.add(first, behind)
        held.put(range(first, behind), whole.storage[first:behind])
    return held


def batch_over(sizes: Sequence[tuple[int, int]], blocks: int, seed: int = 0) -> Batch:
    """One row for each (past, new), over blocks in no order."""
    free = list(range(blocks))
    random.Random(seed).shuffle(free)
    rows = []
    for sequence, (past, new) in enumerate(sizes):
        needed = -(-(past + new) // BLOCK_TOKENS)
        rows.append(Row(sequence, list(range(new)), past, [free.pop() for _ in range(needed)]))
    return batch_of(rows, BLOCK_TOKENS)


def tables_of(batch: Batch) -> StepTables:
    counts = numpy.diff(batch.starts)
    return StepTables(
        starts=numpy.array(batch.lengths) - counts,
        counts=counts,
        tables=batch.tables.numpy(),
        write_blocks=batch.slots[0].numpy(),
        write_slots=batch.slots[1].numpy(),
        fresh=numpy.array(batch.fresh, dtype=numpy.int64),
        block_tokens=batch.block_tokens,
    )


def owners(blocks: int, ranges: Sequence[Sequence[tuple[int, int]]]) -> numpy.ndarray:
    """Place 0 is wherever no range is."""
    found = numpy.zeros(blocks, dtype=numpy.int64)
    for place, each in enumerate(ranges):
        for first, behind in each:
            found[first:behind] = place
    return found
