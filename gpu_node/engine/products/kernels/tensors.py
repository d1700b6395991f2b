"""Values that operations over tensors take, and the check that stands before code without checks.

Must not import llvmlite.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_node.engine.products.kernels.weights import GROUP, KINDS, Unsuitable

NO_WINDOW = 1 << 40


@dataclass(frozen=True, slots=True)
class Look:
    """How an attention layer looks at its keys."""

    scale: float
    window: int | None = None  # so many positions, its own included; None: all
    cap: float = 0.0  # scores become cap * tanh(score / cap); 0: they stay
    sinks: Tensor | None = None  # float32 [heads]: a score without value that takes part in the softmax


@dataclass(frozen=True, slots=True)
class RoundingRoom:
    """Where x is rounded to 8 bits. Multiplications that run one after the other may share one: each fills it anew."""

    codes: Tensor  # int8, flat
    factors: Tensor  # float32 [2, groups]: scales, and sums of the rounded numbers

    @classmethod
    def of(cls, tokens: int, columns: int) -> RoundingRoom:
        return cls(torch.empty(tokens * columns, dtype=torch.int8), torch.empty(2, tokens * (columns // GROUP)))

    def addresses(self, tokens: int, columns: int) -> tuple[int, int, int]:
        """Of codes, scales and sums. Raises `Unsuitable` when so many numbers do not fit."""
        if tokens * columns > self.codes.numel() or tokens * (columns // GROUP) > self.factors.shape[1]:
            raise Unsuitable(f"{tokens} x {columns} numbers do not fit into the room given for rounding them.")
        return self.codes.data_ptr(), self.factors[0].data_ptr(), self.factors[1].data_ptr()


@dataclass(frozen=True, slots=True)
class Paged:
    """One layer's cache and where each new token's row lies in it; every index is int64.

    `keys` [blocks, block_tokens, kv_heads, key_dim] and `values` likewise: strided views, float32, bfloat16 or float16.
    Token t sees the slots 0 .. positions[t] of the blocks in tables[rows[t]]. Indices are not checked: a number that
    names no block reads foreign memory.
    """

    keys: Tensor
    values: Tensor
    tables: Tensor  # [rows, longest]
    rows: Tensor  # [tokens]
    positions: Tensor  # [tokens]


def check(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    """Raises `Unsuitable` unless the tensor has the shape and type, lies in main memory, its last dimension dense."""
    if tuple(tensor.shape) != shape or tensor.dtype is not dtype or tensor.device.type != "cpu":
        raise Unsuitable(f"{dtype} {shape} in main memory is needed, not {tensor.dtype} {tuple(tensor.shape)}.")
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise Unsuitable("the last dimension must lie without gaps.")


def check_heads(tensor: Tensor) -> None:
    """For [tokens, heads, size]: a token's heads lie one behind the other, sizes are multiples of 8."""
    check(tensor, tuple(tensor.shape))
    if tensor.dim() != 3 or tensor.shape[2] % 8 or (tensor.shape[1] > 1 and tensor.stride(1) != tensor.shape[2]):
        raise Unsuitable(f"heads of shape {tuple(tensor.shape)} and strides {tensor.stride()} have no kernel.")


def check_lanes(*sizes: int) -> None:
    if any(size % 8 for size in sizes):
        raise Unsuitable(f"kernels work on multiples of 8 numbers, not on {sizes}.")


def pool_kind(pool: Tensor) -> str:
    """For [blocks, block_tokens, kv_heads, size]."""
    kind = KINDS.get(pool.dtype)
    if kind is None or pool.dim() != 4 or pool.stride(3) != 1 or pool.shape[3] % 8 or pool.device.type != "cpu":
        raise Unsuitable(f"no kernel reads a cache of {pool.dtype}, {tuple(pool.shape)}.")
    return kind


def float_bits(number: float) -> int:
    """The bits of a single-precision number, as arguments carry it."""
    return int(struct.unpack("<i", struct.pack("<f", number))[0])


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
