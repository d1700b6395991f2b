"""Tables of rotary angles by position, computed by transformers' own modules so that every scaling is theirs.

Invariants: a table holds exactly what the module gives for those positions; it grows by doubling when a position beyond
its end is asked for, and what it was before stays where it lies, since CUDA graphs hold addresses. Must not know layers
nor the cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

# A table of this length is made at load: most conversations never need more.
FIRST_POSITIONS = 2048


@dataclass(frozen=True, slots=True)
class Angles:
    """`cosine` and `sine` [positions, turned] in the compute dtype; the first half of the sine carries the minus of a
    rotation, so that x * cosine + swapped(x) * sine turns x."""

    cosine: Tensor
    sine: Tensor

    def at(self, positions: Tensor) -> Angles:
        """Shaped [tokens, 1, turned], for all heads alike."""
        return Angles(self.cosine[positions].unsqueeze(1), self.sine[positions].unsqueeze(1))


class RotaryTables:
    def __init__(self, config: Any, class_name: str, tables: Iterable[str], dtype: torch.dtype) -> None:
        """`class_name` such as "llama.Llama"; `tables`: layer types that have their own angles, or one empty name."""
        package, prefix = class_name.split(".")
        module = import_module(f"transformers.models.{package}.modeling_{package}")
        self._module = getattr(module, f"{prefix}RotaryEmbedding")(config=config)
        self._names, self._dtype = tuple(tables), dtype
        self._device = torch.device("cpu")
        self._tables: dict[str, Angles] = {}
        self._former: list[Angles] = []  # together no larger than the tables
        self._positions = 0

    def to(self, device: torch.device) -> RotaryTables:
        self._device = device
        self._grow(FIRST_POSITIONS)
        return self

    def reaching(self, positions: int) -> dict[str, Angles]:
        """All tables, long enough for positions below this."""
        if positions > self._positions:
            self._grow(max(positions, 2 * self._positions))
        return self._tables

    @property
    def bytes(self) -> int:
        return sum(table.cosine.nbytes + table.sine.nbytes for table in self._tables.values())

    def _grow(self, positions: int) -> None:
        every = torch.arange(positions).unsqueeze(0)
        like = torch.empty(0, dtype=torch.float32)
        for name in self._names:
            cosine, sine = self._module(like, every, name) if name else self._module(like, every)
            half = sine.shape[-1] // 2
            signed = torch.cat((-sine[0, :, :half], sine[0, :, half:]), dim=1)
            self._former += [self._tables[name]] if name in self._tables else []
            self._tables[name] = Angles(*(part.to(self._device, self._dtype) for part in (cosine[0], signed)))
        self._positions = positions
