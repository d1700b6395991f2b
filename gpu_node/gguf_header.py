"""Reads the description at the front of a GGUF file: enough to name, judge and load it, without reading its weights.

Standard library only. The file may be anything, so every count, length and offset in it is held against a bound or
against the file's size before it is used. Long arrays (the vocabulary) are walked over unless they are asked for.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpu_node.errors import ModelError

MAGIC = b"GGUF"
# Real files have a few dozen entries and vocabularies below a million; more is a broken or hostile file.
MAX_ENTRIES = 10_000
MAX_STRING_BYTES = 1 << 22
MAX_ARRAY_ITEMS = 1 << 24
# The largest models split experts into at most a few thousand tensors.
MAX_TENSORS = 1 << 17
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 1 << 10
# Per-layer numbers are kept, vocabularies are not.
KEPT_ITEMS = 4096

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# general.file_type, as far as such files are common; for other numbers the tensors say what they are.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BlockType:
    """How a tensor's values lie in the file: so many values in so many bytes, again and again."""

    name: str
    values: int
    size_bytes: int


BLOCK_TYPES = {
    number: BlockType(*entry)
    for number, entry in {
        0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
        12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66),
        17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18),
        21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1),
        25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
        30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    }.items()
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """`shape` is outermost first, as torch has it; `offset` counts from the beginning of the file."""

    name: str
    type: int
    shape: tuple[int, ...]
    offset: int

    @property
    def block(self) -> BlockType:
        return BLOCK_TYPES[self.type]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return self.shape[-1] // self.block.values * self.block.size_bytes

    @property
    def size_bytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class GgufHeader:
    values: Mapping[str, Any]  # scalars, strings, short arrays of numbers, and the arrays that were asked for
    counts: Mapping[str, int]  # items of every array
    tensors: tuple[GgufTensor, ...] = ()

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", "unknown"))

    @property
    def quantisation(self) -> str:
        """As the file calls itself, else the type that most of its weights have."""
        named = _FILE_TYPES.get(self.values.get("general.file_type", -1))
        if named is not None:
            return named
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            sizes[tensor.block.name] += tensor.elements
        return sizes.most_common(1)[0][0] if sizes else "unknown"

    @property
    def pre_tokenizer(self) -> str:
        return str(self.values.get("tokenizer.ggml.pre", ""))


def read_gguf_header(path: Path, arrays: Collection[str] = ()) -> GgufHeader:
    """`arrays` names the long arrays to keep. Raises `ModelError` with one sentence for anything but a whole file."""
    try:
        with path.open("rb") as file:
            return _Reader(file, path.stat().st_size, arrays).header()
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise ModelError(f"{path} is not a whole GGUF file: {error}") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error


class _Reader:
    def __init__(self, file: BinaryIO, size: int, arrays: Collection[str]) -> None:
        self._file = file
        self._size = size
        self._arrays = arrays
        self._values: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def header(self) -> GgufHeader:
        if self._file.read(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version, tensors, entries = self._unpack("<IQQ")
        if version not in (2, 3):
            raise ValueError(f"its version {version} is unknown")
        if entries > MAX_ENTRIES:
            raise ValueError(f"it claims {entries} entries")
        if tensors > MAX_TENSORS:
            raise ValueError(f"it claims {tensors} tensors")
        for _ in range(entries):
            self._entry()
        return GgufHeader(self._values, self._counts, self._tensors(tensors))

    def _entry(self) -> None:
        name = self._string()
        kind = self._unpack("<I")[0]
        if kind == _ARRAY:
            self._array(name)
        elif kind == _STRING:
            self._values[name] = self._string()
        elif kind in _SCALARS:
            self._values[name] = self._unpack("<" + _SCALARS[kind])[0]
        else:
            raise ValueError(f"it holds a value of unknown type {kind}")

    def _array(self, name: str) -> None:
        kind, count = self._unpack("<IQ")
        if count > MAX_ARRAY_ITEMS:
            raise ValueError(f"it claims an array of {count} items")
        self._counts[name] = count
        if kind in _SCALARS:
            self._numbers(name, _SCALARS[kind], count)
        elif kind == _STRING:
            self._strings(name, count)
        else:
            raise ValueError(f"it holds an array of unknown type {kind}")

    def _numbers(self, name: str, form: str, count: int) -> None:
        size = count * struct.calcsize("<" + form)
        if count <= KEPT_ITEMS or name in self._arrays:
            self._check_left(size)
            self._values[name] = struct.unpack(f"<{count}{form}", self._exactly(size))
        else:
            self._file.seek(size, 1)

    def _strings(self, name: str, count: int) -> None:
        self._check_left(8 * count)
        if name in self._arrays:
            self._values[name] = tuple(self._string() for _ in range(count))
            return
        for _ in range(count):
            self._file.seek(self._string_size(), 1)

    def _tensors(self, count: int) -> tuple[GgufTensor, ...]:
        self._check_left(24 * count)  # the least that a tensor's entry takes
        found = [self._tensor() for _ in range(count)]
        alignment = self._values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise ValueError(f"its alignment {alignment} is none")
        start = -(-self._file.tell() // alignment) * alignment
        names = {tensor.name for tensor in found}
        if len(names) != len(found):
            raise ValueError("it names a tensor twice")
        placed = tuple(GgufTensor(t.name, t.type, t.shape, start + t.offset) for t in found)
        for tensor in placed:
            if tensor.offset + tensor.size_bytes > self._size:
                raise ValueError(f"the tensor {tensor.name} reaches beyond its end")
        return placed

    def _tensor(self) -> GgufTensor:
        name = self._string(MAX_NAME_BYTES)
        dimensions = self._unpack("<I")[0]
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"the tensor {name} has {dimensions} dimensions")
        shape = self._unpack(f"<{dimensions}Q")[::-1]
        kind, offset = self._unpack("<IQ")
        if kind not in BLOCK_TYPES:
            raise ValueError(f"the tensor {name} is of the unknown type {kind}")
        if min(shape) < 1 or math.prod(shape) > self._size * BLOCK_TYPES[kind].values:
            raise ValueError(f"the tensor {name} claims the shape {list(shape)}")
        if shape[-1] % BLOCK_TYPES[kind].values:
            raise ValueError(f"the tensor {name} has rows of {shape[-1]}, which are no whole blocks")
        return GgufTensor(name, kind, shape, offset)

    def _string(self, limit: int = MAX_STRING_BYTES) -> str:
        return self._exactly(self._string_size(limit)).decode()

    def _string_size(self, limit: int = MAX_STRING_BYTES) -> int:
        size = int(self._unpack("<Q")[0])
        if size > limit:
            raise ValueError(f"it claims a text of {size} bytes")
        return size

    def _check_left(self, size: int) -> None:
        if size > self._size - self._file.tell():
            raise ValueError("it ends too early")

    def _unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._exactly(struct.calcsize(form)))

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError("it ends too early")
        return data
