"""What a matrix product with a model's weight is, how quantised weights are written down, and which numbers compute.

Invariants: a product takes and gives `Numerics.compute` numbers; its weight never changes. `QuantisedWeight` is exact
for GGUF's Q4_0, Q4_1 and Q8_0, and for K-quants once their two-level scales are multiplied out. Must not know which
family of models multiplies, nor where weights come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Kernels = Literal["auto", "torch", "compiled"]
HeldAs = Literal["given", "int8", "int4"]

CPU = torch.device("cpu")
# Rows of a weight that are widened or dequantised at a time hold so many numbers. 1 MiB in single precision stays in
# the caches of a core until it is multiplied; half of it loses more to the calls than it wins (measured, AVX2).
TILE_NUMBERS = 1 << 18


@dataclass(frozen=True, slots=True)
class Numerics:
    """In which numbers products compute, and with whose kernels."""

    compute: torch.dtype = torch.float32  # of activations
    kernels: Kernels = "auto"  # "auto": compiled ones where they can be had, "compiled": those or none, else torch's
    device: torch.device = CPU
    held_as: HeldAs = "given"  # 16 and 32-bit weights are quantised to this when they are loaded
    # Few rows may be rounded to 16 bits on their way in and out where that is quicker; never for logits, which tie.
    may_round: bool = True
    native_halves: bool = False  # the processor multiplies 16-bit numbers by units of its own
    kernel_folder: Path | None = None  # where compiled kernels are kept between starts
    # Open `kernels.Kernels`, see `choice.with_kernels`; any type here, since kernels know this module.
    compiled: Any = field(default=None, compare=False, repr=False)


class Product(Protocol):
    """y = x W^T + b, with W as it is held."""

    @property
    def rows(self) -> int:
        """Outputs."""
        ...

    @property
    def columns(self) -> int:
        """Inputs."""
        ...

    @property
    def bytes(self) -> int:
        """Of weight, scales and bias as they lie in memory."""
        ...

    @property
    def form(self) -> str:
        """For people: how the weight is held and multiplied, such as "bfloat16, widened"."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """`x` [m, columns] -> [m, rows], both in the compute dtype."""
        ...

    def add_to(self, residual: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        """residual + scale * product(x); `residual` [m, rows] is of no use afterwards, it may hold the answer."""
        ...


class Lookup(Protocol):
    """Rows of an embedding table by token id."""

    @property
    def bytes(self) -> int: ...

    def __call__(self, ids: Tensor) -> Tensor:
        """`ids` [n] of int64 -> [n, columns] in the compute dtype."""
        ...


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """A matrix in 4 or 8-bit codes with a scale, and perhaps a minimum, for every `group` columns of a row.

    weight = code * scale + minimum (no minima: 0). Types of other widths (Q6_K, Q5_K ...) take the next wider codes.

    - `bits` 8: `codes` int8 [rows, columns], signed.
    - `bits` 4: `codes` uint8 [rows, columns / 2], unsigned 0..15, in GGUF's order: of every group of g columns, byte j
      (of g / 2) holds column j in its low half and column j + g / 2 in its high half. Q4_0's -8 goes to the minima.
    - `scales`, `minima`: float16 or float32 [rows, columns / group].
    """

    codes: Tensor
    scales: Tensor
    minima: Tensor | None
    group: int
    bits: Literal[4, 8]
    shape: tuple[int, int]  # rows (outputs), columns (inputs)

    def __post_init__(self) -> None:
        """Raises `ValueError` when the parts do not fit together."""
        rows, columns = self.shape
        groups = (rows, columns // self.group)
        if columns % self.group or self.group % 2:
            raise ValueError(f"groups of {self.group} do not divide {columns} columns evenly.")
        if self.codes.shape != (rows, columns * self.bits // 8):
            raise ValueError(f"codes of shape {tuple(self.codes.shape)} do not make a {rows} x {columns} weight.")
        if self.codes.dtype is not (torch.int8 if self.bits == 8 else torch.uint8):
            raise ValueError(f"{self.bits}-bit codes are not held as {self.codes.dtype}.")
        if self.scales.shape != groups or (self.minima is not None and self.minima.shape != groups):
            raise ValueError(f"scales and minima must have the shape {groups}.")

    @property
    def bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + (0 if self.minima is None else self.minima.nbytes)

    def select(self, rows: Tensor | slice) -> QuantisedWeight:
        """The same weight with only these rows; a slice shares memory."""
        codes = self.codes[rows]
        minima = None if self.minima is None else self.minima[rows]
        shape = (codes.shape[0], self.shape[1])
        return QuantisedWeight(codes, self.scales[rows], minima, self.group, self.bits, shape)

    def unpacked(self) -> Tensor:
        """Codes one by one: [rows, columns], int8 or uint8."""
        if self.bits == 8:
            return self.codes
        halves = self.codes.view(self.shape[0], -1, self.group // 2)
        return torch.cat((halves & 15, halves >> 4), dim=2).view(self.shape)

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[rows, columns]; computed in single precision, rounded once."""
        grouped = self.unpacked().view(self.shape[0], -1, self.group).float()
        grouped *= self.scales.float().unsqueeze(2)
        if self.minima is not None:
            grouped += self.minima.float().unsqueeze(2)
        return grouped.view(self.shape).to(dtype)

    def to(self, device: torch.device) -> QuantisedWeight:
        minima = None if self.minima is None else self.minima.to(device)
        return QuantisedWeight(self.codes.to(device), self.scales.to(device), minima, self.group, self.bits, self.shape)


def pack_nibbles(codes: Tensor, group: int) -> Tensor:
    """[rows, columns] of 0..15 -> uint8 [rows, columns / 2] in the order that `QuantisedWeight` asks for."""
    rows, columns = codes.shape
    halves = codes.to(torch.uint8).view(rows, columns // group, 2, group // 2)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(rows, columns // 2)


def joined(parts: list[QuantisedWeight]) -> QuantisedWeight | None:
    """The rows of all parts below each other; None when they are not held alike."""
    first = parts[0]
    kinds = {(part.bits, part.group, part.shape[1], part.minima is None) for part in parts}
    if len(kinds) > 1:
        return None
    minima = None if first.minima is None else torch.cat([part.minima for part in parts if part.minima is not None])
    return QuantisedWeight(
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        minima=minima,
        group=first.group,
        bits=first.bits,
        shape=(sum(part.shape[0] for part in parts), first.shape[1]),
    )


def row_tiles(rows: int, columns: int) -> list[slice]:
    """Which rows of a weight make a tile, one after the other."""
    step = max(TILE_NUMBERS // columns, 16)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
