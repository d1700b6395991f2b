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
from gpu_node.engine.kv_pool import KvPool, Scratch


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
    hidden: Tensor | None  # [rows, count, blocks * block_tokens]: what nobody sees; None: nothing


def attend_part(
    query: Tensor, pool: KvPool, layer: int, piece: Piece, terms: AttentionTerms, scratch: Scratch | None = None
) -> Partial:
    """`query` [rows * count, heads, key_dim]. The window of `terms` is part of `piece.hidden`. `scratch`: CPU memory
    that is used again each time; nothing of it is in what is returned."""
    key, value = _gathered(pool, layer, piece.tables, scratch)
    rows, kv_heads, slots, dim = key.shape
    heads = query.shape[1]
    asked = query.float().mul(terms.scale).view(rows, piece.count, kv_heads, -1, dim).permute(0, 2, 3, 1, 4)
    at_once = max(SCORES_AT_ONCE // (rows * heads * slots), 1)
    found = [
        _scored(
            asked[:, :, :, begin : begin + at_once], (key, value), _cut(piece.hidden, begin, at_once), terms, scratch
        )
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


def _gathered(pool: KvPool, layer: int, tables: Tensor, scratch: Scratch | None) -> tuple[Tensor, Tensor]:
    """Keys and values in single precision."""
    key, value = pool.gather(layer, tables, scratch)
    if scratch is None or pool.dtype is torch.float32:
        return key.float(), value.float()
    return scratch.named("keys").widened(key, torch.float32), scratch.named("values").widened(value, torch.float32)


def _scored(
    query: Tensor, cache: tuple[Tensor, Tensor], hidden: Tensor | None, terms: AttentionTerms, scratch: Scratch | None
) -> tuple[Tensor, Tensor]:
    """`query` [rows, kv_heads, shared, count, dim]; outputs in the same order, and their lse."""
    key, value = (part.flatten(0, 1) for part in cache)
    rows, kv_heads, shared, count, dim = query.shape
    size = (rows * kv_heads, shared * count, key.shape[1])
    room = (
        torch.empty(size, device=query.device) if scratch is None else scratch.named("scores").take(size, query.dtype)
    )
    torch.bmm(query.reshape(rows * kv_heads, shared * count, dim), key.mT, out=room)
    if terms.soft_cap is not None:
        room.div_(terms.soft_cap).tanh_().mul_(terms.soft_cap)
    if hidden is not None:
        room.view(rows, kv_heads, shared, count, -1).masked_fill_(hidden[:, None, None], -torch.inf)
    most = room.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
    total = room.sub_(most).exp_().sum(-1, keepdim=True)
    output = torch.bmm(room, value).div_(total.clamp(min=torch.finfo(torch.float32).tiny))
    lse = total.log_().add_(most)
    return output.view(rows, kv_heads, shared, count, -1), lse.view(rows, kv_heads, shared, count)


def _cut(hidden: Tensor | None, begin: int, count: int) -> Tensor | None:
    return None if hidden is None else hidden[:, begin : begin + count]
