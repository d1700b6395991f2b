"""Blocks of a part's cache that lie elsewhere, as the part sees them. Must not know where elsewhere is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor

from gpu_node.engine.attention import AttentionTerms
from gpu_node.engine.batch import Batch


class Far(Protocol):
    """Pool and attention of one forward."""

    def write(self, layer: int, slots: tuple[Tensor, Tensor], key: Tensor, value: Tensor) -> None: ...

    def attend(self, query: Tensor, layer: int, batch: Batch, pool: Any, terms: AttentionTerms) -> Tensor: ...


class Elsewhere(Protocol):
    """A cache whose first blocks are those of the part's pool."""

    def far_rows(self, batch: Batch) -> tuple[int, ...]:
        """Rows of which some block is not in the pool."""
        ...

    def opened(self, batch: Batch) -> Far:
        """For a forward of this batch; clears its fresh blocks."""
        ...

    def clear(self, blocks: Iterable[int]) -> None: ...

    def copy(self, source: int, target: int) -> None: ...
