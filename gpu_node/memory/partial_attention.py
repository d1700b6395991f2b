"""Attention over a part of the slots, with what it takes to put the parts together: the log-sum-exp of the scores.

For a token and head with scores s_i and values v_i over all slots, the output is sum(exp(s_i) v_i) / sum(exp(s_i)).
A part gives its own quotient and lse = log(sum(exp(s_i))); the quotients weighed with exp(lse) are the whole, exactly
(FlashAttention's tiling, Dao et al. 2022; across devices as in ring attention, Liu et al. 2023, and Infinite-LLM, Lin
et al. 2024). Sinks are scores without values: they are counted once, when the parts are put together. Invariants: a
slot is in one part; everything is in single precision. Must not know where parts come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_node.engine.attention import SCORES_AT_ONCE, AttentionTerms
from gpu_node.engine.kv_pool import KvPool


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    """`output` [tokens, heads, value_dim] and `lse` [tokens, heads]; where nothing was seen 0 and minus infinity."""

    output: Tensor
    lse: Tensor

    @staticmethod
    def nothing(tokens: int, heads: int, value_dim: int, device: torch.device | str = "cpu") -> Partial:
        lse = torch.full((tokens, heads), -torch.inf, device=device)
        return Partial(torch.zeros(tokens, heads, value_dim, device=device), lse)


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows that are computed together over blocks of one pool."""

    tokens: slice | Tensor  # which of the queries: rows * count of them, row after row
    rows: int
    count: int
    tables: Tensor  # [rows, blocks], numbers in the pool
    seen: Tensor | None  # [rows, count, blocks * block_tokens]; None: everything


def attend_part(query: Tensor, pool: KvPool, layer: int, piece: Piece, terms: AttentionTerms) -> Partial:
    """`query` [rows * count, heads, key_dim]. The window of `terms` is part of `piece.seen`."""
    key, value = (part.float() for part in pool.gather(layer, piece.tables))
    rows, kv_heads, slots, dim = key.shape
    heads = query.shape[1]
    asked = query.float().mul(terms.scale).view(rows, piece.count, kv_heads, -1, dim).permute(0, 2, 3, 1, 4)
    at_once = max(SCORES_AT_ONCE // (rows * heads * slots), 1)
    found = [
        _scored(asked[:, :, :, begin : begin + at_once], key, value, _cut(piece.seen, begin, at_once), terms.soft_cap)
        for begin in range(0, piece.count, at_once)
    ]
    output = torch.cat([each[0] for each in found], 3) if len(found) > 1 else found[0][0]
    lse = torch.cat([each[1] for each in found], 3) if len(found) > 1 else found[0][1]
    return Partial(
        output.permute(0, 3, 1, 2, 4).reshape(rows * piece.count, heads, -1),
        lse.permute(0, 3, 1, 2).reshape(rows * piece.count, heads),
    )


def merged(parts: Sequence[Partial], sinks: Tensor | None = None) -> Partial:
    """The parts of the same tokens put together; with sinks [heads] the whole of them, and nothing may follow."""
    if len(parts) == 1 and sinks is None:
        return parts[0]
    together = torch.stack([part.lse for part in parts])
    scores = together if sinks is None else torch.cat([together, sinks.float().expand_as(together[:1])])
    lse = scores.logsumexp(0)
    weights = (together - lse).exp_().nan_to_num_(0.0)  # nothing was seen anywhere: minus infinity less itself
    output = parts[0].output * weights[0, :, :, None]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        output.addcmul_(part.output, weight[:, :, None])
    return Partial(output, lse)


def spread(part: Partial, tokens: Tensor, count: int) -> Partial:
    """A part of some tokens among `count`; the others have seen nothing."""
    whole = Partial.nothing(count, part.lse.shape[1], part.output.shape[2], part.lse.device)
    whole.output[tokens], whole.lse[tokens] = part.output, part.lse
    return whole


def _scored(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, soft_cap: float | None
) -> tuple[Tensor, Tensor]:
    """`query` [rows, kv_heads, shared, count, dim]; outputs in the same order, and their lse."""
    rows, kv_heads, shared, count, _ = query.shape
    scores = query.reshape(rows, kv_heads, shared * count, -1) @ key.mT
    if soft_cap is not None:
        scores = torch.tanh(scores.div_(soft_cap)).mul_(soft_cap)
    scores = scores.view(rows, kv_heads, shared, count, -1)
    if seen is not None:
        scores = scores.masked_fill_(~seen[:, None, None], -torch.inf)
    most = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
    weights = scores.sub_(most).exp_()
    total = weights.sum(-1, keepdim=True)
    output = (weights.flatten(2, 3) @ value).view(rows, kv_heads, shared, count, -1)
    lse = (most + total.log()).squeeze(-1)
    return output.div_(total.clamp_(min=torch.finfo(torch.float32).tiny)), lse


def _cut(seen: Tensor | None, begin: int, count: int) -> Tensor | None:
    return None if seen is None else seen[:, begin : begin + count]
