"""A source as a stage is to see it: in the numbers that were asked for, and with somebody told how far it is.

Invariants: what the view calls a float type is a float type; nothing is read twice for its sake. Must not know files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from gpu_node.engine.products.base import QuantisedWeight
from gpu_node.engine.weights.source import WeightSource

Progress = Callable[[int, int], None]  # bytes of the files done, and in all

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class SourceView:
    def __init__(
        self, source: WeightSource, dtype: torch.dtype, stored: bool = False, progress: Progress | None = None
    ) -> None:
        """`stored`: quantised weights stay as they are stored; else everything looks like a weight of `dtype`."""
        self._source, self._dtype, self._stored = source, dtype, stored
        self._progress = progress
        self._total = sum(source.file_bytes(name) for name in source.names())
        self._read: set[str] = set()
        self._done = 0

    @property
    def config(self) -> Any:
        return self._source.config

    @property
    def label(self) -> str:
        return self._source.label

    @property
    def stored_dtype(self) -> torch.dtype:
        return self._dtype

    def names(self) -> Collection[str]:
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def dtype(self, name: str) -> str:
        return self._source.dtype(name) if self.is_quantised(name) else NAMES[self._dtype]

    def is_quantised(self, name: str) -> bool:
        return self._stored and self._source.is_quantised(name)

    def file_bytes(self, name: str) -> int:
        return self._source.file_bytes(name)

    def read_into(self, name: str, target: Tensor) -> None:
        self._source.read_into(name, target)
        self._tell(name)

    def quantised(self, name: str) -> QuantisedWeight | None:
        if not self.is_quantised(name):
            return None
        weight = self._source.quantised(name)
        self._tell(name)
        return weight

    def close(self) -> None:
        self._source.close()

    def _tell(self, name: str) -> None:
        if name in self._read:
            return
        self._read.add(name)
        self._done += self._source.file_bytes(name)
        if self._progress is not None:
            self._progress(self._done, self._total)
