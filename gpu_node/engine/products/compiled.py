"""Products by compiled kernels: the quickest there are for few rows, and for quantised weights with any number.

Invariants: a dense weight is used where it lies, so torch multiplies many rows with the same memory; importing this
module does not import llvmlite. Must not know layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from gpu_node.engine.products.base import Product
from gpu_node.engine.products.kernels.weights import KernelWeight

if TYPE_CHECKING:
    from gpu_node.engine.products.kernels.kernels import Kernels

# 3072 x 576 on one AVX2 core, microseconds for 1, 8, 32, 64 rows: kernel in bfloat16 274, 428, 2072, about 4200;
# torch over widened tiles 950, 1359, 3488, about 4600.
DENSE_ROWS = 48


class CompiledProduct:
    """Activations are in single precision."""

    def __init__(self, weight: KernelWeight, kernels: Kernels, many: Product | None) -> None:
        """`many`: multiplies more than `DENSE_ROWS` rows, with the same weight; None: the kernel does."""
        self.weight = weight
        self._kernels, self._many = kernels, many
        self.rows, self.columns = weight.rows, weight.columns

    @property
    def bytes(self) -> int:
        return self.weight.bytes

    @property
    def form(self) -> str:
        return self.weight.form

    def __call__(self, x: Tensor) -> Tensor:
        if self._many is not None and x.shape[0] > DENSE_ROWS:
            return self._many(x)
        found = x.new_empty(x.shape[0], self.rows)
        if x.shape[0]:
            self._kernels.run(self._kernels.multiply(self.weight, x, found))
        return found

    def add_to(self, residual: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        if self._many is not None and x.shape[0] > DENSE_ROWS:
            return self._many.add_to(residual, x, scale)
        if scale != 1.0:
            return residual.add_(self(x), alpha=scale)
        if x.shape[0]:
            self._kernels.run(self._kernels.multiply(self.weight, x, residual, adds=True))
        return residual
