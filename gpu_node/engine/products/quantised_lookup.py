"""Rows of an embedding table that is held quantised: only those asked for are dequantised."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu_node.engine.products.base import QuantisedWeight


class QuantisedLookup:
    def __init__(self, table: QuantisedWeight, compute: torch.dtype) -> None:
        self._table, self._compute = table, compute

    @property
    def bytes(self) -> int:
        return self._table.bytes

    def __call__(self, ids: Tensor) -> Tensor:
        return self._table.select(ids).dequantised(self._compute)
