"""Weights from a GGUF file under transformers' names, unpacked in bounded pieces or handed out as they are stored.

Invariants: numbers are unpacked in single precision and rounded once, into the target; a piece is a few whole rows of
the file. Raw blocks are moved to the target's device and unpacked there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from gpu_node.engine.products.base import QuantisedWeight
from gpu_node.engine.weights.gguf_blocks import DECODERS, decoded, numbers
from gpu_node.engine.weights.gguf_names import Layout, Origin, origins
from gpu_node.engine.weights.source import WeightFile, check_target, rows_a_piece
from gpu_node.errors import ModelError
from gpu_node.gguf_config import FACTOR_TENSORS, config_values
from gpu_node.gguf_header import GgufHeader, GgufTensor, read_gguf_header


class GgufSource:
    def __init__(self, path: Path, header: GgufHeader | None = None) -> None:
        """Raises `ModelError` for a torn or hostile file and for one whose architecture is not known."""
        self._path = path
        self.header = header or read_gguf_header(path)
        self._file = WeightFile(path)
        try:
            values = config_values(self.header, self._factors())
            self._origins = origins(self.header, values)
            self._config = AutoConfig.for_model(**values)
        except BaseException:
            self.close()
            raise

    @property
    def config(self) -> Any:
        return self._config

    @property
    def label(self) -> str:
        return self._path.name

    @property
    def stored_dtype(self) -> torch.dtype:
        """Quantised types were made from 16-bit weights, and hold less than those."""
        kinds = {tensor.block.name for tensor in self.header.tensors if len(tensor.shape) > 1}
        return torch.float32 if kinds <= {"F32"} else torch.float16 if kinds <= {"F32", "F16"} else torch.bfloat16

    def names(self) -> Collection[str]:
        return self._origins.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._origin(name).shape

    def dtype(self, name: str) -> str:
        return self._origin(name).tensors[0].block.name

    def file_bytes(self, name: str) -> int:
        return sum(tensor.size_bytes for tensor in self._origin(name).tensors)

    def read_into(self, name: str, target: Tensor) -> None:
        origin = self._origin(name)
        check_target(self.label, name, origin.shape, target)
        for tensor, part in zip(origin.tensors, _parts(origin, target), strict=True):
            self._unpack(tensor, origin, part)

    def is_quantised(self, name: str) -> bool:
        origin = self._origin(name)
        tensor = origin.tensors[0]
        whole = len(origin.tensors) == 1 and len(tensor.shape) == 2 and not origin.offset
        return whole and origin.layout != "transposed" and tensor.block.name in DECODERS

    def quantised(self, name: str) -> QuantisedWeight | None:
        if not self.is_quantised(name):
            return None
        origin = self._origin(name)
        tensor = origin.tensors[0]
        order = file_rows(origin.layout, tensor.shape[0], origin.heads)
        places = torch.arange(tensor.shape[0]) if order is None else torch.argsort(order)
        weight: QuantisedWeight | None = None
        for begin, raw in self._pieces(tensor, torch.device("cpu")):
            piece = decoded(raw, tensor.block.name, tensor.shape[1])
            weight = weight or _empty_like(piece, tensor.shape[0])
            _fill(weight, places[begin : begin + len(raw)], piece)
        return weight

    def close(self) -> None:
        self._file.close()

    def _factors(self) -> dict[str, list[float]]:
        found = {}
        for tensor in self.header.tensors:
            if tensor.name in FACTOR_TENSORS:
                values = torch.empty(tensor.shape)
                self._unpack(tensor, Origin((tensor,)), values)
                found[tensor.name] = values.tolist()
        return found

    def _unpack(self, tensor: GgufTensor, origin: Origin, target: Tensor) -> None:
        columns = tensor.shape[-1]
        write = _writer(origin, tensor, target)
        for begin, raw in self._pieces(tensor, target.device):
            values = numbers(raw, tensor.block.name, columns)
            write(begin, values - origin.offset if origin.offset else values)

    def _pieces(self, tensor: GgufTensor, device: torch.device) -> Iterator[tuple[int, Tensor]]:
        """First row and raw bytes [rows, bytes of a row]; each is valid until the next is asked for."""
        step = rows_a_piece(tensor.row_bytes)
        for begin in range(0, tensor.rows, step):
            rows = min(step, tensor.rows - begin)
            offset = tensor.offset + begin * tensor.row_bytes
            raw = self._file.staged(offset, rows * tensor.row_bytes, device)
            yield begin, raw.view(rows, tensor.row_bytes)

    def _origin(self, name: str) -> Origin:
        found = self._origins.get(name)
        if found is None:
            raise ModelError(f"{self.label} holds no weight {name}")
        return found


def file_rows(layout: Layout, rows: int, heads: int) -> Tensor | None:
    """For each row of the parameter the row of the file that belongs there; None where they are the same."""
    if layout == "pairs":  # rotary pairs side by side in the file, halves of a head apart in the model
        return torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).reshape(-1)
    if layout == "thirds":  # all queries, all keys, all values in the file; head by head in the model
        return torch.arange(rows).view(3, heads, rows // heads // 3).transpose(0, 1).reshape(-1)
    return None


def _parts(origin: Origin, target: Tensor) -> tuple[Tensor, ...]:
    return (target,) if len(origin.tensors) == 1 else tuple(target.chunk(2, dim=1))


def _writer(origin: Origin, tensor: GgufTensor, target: Tensor) -> Callable[[int, Tensor], None]:
    """Puts rows of the file where they belong in the target."""
    if len(tensor.shape) == 1:
        order = file_rows(origin.layout, tensor.shape[0], origin.heads)
        return lambda begin, values: _copy(target, values[0] if order is None else values[0][order.to(values.device)])
    if origin.layout == "transposed":
        return lambda begin, values: _copy(target[:, begin : begin + len(values)], values.T)
    if len(tensor.shape) == 3:
        return lambda begin, values: _copy_experts(target, begin, values)
    order = file_rows(origin.layout, tensor.shape[0], origin.heads)
    if order is None:
        return lambda begin, values: _copy(target[begin : begin + len(values)], values)
    places = torch.argsort(order).to(target.device)
    return lambda begin, values: _place(target, places[begin : begin + len(values)], values)


def _copy(target: Tensor, values: Tensor) -> None:
    target.copy_(values)


def _place(target: Tensor, places: Tensor, values: Tensor) -> None:
    target[places] = values.to(target.dtype)


def _copy_experts(target: Tensor, begin: int, values: Tensor) -> None:
    """Rows of a stack of matrices, which may lie apart in the target."""
    rows = target.shape[1]
    while len(values):
        expert, row = divmod(begin, rows)
        count = min(rows - row, len(values))
        target[expert, row : row + count].copy_(values[:count])
        values, begin = values[count:], begin + count


def _empty_like(piece: QuantisedWeight, rows: int) -> QuantisedWeight:
    codes, scales = (part.new_empty(rows, part.shape[1]) for part in (piece.codes, piece.scales))
    minima = None if piece.minima is None else piece.minima.new_empty(rows, piece.minima.shape[1])
    return QuantisedWeight(codes, scales, minima, piece.group, piece.bits, (rows, piece.shape[1]))


def _fill(weight: QuantisedWeight, places: Tensor, piece: QuantisedWeight) -> None:
    weight.codes[places] = piece.codes
    weight.scales[places] = piece.scales
    if weight.minima is not None and piece.minima is not None:
        weight.minima[places] = piece.minima
