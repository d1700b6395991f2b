"""Products whose weight is held in the numbers that compute: torch's own multiplication.

Invariant: the weight given is used as it is, so it may be a view of a layer's buffer that is filled later.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor


class DenseProduct:
    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """`weight` [rows, columns] and `bias` [rows] in the compute dtype."""
        self._weight, self._bias = weight, bias
        self._turned = weight.t()
        self.rows, self.columns = weight.shape

    @property
    def bytes(self) -> int:
        return self._weight.nbytes + (0 if self._bias is None else self._bias.nbytes)

    @property
    def form(self) -> str:
        return str(self._weight.dtype).removeprefix("torch.")

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight, self._bias)

    def add_to(self, residual: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        residual.addmm_(x, self._turned, alpha=scale)
        return residual if self._bias is None else residual.add_(self._bias, alpha=scale)


class TableLookup:
    """Rows of a table of floating-point numbers of any width."""

    def __init__(self, table: Tensor, compute: torch.dtype) -> None:
        self._table, self._compute = table, compute

    @property
    def bytes(self) -> int:
        return self._table.nbytes

    def __call__(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self._table).to(self._compute)
