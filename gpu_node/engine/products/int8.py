"""8-bit weights with one scale a row, by torch's own kernel for few rows and widened tiles for many.

Weights with a scale for every few columns (Q8_0) are brought to one scale a row, which adds a little to their error;
`measure_error` tells how much. Activations of few rows are rounded to bfloat16: the kernel is four times slower in
single precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from gpu_node.engine.products.base import QuantisedWeight, row_tiles
from gpu_node.engine.products.quantise import quantised_rows
from gpu_node.engine.products.wide import Tile, multiply_tiles

# 3072 x 576 on one AVX2 core, microseconds for 8, 16, 64 rows: kernel 1161, 2096, 8164; tiles about 1450, 1950, 4600.
KERNEL_ROWS = 12


class Int8Product:
    def __init__(self, weight: QuantisedWeight, bias: Tensor | None, compute: torch.dtype) -> None:
        """`weight` of any kind; `bias` [rows] in the compute dtype."""
        self.weight = weight if held_by_row(weight) else quantised_rows(weight)
        self._codes, self._scales, self._bias = self.weight.codes, self.weight.scales.float().flatten(), bias
        self._compute = compute
        self._ones = torch.ones_like(self._scales, dtype=torch.bfloat16)
        self.rows, self.columns = weight.shape
        tiles = row_tiles(self.rows, self.columns)
        self._tiles: list[Tile] = [(self._codes[rows], self._scales[rows]) for rows in tiles]

    @property
    def bytes(self) -> int:
        parts = (self._codes, self._scales, self._ones)
        return sum(part.nbytes for part in parts) + (0 if self._bias is None else self._bias.nbytes)

    @property
    def form(self) -> str:
        return "int8, a scale a row"

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] <= KERNEL_ROWS:
            # Scales are applied afterwards: the kernel would want them in bfloat16.
            found = torch._weight_int8pack_mm(x.bfloat16(), self._codes, self._ones).float().mul_(self._scales)
        elif x.device.type == "cpu":
            found = multiply_tiles(x.float(), self._tiles, self.rows)
        else:
            found = functional.linear(x, self._codes.to(x.dtype)).float().mul_(self._scales)
        found = found.to(self._compute)
        return found if self._bias is None else found.add_(self._bias)

    def add_to(self, residual: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        return residual.add_(self(x), alpha=scale)


def held_by_row(weight: QuantisedWeight) -> bool:
    return weight.bits == 8 and weight.minima is None and weight.group == weight.shape[1]
