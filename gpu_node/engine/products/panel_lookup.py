"""Rows of an embedding table out of the panels that its compiled product multiplies with: the weight is held once.

Invariant: gives exactly what the `QuantisedWeight` gave that was packed. Must know the layout of `kernels.weights`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpu_node.engine.products.kernels.weights import GROUP, PANEL_ROWS, KernelWeight


class PanelLookup:
    def __init__(self, weight: KernelWeight) -> None:
        """`weight` is quantised."""
        kind, scales = weight.kernel.split("_")
        self._data, self._columns = weight.data, weight.columns
        self._scale_dtype = torch.float16 if scales == "f16" else torch.float32
        self._bits, self._minima = int(kind[len("packed")]), kind.endswith("m")

    @property
    def bytes(self) -> int:
        return self._data.nbytes

    def __call__(self, ids: Tensor) -> Tensor:
        """[n] -> float32 [n, columns]."""
        panels, rows = self._data[ids // PANEL_ROWS], ids % PANEL_ROWS
        size = PANEL_ROWS * self._scale_dtype.itemsize
        scales = self._numbers(panels[:, :, :size], rows)
        begin = 2 * size if self._minima else size
        found = self._codes(panels[:, :, begin:], rows).mul_(scales)
        if self._minima:
            found += self._numbers(panels[:, :, size : 2 * size], rows)
        return found.view(len(ids), self._columns)

    def _numbers(self, part: Tensor, rows: Tensor) -> Tensor:
        """One of a panel's eight numbers for every group: [n, groups, 1]."""
        numbers = part.contiguous().view(self._scale_dtype)
        return numbers[torch.arange(len(rows)), :, rows].float().unsqueeze(2)

    def _codes(self, part: Tensor, rows: Tensor) -> Tensor:
        """[n, groups, 32], as numbers. Four columns of a row lie together, in steps of all eight rows."""
        count, groups, _ = part.shape
        steps = part.reshape(count, groups, self._bits, PANEL_ROWS, 4)[torch.arange(count), :, :, rows]
        if self._bits == 8:
            return steps.view(torch.int8).float().reshape(count, groups, GROUP)
        return torch.stack((steps & 15, steps >> 4), dim=3).float().reshape(count, groups, GROUP)
