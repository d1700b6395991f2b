"""Shapes on which the decode kernels are held against the reference, on a GPU or interpreted."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from gpu_node.engine.attention import AttentionTerms, ReferenceAttention
from gpu_node.engine.attention_cuda import CudaAttention
from gpu_node.engine.batch import batch_of
from gpu_node.engine.kv_pool import KvPool, LayerShape
from gpu_node.engine.step import Row


@dataclass(frozen=True, slots=True)
class Case:
    heads: int
    kv_heads: int
    dim: int
    value_dim: int
    block_tokens: int
    rows: tuple[tuple[int, int], ...]  # tokens computed before, new tokens
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False

    @property
    def name(self) -> str:
        return f"{self.heads}/{self.kv_heads}x{self.dim}-block{self.block_tokens}-rows{len(self.rows)}"


CASES = (
    Case(4, 2, 16, 16, 4, ((0, 1), (5, 1), (37, 3), (100, 1))),
    Case(6, 2, 24, 24, 16, ((0, 1), (5, 1), (37, 3), (600, 1)), window=7),
    Case(9, 3, 64, 64, 16, ((0, 1), (5, 2), (600, 1)), soft_cap=50.0, sinks=True),
    Case(8, 8, 32, 16, 16, ((0, 1), (700, 1)), window=300),
    Case(8, 1, 128, 128, 16, ((1300, 1), (15, 1), (16, 1))),
    Case(4, 4, 64, 64, 32, ((40, 1), (0, 30), (12, 2), (64, 17))),
)


def check(case: Case, device: str, dtype: torch.dtype = torch.float32) -> None:
    """Raises an assertion error when the numbers differ."""
    torch.manual_seed(len(case.name))
    count = sum(-(-(start + new) // case.block_tokens) for start, new in case.rows)
    pool = KvPool([LayerShape(case.kv_heads, case.dim, case.value_dim)] * 2, case.block_tokens, count, dtype, device)
    pool.storage.copy_(torch.randn(pool.storage.shape))
    batch = batch_of(_rows(case, count), case.block_tokens, device)
    query = torch.randn(batch.tokens.shape[0], case.heads, case.dim).to(device, dtype)
    sinks = torch.randn(case.heads).to(device, dtype) if case.sinks else None
    terms = AttentionTerms(case.dim**-0.5, case.window, case.soft_cap, sinks)
    found = CudaAttention().attend(query, 1, batch, pool, terms)
    expected = ReferenceAttention().attend(query, 1, batch, pool, terms)
    tolerance = 1e-4 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def _rows(case: Case, count: int) -> list[Row]:
    ids = list(range(count))
    random.Random(count).shuffle(ids)
    rows = []
    for index, (start, new) in enumerate(case.rows):
        blocks = [ids.pop() for _ in range(-(-(start + new) // case.block_tokens))]
        rows.append(Row(index, list(range(new)), start, blocks))
    return rows


def check_all(device: str) -> None:
    for case in CASES:
        check(case, device)
