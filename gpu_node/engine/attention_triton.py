"""Decode attention over block tables as two Triton kernels: pieces of each token's past in parallel, then their sum.

The scheme is flash-decoding (Dao et al. 2023): every program reads one piece of one token's keys and values for all
query heads that share them, with a running maximum and sum (Milakov and Gimelshein 2018); the second kernel weighs the
pieces. Nothing is gathered and nothing depends on values that only the host knows, so a CUDA graph may hold both.
Imported only where Triton is. `TRITON_INTERPRET=1` runs the kernels on a CPU, slowly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

# Slots that a program looks at in one go; a piece is a number of them.
TILE = 64
# Below so many slots a piece of its own costs more than it saves.
PIECE_SLOTS = 256
MOST_PIECES = 32


@dataclass(frozen=True, slots=True)
class PagedQuery:
    """One layer's decode: `query` [tokens, heads, dim] and where each token's past lies."""

    query: Tensor
    keys: Tensor  # [blocks, block_tokens, kv_heads, dim], any strides with a dense last dimension
    values: Tensor  # [blocks, block_tokens, kv_heads, value_dim]
    tables: Tensor  # [rows, longest] of int64
    rows: Tensor  # [tokens]: each token's row of the tables
    positions: Tensor  # [tokens]: the last slot that each sees
    longest: int  # no token sees more slots; a bound is enough


def attend(asked: PagedQuery, scale: float, window: int | None, soft_cap: float | None, sinks: Tensor | None) -> Tensor:
    """[tokens, heads, value_dim] in the query's dtype."""
    tokens, heads, dim = asked.query.shape
    kv_heads, value_dim = asked.values.shape[2:]
    shared = heads // kv_heads
    pieces = piece_count(min(asked.longest, window) if window else asked.longest)
    query = asked.query.contiguous()
    partial = torch.empty((tokens, heads, pieces, value_dim), dtype=torch.float32, device=query.device)
    weights = torch.empty((2, tokens, heads, pieces), dtype=torch.float32, device=query.device)
    answer = torch.empty((tokens, heads, value_dim), dtype=query.dtype, device=query.device)
    _read_pieces[(tokens, kv_heads, pieces)](
        query, asked.keys, asked.values, asked.tables, asked.rows, asked.positions, partial, weights, scale,
        asked.tables.stride(0), *asked.keys.stride()[:3], *asked.values.stride()[:3], weights.stride(0),
        HEADS=heads, SHARED=shared, PADDED=max(triton.next_power_of_2(shared), 16),
        DIM=dim, DIM_PADDED=max(triton.next_power_of_2(dim), 16),
        VALUE_DIM=value_dim, VALUE_PADDED=max(triton.next_power_of_2(value_dim), 16),
        BLOCK_TOKENS=asked.keys.shape[1], PIECES=pieces, TILE=TILE,
        WINDOW=window or 0, SOFT_CAP=soft_cap or 0.0, WIDE=query.dtype == torch.float32,
    )  # fmt: skip
    _weigh_pieces[(tokens, heads)](
        partial, weights, answer if sinks is None else sinks, answer, weights.stride(0),
        HEADS=heads, VALUE_DIM=value_dim, VALUE_PADDED=triton.next_power_of_2(value_dim),
        PIECES=pieces, PIECES_PADDED=triton.next_power_of_2(pieces), SINKS=sinks is not None,
    )  # fmt: skip
    return answer


def piece_count(slots: int) -> int:
    """A power of two, so that few variants of the kernels are ever compiled."""
    wanted = min(max(slots // PIECE_SLOTS, 1), MOST_PIECES)
    return int(triton.next_power_of_2(wanted))


@triton.jit
def _read_pieces(
    query, keys, values, tables, rows, positions, partial, weights, scale,
    table_stride, key_block, key_token, key_head, value_block, value_token, value_head, weight_stride,
    HEADS: tl.constexpr, SHARED: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_PADDED: tl.constexpr, BLOCK_TOKENS: tl.constexpr, PIECES: tl.constexpr,
    TILE: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    token, kv_head, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    end = tl.load(positions + token) + 1
    begin = end * 0
    if WINDOW > 0:
        begin = tl.maximum(end - WINDOW, 0)
    each = tl.cdiv(tl.cdiv(end - begin, PIECES), TILE) * TILE
    first = begin + piece * each
    last = tl.minimum(first + each, end)

    group = tl.arange(0, PADDED)
    head = kv_head * SHARED + group
    real = group < SHARED
    dims, value_dims = tl.arange(0, DIM_PADDED), tl.arange(0, VALUE_PADDED)
    asked = tl.load(
        query + (token * HEADS + head)[:, None] * DIM + dims[None, :],
        mask=real[:, None] & (dims < DIM)[None, :],
        other=0.0,
    )
    table = tables + tl.load(rows + token) * table_stride
    highest = tl.full([PADDED], -float("inf"), tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    found = tl.zeros([PADDED, VALUE_PADDED], tl.float32)
    for at in range(first, last, TILE):
        slots = at + tl.arange(0, TILE)
        seen = slots < last
        block = tl.load(table + slots // BLOCK_TOKENS, mask=seen, other=0).to(tl.int64)
        place = slots % BLOCK_TOKENS
        key = tl.load(
            keys + (block * key_block + place * key_token + kv_head * key_head)[None, :] + dims[:, None],
            mask=seen[None, :] & (dims < DIM)[:, None],
            other=0.0,
        )
        if WIDE:
            scores = tl.dot(asked, key.to(tl.float32), input_precision="ieee") * scale
        else:
            scores = tl.dot(asked, key.to(asked.dtype)) * scale
        if SOFT_CAP > 0:
            bounded = scores / SOFT_CAP
            scores = SOFT_CAP * (2.0 / (1.0 + tl.exp(-2.0 * bounded)) - 1.0)  # tanh
        scores = tl.where(seen[None, :], scores, -float("inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        shrink = tl.exp(highest - higher)
        shares = tl.exp(scores - higher[:, None])
        value = tl.load(
            values + (block * value_block + place * value_token + kv_head * value_head)[:, None] + value_dims[None, :],
            mask=seen[:, None] & (value_dims < VALUE_DIM)[None, :],
            other=0.0,
        )
        if WIDE:
            found = found * shrink[:, None] + tl.dot(shares, value.to(tl.float32), input_precision="ieee")
        else:
            found = found * shrink[:, None] + tl.dot(shares.to(value.dtype), value)
        total = total * shrink + tl.sum(shares, 1)
        highest = higher
    place = (token * HEADS + head) * PIECES + piece
    tl.store(
        partial + place[:, None] * VALUE_DIM + value_dims[None, :],
        found,
        mask=real[:, None] & (value_dims < VALUE_DIM)[None, :],
    )
    tl.store(weights + place, highest, mask=real)
    tl.store(weights + weight_stride + place, total, mask=real)


@triton.jit
def _weigh_pieces(
    partial, weights, sinks, answer, weight_stride,
    HEADS: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_PADDED: tl.constexpr,
    PIECES: tl.constexpr, PIECES_PADDED: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0), tl.program_id(1)
    piece, dims = tl.arange(0, PIECES_PADDED), tl.arange(0, VALUE_PADDED)
    row = token * HEADS + head
    place = row * PIECES + piece
    real = piece < PIECES
    highest = tl.load(weights + place, mask=real, other=-float("inf"))
    total = tl.load(weights + weight_stride + place, mask=real, other=0.0)
    top = tl.max(highest, 0)
    if SINKS:
        top = tl.maximum(top, tl.load(sinks + head).to(tl.float32))
    share = tl.exp(highest - top)
    below = tl.sum(share * total, 0)
    if SINKS:
        below += tl.exp(tl.load(sinks + head).to(tl.float32) - top)
    found = tl.load(
        partial + place[:, None] * VALUE_DIM + dims[None, :],
        mask=real[:, None] & (dims < VALUE_DIM)[None, :],
        other=0.0,
    )
    # A piece that saw nothing has weight 0, and its numbers must not be looked at.
    found = tl.where((total > 0)[:, None], found, 0.0)
    summed = tl.sum(found * share[:, None], 0) / below
    tl.store(answer + row * VALUE_DIM + dims, summed.to(answer.dtype.element_ty), mask=dims < VALUE_DIM)
