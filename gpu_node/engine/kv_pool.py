"""The memory of keys and values: one tensor of blocks, handed out by number.

Invariants: a block is contiguous over all layers, so that it moves with one copy; within a layer its keys lie as
[kv_heads, block_tokens, key_dim] and its values follow likewise; slots of a block that were not written since `clear`
are finite, so that a masked product with them stays nothing. Must not know who owns a block, nor sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer keeps of a token."""

    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None  # it looks back so far, itself included; None: to the beginning

    @property
    def elements(self) -> int:
        return self.kv_heads * (self.key_dim + self.value_dim)


def token_bytes(shapes: Sequence[LayerShape], dtype: torch.dtype) -> int:
    """What one token takes in all layers."""
    return sum(shape.elements for shape in shapes) * dtype.itemsize


class KvPool:
    """`storage` has the shape [block_count, elements of a block]; fresh memory is zero and costs nothing until used."""

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        block_tokens: int,
        block_count: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        storage: Tensor | None = None,
    ) -> None:
        """`storage`: memory of this shape that is there already, all numbers in it finite. Raises torch's out-of-memory
        error, or `MemoryError`, when the device has no room."""
        self.shapes = tuple(shapes)
        self.block_tokens = block_tokens
        self.block_count = block_count
        self.dtype = dtype
        sizes = [shape.elements * block_tokens for shape in self.shapes]
        self._offsets = (0, *accumulate(sizes))
        self.storage = (
            _zeros(block_count, self._offsets[-1], dtype, torch.device(device)) if storage is None else storage
        )
        self._keys = tuple(self._layer(layer, values=False) for layer in range(len(self.shapes)))
        self._values = tuple(self._layer(layer, values=True) for layer in range(len(self.shapes)))

    @property
    def device(self) -> torch.device:
        return self.storage.device

    @property
    def block_bytes(self) -> int:
        return self._offsets[-1] * self.dtype.itemsize

    def keys(self, layer: int) -> Tensor:
        """[blocks, block_tokens, kv_heads, key_dim], a strided view."""
        return self._keys[layer]

    def values(self, layer: int) -> Tensor:
        """[blocks, block_tokens, kv_heads, value_dim], a strided view."""
        return self._values[layer]

    def write(self, layer: int, slots: tuple[Tensor, Tensor], key: Tensor, value: Tensor) -> None:
        """`slots`: block numbers and places in the block, [tokens] each; `key`, `value`: [tokens, kv_heads, dim]."""
        self._keys[layer].index_put_(slots, key.to(self.dtype))
        self._values[layer].index_put_(slots, value.to(self.dtype))

    def gather(self, layer: int, tables: Tensor, scratch: Scratch | None = None) -> tuple[Tensor, Tensor]:
        """Copies for `tables` [rows, n]: keys and values as [rows, kv_heads, n * block_tokens, dim], in `scratch` when
        one is given."""
        shape, offset = self.shapes[layer], self._offsets[layer]
        values_at = offset + shape.kv_heads * shape.key_dim * self.block_tokens
        return (
            self._gathered(self._keys[layer], offset, tables, scratch and scratch.named("keys")),
            self._gathered(self._values[layer], values_at, tables, scratch and scratch.named("values")),
        )

    def copy(self, source: int, target: int) -> None:
        """Everything that `source` holds, in every layer."""
        self.storage[target].copy_(self.storage[source])

    def clear(self, blocks: Iterable[int]) -> None:
        """To be called before a block's first slot is written, unless the same step fills it to its end."""
        for block in blocks:
            self.storage[block].zero_()

    def _layer(self, layer: int, values: bool) -> Tensor:
        shape, tokens = self.shapes[layer], self.block_tokens
        dim = shape.value_dim if values else shape.key_dim
        offset = self._offsets[layer] + (shape.kv_heads * shape.key_dim * tokens if values else 0)
        size = (self.block_count, tokens, shape.kv_heads, dim)
        return self.storage.as_strided(size, (self._offsets[-1], dim, tokens * dim, 1), offset)

    def _gathered(self, view: Tensor, offset: int, tables: Tensor, scratch: Scratch | None) -> Tensor:
        """A head's part of a block is one run of memory: where runs are aligned, one gather brings them in order."""
        rows, count = tables.shape
        _, tokens, heads, dim = view.shape
        run = tokens * dim
        if offset % run or self._offsets[-1] % run:
            blocks = view.index_select(0, tables.reshape(-1)).view(rows, count, tokens, heads, dim)
            return blocks.permute(0, 3, 1, 2, 4).reshape(rows, heads, count * tokens, dim)
        first = tables[:, None, :] * (self._offsets[-1] // run) + offset // run
        runs = (first + torch.arange(heads, device=tables.device)[:, None]).view(-1)
        source = self.storage.view(-1, run)
        if scratch is None:
            found = source.index_select(0, runs)
        else:
            found = scratch.take((runs.shape[0], run), self.dtype)
            torch.index_select(source, 0, runs, out=found)
        return found.view(rows, heads, count * tokens, dim)


class Scratch:
    """CPU memory that every layer uses anew: the page faults of fresh memory cost ten times what the copies do.

    What was taken is valid until the same name and dtype are taken again."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._name = ""

    def named(self, name: str) -> Scratch:
        self._name = name
        return self

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = math.prod(shape)
        buffer = self._buffers.get((self._name, dtype))
        if buffer is None or buffer.numel() < count:
            with torch.inference_mode(False):
                buffer = self._buffers[self._name, dtype] = torch.empty(count, dtype=dtype)
        return buffer[:count].view(shape)

    def widened(self, part: Tensor, dtype: torch.dtype) -> Tensor:
        """`part` in `dtype`, itself where it is so already."""
        return part if part.dtype is dtype else self.take(tuple(part.shape), dtype).copy_(part)


def _zeros(blocks: int, elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """On CPUs the pages stay untouched until they are written; torch's own zeros would write them all."""
    if device.type != "cpu" or blocks == 0:
        return torch.zeros((blocks, elements), dtype=dtype, device=device)
    raw = torch.from_numpy(numpy.zeros(blocks * elements * dtype.itemsize, dtype=numpy.uint8))
    return raw.view(dtype).view(blocks, elements)
