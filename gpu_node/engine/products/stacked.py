"""Several products of one input behind each other: weights that belong together but are held differently.

Quantised files mix types, for instance wider values beside narrow queries and keys. Knows nothing of how parts compute.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpu_node.engine.products.base import Product


class StackedProduct:
    def __init__(self, parts: Sequence[Product]) -> None:
        self.parts = tuple(parts)
        self.rows = sum(part.rows for part in parts)
        self.columns = parts[0].columns

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def form(self) -> str:
        return " + ".join(dict.fromkeys(part.form for part in self.parts))

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=1)

    def add_to(self, residual: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        return residual.add_(self(x), alpha=scale)
