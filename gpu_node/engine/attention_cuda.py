"""Attention on CUDA: decodes over block tables in place, prompts by gathering and torch's own flash attention.

Invariants: the same numbers as `ReferenceAttention` but for rounding; rows with few new tokens (decodes, also with
drafts) never gather their past. Without Triton everything takes the gathering path. Must not know models.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from gpu_node.engine.attention import FEW_TOKENS, AttentionTerms, PagedAttention
from gpu_node.engine.batch import Batch
from gpu_node.engine.kv_pool import KvPool


def triton_available() -> bool:
    """Triton comes with torch's CUDA builds for Linux; its first kernel wants a C compiler on some systems."""
    return importlib.util.find_spec("triton") is not None


class CudaAttention:
    """Rows with few new tokens in place, longer ones by gathering, each as a batch of its own."""

    def __init__(self) -> None:
        from gpu_node.engine import attention_triton

        self._kernels: Any = attention_triton
        self._gathering = PagedAttention()

    def attend(self, query: Tensor, layer: int, batch: Batch, pool: KvPool, terms: AttentionTerms) -> Tensor:
        if "shares" not in batch.plans:
            batch.plans["shares"] = shares_of(batch)
        few, long = batch.plans["shares"]
        if long is None:
            return self._in_place(query, layer, batch, pool, terms)
        if few is None:
            return self._gathering.attend(query, layer, batch, pool, terms)
        found = query.new_empty(*query.shape[:2], pool.shapes[layer].value_dim)
        found[few.tokens] = self._in_place(query[few.tokens], layer, few.batch, pool, terms)
        found[long.tokens] = self._gathering.attend(query[long.tokens], layer, long.batch, pool, terms)
        return found

    def _in_place(self, query: Tensor, layer: int, batch: Batch, pool: KvPool, terms: AttentionTerms) -> Tensor:
        if "rows" not in batch.plans:
            batch.plans["rows"] = rows_of_tokens(batch)
        asked = self._kernels.PagedQuery(
            query,
            pool.keys(layer),
            pool.values(layer),
            batch.tables,
            batch.plans["rows"],
            batch.positions,
            batch.tables.shape[1] * batch.block_tokens,
        )
        found: Tensor = self._kernels.attend(asked, terms.scale, terms.window, terms.soft_cap, terms.sinks)
        return found


@dataclass(frozen=True, slots=True)
class Share:
    """Some rows of a batch as a batch of their own."""

    tokens: Tensor  # which tokens of the whole
    batch: Batch


def shares_of(batch: Batch) -> tuple[Share | None, Share | None]:
    """The rows with few new tokens, and the others."""
    few = [row for row in range(batch.rows) if batch.new_tokens(row) <= FEW_TOKENS]
    long = [row for row in range(batch.rows) if batch.new_tokens(row) > FEW_TOKENS]
    return (_share(batch, few) if few else None, _share(batch, long) if long else None)


def _share(batch: Batch, rows: Sequence[int]) -> Share:
    device = batch.positions.device
    places = [at for row in rows for at in range(batch.starts[row], batch.starts[row + 1])]
    tokens = torch.tensor(places, device=device)
    return Share(
        tokens,
        replace(
            batch,
            tokens=batch.tokens[tokens],
            positions=batch.positions[tokens],
            slots=(batch.slots[0][tokens], batch.slots[1][tokens]),
            tables=batch.tables[torch.tensor(rows, device=device)],
            starts=(0, *accumulate(batch.new_tokens(row) for row in rows)),
            lengths=tuple(batch.lengths[row] for row in rows),
            plans={},
        ),
    )


def rows_of_tokens(batch: Batch) -> Tensor:
    """[tokens]: the row of the block table that each token belongs to."""
    counts = torch.tensor([batch.new_tokens(row) for row in range(batch.rows)])
    rows = torch.repeat_interleave(torch.arange(batch.rows), counts)
    return rows.to(batch.positions.device)
