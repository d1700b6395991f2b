"""Attention of a batch's new tokens over the paged cache: a slow and obvious reference, and the path that runs.

Invariants: the new tokens' own keys and values were written before; a token sees its row's slots up to its own position
and no further back than the window. Both ways give the same numbers but for rounding, whatever else is in the batch.
Must not know models; what a layer asks for comes in `AttentionTerms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from gpu_node.engine.batch import Batch
from gpu_node.engine.kv_pool import KvPool, Scratch

# Rows with at most so many new tokens (decodes, also with drafts) are computed together.
FEW_TOKENS = 8
# One more group costs a layer about as much as reading so many numbers of keys and values in vain (100 us on an AVX2
# core, which reads a slot of 384 numbers in 0.3 us).
GROUP_ELEMENTS = 1 << 17
# Scores are computed for so many pairs of head, query and key at once: 64 MB in single precision.
SCORES_AT_ONCE = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class AttentionTerms:
    scale: float  # multiplies query times key
    window: int | None = None  # slots seen, the token's own included; None: all
    soft_cap: float | None = None  # scores become cap * tanh(score / cap) (Gemma 2)
    sinks: Tensor | None = None  # [heads]: one more score a head that takes weight and gives nothing (gpt-oss)

    @property
    def plain(self) -> bool:
        return self.soft_cap is None and self.sinks is None


class Attention(Protocol):
    """Chosen once when a model is loaded."""

    def attend(self, query: Tensor, layer: int, batch: Batch, pool: KvPool, terms: AttentionTerms) -> Tensor:
        """`query`: [tokens, heads, key_dim]; answers [tokens, heads, value_dim] in the query's dtype."""
        ...


class ReferenceAttention:
    """Row by row with an explicit mask, in single precision."""

    def attend(self, query: Tensor, layer: int, batch: Batch, pool: KvPool, terms: AttentionTerms) -> Tensor:
        found = []
        for row, length in enumerate(batch.lengths):
            begin, end = batch.starts[row], batch.starts[row + 1]
            blocks = batch.tables[row, : -(-length // batch.block_tokens)]
            key = pool.keys(layer)[blocks].flatten(0, 1)[:length].float()
            value = pool.values(layer)[blocks].flatten(0, 1)[:length].float()
            found.append(_plainly(query[begin:end].float(), key, value, batch.positions[begin:end], terms))
        return torch.cat(found).to(query.dtype)


def _plainly(query: Tensor, key: Tensor, value: Tensor, positions: Tensor, terms: AttentionTerms) -> Tensor:
    """`query` [new, heads, dim] at `positions` [new]; `key`, `value` [slots, kv_heads, dim]."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * terms.scale
    if terms.soft_cap is not None:
        scores = terms.soft_cap * torch.tanh(scores / terms.soft_cap)
    slots = torch.arange(key.shape[0], device=key.device)
    seen = slots <= positions[:, None]
    if terms.window is not None:
        seen &= slots > positions[:, None] - terms.window
    scores = scores.masked_fill(~seen, -torch.inf)
    if terms.sinks is not None:
        sinks = terms.sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = scores.softmax(-1)[..., : key.shape[0]]
    return torch.einsum("hqk,khd->qhd", weights, value)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Rows that are computed together: each has `count` new tokens, and `lead` to `slots` of its table are read."""

    tokens: slice | Tensor  # which of the batch's tokens, row after row
    rows: int
    count: int
    tables: Tensor  # [rows, blocks]
    first: int  # slots of the gathered blocks in front of these are not looked at
    last: int  # nor those from here on
    mask: Tensor | None  # [rows, count, last - first], added to scores; None: everything is seen, or `causal` says it
    causal: bool = False  # queries and keys are the same tokens, in order


class PagedAttention:
    """Decodes in groups of like length, prompts row by row; never a mask over several requests' pairs of tokens.

    `wide`: compute in single precision over a 16-bit cache, for CPUs whose 16-bit products are slow. Query heads that
    share keys and values read them where they are, without copies.
    """

    def __init__(self, wide: bool = False, scores_at_once: int = SCORES_AT_ONCE) -> None:
        self._wide = wide
        self._scores_at_once = scores_at_once
        self._scratch = Scratch()

    def attend(self, query: Tensor, layer: int, batch: Batch, pool: KvPool, terms: AttentionTerms) -> Tensor:
        dtype = torch.float32 if self._wide else query.dtype
        found = query.new_empty(*query.shape[:2], pool.shapes[layer].value_dim)
        for group in groups_of(batch, terms.window, dtype, pool.shapes[layer].elements):
            key, value = self._read(pool, layer, group, dtype)
            asked = query[group.tokens].to(dtype)
            asked = asked.view(group.rows, group.count, key.shape[1], -1, asked.shape[-1]).permute(0, 2, 3, 1, 4)
            if terms.plain:
                answer = _quickly(asked, key, value, group, terms.scale)
            else:
                answer = _slowly(asked, key, value, group, terms, self._scores_at_once)
            found[group.tokens] = answer.permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1).to(query.dtype)
        return found

    def _read(self, pool: KvPool, layer: int, group: Group, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of the slots that the group looks at, [rows, kv_heads, slots, dim] each."""
        scratch = self._scratch if pool.device.type == "cpu" else None
        parts = [part[:, :, group.first : group.last] for part in pool.gather(layer, group.tables, scratch)]
        if scratch is None:
            return parts[0].to(dtype), parts[1].to(dtype)
        return scratch.named("keys").widened(parts[0], dtype), scratch.named("values").widened(parts[1], dtype)


def _slowly(
    query: Tensor, key: Tensor, value: Tensor, group: Group, terms: AttentionTerms, scores_at_once: int
) -> Tensor:
    """With what torch's own attention does not know; a long prompt goes in pieces that bound the scores' memory."""
    mask = group.mask
    if group.causal:
        seen = torch.ones(group.count, key.shape[2], dtype=torch.bool, device=key.device).tril()
        mask = _hidden(seen[None], query.dtype)
    at_once = max(scores_at_once // (query[:, :, :, 0, 0].numel() * key.shape[2]), 1)
    pieces = torch.split(query, at_once, dim=3)
    masks: Sequence[Tensor | None] = [None] * len(pieces) if mask is None else torch.split(mask, at_once, dim=1)
    return torch.cat([_scored(*pair, key, value, terms) for pair in zip(pieces, masks, strict=True)], dim=3)


def _quickly(query: Tensor, key: Tensor, value: Tensor, group: Group, scale: float) -> Tensor:
    """`query` [rows, kv_heads, shared, count, dim], `key` and `value` [rows, kv_heads, slots, dim]; answers in the
    query's order of dimensions."""
    rows, kv_heads, shared, count, dim = query.shape
    mask = group.mask
    if rows == 1 and count > FEW_TOKENS:  # kv heads take the place of the batch, so that shared ones need no copy
        key, value = (part[0][:, None].expand(-1, shared, -1, -1) for part in (key, value))
        found = functional.scaled_dot_product_attention(
            query[0], key, value, attn_mask=mask, is_causal=group.causal, scale=scale
        )
        return found[None]
    if mask is not None:
        mask = mask[:, None, None].expand(-1, 1, shared, -1, -1).reshape(rows, 1, shared * count, -1)
    packed = query.reshape(rows, kv_heads, shared * count, dim)
    found = functional.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scale)
    return found.view(rows, kv_heads, shared, count, -1)


def _scored(query: Tensor, mask: Tensor | None, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
    rows, kv_heads, shared, count, _ = query.shape
    scores = query.flatten(2, 3) @ key.mT * terms.scale
    if terms.soft_cap is not None:
        scores = terms.soft_cap * torch.tanh(scores / terms.soft_cap)
    scores = scores.view(rows, kv_heads, shared, count, -1)
    if mask is not None:
        scores = scores + mask[:, None, None]
    if terms.sinks is not None:
        sinks = terms.sinks.to(scores.dtype).view(kv_heads, shared, 1, 1).expand(rows, -1, -1, count, -1)
        scores = torch.cat([scores, sinks], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)[..., : key.shape[2]]
    return (weights.flatten(2, 3) @ value).view(rows, kv_heads, shared, count, -1)


def groups_of(batch: Batch, window: int | None, dtype: torch.dtype, slot_elements: int) -> Sequence[Group]:
    """Worked out by the first layer that looks back so far, and kept with the batch. `slot_elements`: numbers in a
    slot's keys and values."""
    wanted = ("groups", window, dtype, slot_elements)
    if wanted not in batch.plans:
        batch.plans[wanted] = _groups(batch, window, dtype, GROUP_ELEMENTS // slot_elements)
    found: Sequence[Group] = batch.plans[wanted]
    return found


def _groups(batch: Batch, window: int | None, dtype: torch.dtype, waste: int) -> list[Group]:
    few: dict[int, list[int]] = {}
    groups = []
    for row in range(batch.rows):
        count = batch.new_tokens(row)
        if count > FEW_TOKENS:
            groups.append(_group(batch, [row], window, dtype))
        else:
            few.setdefault(count, []).append(row)
    for rows in few.values():
        sizes = [batch.lengths[row] - _first_seen(batch, row, window) for row in rows]
        groups += [_group(batch, [rows[at] for at in chosen], window, dtype) for chosen in alike(sizes, waste)]
    return groups


def alike(sizes: Sequence[int], most_waste: int) -> list[list[int]]:
    """Indices in groups: filling all of a group up to its largest wastes no more than `most_waste`."""
    groups: list[list[int]] = []
    largest = waste = 0
    for at in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
        waste += largest - sizes[at]
        if not groups or waste > most_waste:
            groups.append([])
            largest, waste = sizes[at], 0
        groups[-1].append(at)
    return [sorted(group) for group in groups]


def _first_seen(batch: Batch, row: int, window: int | None) -> int:
    """The first slot that the row's first new token sees."""
    return 0 if window is None else max(batch.lengths[row] - batch.new_tokens(row) + 1 - window, 0)


def _group(batch: Batch, rows: Sequence[int], window: int | None, dtype: torch.dtype) -> Group:
    block, count = batch.block_tokens, batch.new_tokens(rows[0])
    skipped = [_first_seen(batch, row, window) // block for row in rows]
    blocks = max(-(-batch.lengths[row] // block) - skip for row, skip in zip(rows, skipped, strict=True))
    tables = _tables(batch, rows, skipped, blocks)
    tokens = _tokens(batch, rows)
    if len(rows) == 1:
        length, begin = batch.lengths[rows[0]], skipped[0] * block
        first = _first_seen(batch, rows[0], window) - begin if count == 1 else 0
        causal = count > FEW_TOKENS and count == length and (window is None or length <= window)
        mask = None if count == 1 or causal else _mask(batch, rows, skipped, (0, length - begin), window, dtype)
        return Group(tokens, 1, count, tables, first, length - begin, mask, causal)
    mask = _mask(batch, rows, skipped, (0, blocks * block), window, dtype)
    return Group(tokens, len(rows), count, tables, 0, blocks * block, mask)


def _tables(batch: Batch, rows: Sequence[int], skipped: Sequence[int], blocks: int) -> Tensor:
    """Past a row's end its own last block is read again: finite numbers that the mask hides."""
    if len(rows) == 1:
        return batch.tables[rows[0], None, skipped[0] : skipped[0] + blocks]
    device = batch.tables.device
    places = torch.arange(blocks, device=device) + torch.tensor(skipped, device=device)[:, None]
    return batch.tables[list(rows)].gather(1, places.clamp_(max=batch.tables.shape[1] - 1))


def _tokens(batch: Batch, rows: Sequence[int]) -> slice | Tensor:
    if rows[-1] - rows[0] == len(rows) - 1:
        return slice(batch.starts[rows[0]], batch.starts[rows[-1] + 1])
    places = [at for row in rows for at in range(batch.starts[row], batch.starts[row + 1])]
    return torch.tensor(places, device=batch.tokens.device)


def _mask(
    batch: Batch,
    rows: Sequence[int],
    skipped: Sequence[int],
    slots: tuple[int, int],
    window: int | None,
    dtype: torch.dtype,
) -> Tensor:
    device, count = batch.positions.device, batch.new_tokens(rows[0])
    positions = batch.positions[_tokens(batch, rows)].view(len(rows), count, 1)
    begins = torch.tensor(skipped, device=device).view(-1, 1, 1) * batch.block_tokens
    keys = torch.arange(*slots, device=device) + begins
    seen = keys <= positions
    if window is not None:
        seen &= keys > positions - window
    return _hidden(seen, dtype)


def _hidden(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
