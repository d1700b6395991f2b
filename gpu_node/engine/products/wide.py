"""16-bit weights under 32-bit activations: for processors without 16-bit units, and for few rows on all of them.

Many rows: the weight is widened tile by tile into one small buffer, and each tile is multiplied while it is in cache;
widening a whole output layer costs more than multiplying it. One or two rows: torch's 16-bit product reads half the
bytes and is quicker, at the price of rounding the activations; `may_round` forbids it. Where the processor has 16-bit
units, that product is the quicker one for any number of rows.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as functional
from torch import Tensor

from gpu_node.engine.products.base import row_tiles

# 3072 x 576 in bfloat16 on one AVX2 core, microseconds for 1, 2, 4 rows: 16-bit 496, 932, 1793; tiles 891, 1217, 1356.
ROUNDED_ROWS = 2

Tile = tuple[Tensor, Tensor | None]  # rows of a weight, and what their outputs are to be scaled with


class WideProduct:
    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, may_round: bool = True, native: bool = False
    ) -> None:
        """`weight` [rows, columns] in bfloat16 or float16, `bias` [rows] in float32; `native`: the processor has units
        for bfloat16."""
        self._weight, self._bias = weight, bias
        # Activations overflow in float16, so only bfloat16 weights may meet rounded ones.
        rounds = may_round and weight.dtype is torch.bfloat16
        self._rounded_rows = (sys.maxsize if native else ROUNDED_ROWS) if rounds else 0
        self.rows, self.columns = weight.shape
        self._tiles: list[Tile] = [(weight[rows], None) for rows in row_tiles(self.rows, self.columns)]

    @property
    def bytes(self) -> int:
        return self._weight.nbytes + (0 if self._bias is None else self._bias.nbytes)

    @property
    def form(self) -> str:
        return f"{str(self._weight.dtype).removeprefix('torch.')}, widened"

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] <= self._rounded_rows:
            found = functional.linear(x.to(self._weight.dtype), self._weight).float()
        else:
            found = multiply_tiles(x, self._tiles, self.rows)
        return found if self._bias is None else found.add_(self._bias)

    def add_to(self, residual: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        return residual.add_(self(x), alpha=scale)


def multiply_tiles(x: Tensor, tiles: list[Tile], rows: int) -> Tensor:
    """x W^T in single precision, W being the tiles [tile rows, columns] below each other, of any type of number."""
    found = x.new_empty(x.shape[0], rows)
    room = x.new_empty(tiles[0][0].shape)
    at = 0
    for tile, scales in tiles:
        wide = room[: tile.shape[0]].copy_(tile)
        part = found[:, at : at + tile.shape[0]]
        torch.mm(x, wide.t(), out=part)
        if scales is not None:
            part.mul_(scales)
        at += tile.shape[0]
    return found
