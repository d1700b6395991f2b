"""A source of weights over a model of transformers in memory, also with some of its matrices quantised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gpu_node.engine.products.base import QuantisedWeight

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class ModelSource:
    label = "a model in memory"

    def __init__(self, model: Any, quantised: Mapping[str, QuantisedWeight] | None = None) -> None:
        self.config = model.config
        self._weights = dict(model.state_dict())
        self._quantised = dict(quantised or {})
        self.reads: list[str] = []

    @property
    def stored_dtype(self) -> torch.dtype:
        return self._weights["model.embed_tokens.weight"].dtype

    def names(self):
        return self._weights.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._weights[name].shape)

    def dtype(self, name: str) -> str:
        return "Q4_1" if name in self._quantised else NAMES[self._weights[name].dtype]

    def file_bytes(self, name: str) -> int:
        return self._weights[name].nbytes

    def read_into(self, name: str, target: Tensor) -> None:
        assert target.shape == self._weights[name].shape
        self.reads.append(name)
        target.copy_(self._weights[name])

    def quantised(self, name: str) -> QuantisedWeight | None:
        return self._quantised.get(name)

    def close(self) -> None:
        self._weights.clear()
