"""Weights from a folder of safetensors, in one file or in many with an index.

Experts that lie one by one are offered as the stacks that models compute with. Invariants: headers are checked against
their files before anything is allocated; weights of the target's own type on the CPU are read into it without a copy.
Never opens a pickle. Format: https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from gpu_node.engine.products.base import QuantisedWeight
from gpu_node.engine.weights.safetensors_names import renamed, stacks_of
from gpu_node.engine.weights.source import STAGING_BYTES, WeightFile, check_target
from gpu_node.errors import ModelError
from gpu_node.model_folder import MAX_HEADER_BYTES, weight_files

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    file: WeightFile
    dtype: str
    shape: tuple[int, ...]
    offset: int  # from the beginning of the file
    size_bytes: int


class SafetensorsSource:
    def __init__(self, folder: Path) -> None:
        """Raises `ModelError` for a folder that is not whole, or whose weights need a library's own decoding."""
        paths = weight_files(folder)
        self._folder = folder
        self._config = AutoConfig.from_pretrained(folder, local_files_only=True)
        method = getattr(self._config, "quantization_config", None)
        if method:
            kind = method.get("quant_method") if isinstance(method, dict) else getattr(method, "quant_method", method)
            raise ModelError(f"{folder.name} is quantised by {kind}, which is not supported: give a GGUF file instead")
        self._files: list[WeightFile] = []
        self._tensors: dict[str, StoredTensor] = {}
        try:
            for path in paths:
                self._files.append(WeightFile(path))
                self._tensors |= read_tensors(self._files[-1])
        except BaseException:
            self.close()
            raise
        self._stacks = stacks_of(self._tensors)
        own = renamed(self._tensors)
        parts = {part for stack in self._stacks.values() for expert in stack.experts for part in expert}
        hidden = parts | set(own.values())
        self._own = {**{name: name for name in self._tensors if name not in hidden}, **own}

    @property
    def config(self) -> Any:
        return self._config

    @property
    def label(self) -> str:
        return self._folder.name

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def stored_dtype(self) -> torch.dtype:
        named = getattr(self._config, "dtype", None)
        return named if isinstance(named, torch.dtype) else torch.float32

    def names(self) -> Collection[str]:
        return [*self._own, *self._stacks]

    def shape(self, name: str) -> tuple[int, ...]:
        stack = self._stacks.get(name)
        if stack is None:
            return self._tensor(name).shape
        first = [self._tensors[part].shape for part in stack.experts[0]]
        return (len(stack.experts), sum(shape[0] for shape in first), *first[0][1:])

    def dtype(self, name: str) -> str:
        stack = self._stacks.get(name)
        return self._tensor(name).dtype if stack is None else self._tensors[stack.experts[0][0]].dtype

    def file_bytes(self, name: str) -> int:
        stack = self._stacks.get(name)
        if stack is None:
            return self._tensor(name).size_bytes
        return sum(self._tensors[part].size_bytes for expert in stack.experts for part in expert)

    def read_into(self, name: str, target: Tensor) -> None:
        check_target(self.label, name, self.shape(name), target)
        stack = self._stacks.get(name)
        if stack is None:
            self._read(name, self._tensor(name), target)
            return
        for expert, matrix in zip(stack.experts, target, strict=True):
            at = 0
            for part in expert:
                stored = self._tensors[part]
                self._read(part, stored, matrix[at : at + stored.shape[0]])
                at += stored.shape[0]

    def _read(self, name: str, stored: StoredTensor, target: Tensor) -> None:
        check_target(self.label, name, stored.shape, target)
        dtype = DTYPES.get(stored.dtype)
        if dtype is None:
            raise ModelError(f"{self.label}: {name} is stored as {stored.dtype}, which is not supported")
        if target.is_contiguous() and target.dtype is dtype and target.device.type == "cpu":
            stored.file.read_bytes(stored.offset, target)
        else:
            _convert_into(stored, dtype, target)

    def is_quantised(self, name: str) -> bool:
        return False

    def quantised(self, name: str) -> QuantisedWeight | None:
        return None

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _tensor(self, name: str) -> StoredTensor:
        found = self._tensors.get(self._own.get(name, ""))
        if found is None:
            raise ModelError(f"{self.label} holds no weight {name}")
        return found


def read_tensors(file: WeightFile) -> dict[str, StoredTensor]:
    """Every tensor of one file. Raises `ModelError` unless each lies in the file, at its size and apart from others."""
    try:
        return _checked(file)
    except (struct.error, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{file.path} is not a whole safetensors file: {error}") from error


def _checked(file: WeightFile) -> dict[str, StoredTensor]:
    prefix = torch.empty(min(8, file.size_bytes), dtype=torch.uint8)
    file.read_bytes(0, prefix)
    (size,) = struct.unpack("<Q", bytes(prefix.tolist()))
    if size > min(MAX_HEADER_BYTES, file.size_bytes - 8):
        raise ValueError(f"its header claims {size} bytes")
    text = torch.empty(size, dtype=torch.uint8)
    file.read_bytes(8, text)
    header = json.loads(text.numpy().tobytes())
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    found = {name: _placed(file, 8 + size, name, entry) for name, entry in header.items() if name != "__metadata__"}
    end = 8 + size
    for tensor in sorted(found.values(), key=lambda tensor: (tensor.offset, tensor.size_bytes)):
        if tensor.offset < end:
            raise ValueError("two of its tensors overlap")
        end = tensor.offset + tensor.size_bytes
    return found


def _placed(file: WeightFile, start: int, name: str, entry: dict[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(isinstance(number, int) and number >= 0 for number in (begin, end, *shape)):
        raise ValueError(f"the tensor {name} has no proper place")
    if start + end > file.size_bytes or begin > end:
        raise ValueError(f"the tensor {name} reaches beyond its end")
    dtype = DTYPES.get(entry["dtype"])
    if dtype is not None and math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"the tensor {name} has {end - begin} bytes for the shape {list(shape)}")
    return StoredTensor(file, str(entry["dtype"]), shape, start + begin, end - begin)


def _convert_into(stored: StoredTensor, dtype: torch.dtype, target: Tensor) -> None:
    """Piece by piece, in the file's order; each piece is converted and moved by the copy into its place."""
    whole = target.view(-1) if target.is_contiguous() else torch.empty_like(target).view(-1)
    step = STAGING_BYTES // dtype.itemsize
    for begin in range(0, whole.numel(), step):
        count = min(step, whole.numel() - begin)
        offset, size = stored.offset + begin * dtype.itemsize, count * dtype.itemsize
        whole[begin : begin + count].copy_(stored.file.staged(offset, size, target.device).view(dtype))
    if whole.data_ptr() != target.data_ptr():
        target.copy_(whole.view(target.shape))
