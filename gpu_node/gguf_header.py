"""Reads the description at the front of a GGUF file: enough to name, judge and convert it, without loading it.

Standard library only. Every length in the file is checked against a bound before it is used, since the file may be
anything; long arrays (the vocabulary) are walked over, not kept.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpu_node.errors import ModelError

MAGIC = b"GGUF"
# Real files have a few dozen entries and vocabularies below a million; more is a broken or hostile file.
MAX_ENTRIES = 10_000
MAX_STRING_BYTES = 1 << 22
MAX_ARRAY_ITEMS = 1 << 24

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# general.file_type, as far as such files are common; other numbers are shown as "unknown".
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufHeader:
    values: Mapping[str, Any]  # scalars and strings only

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", "unknown"))

    @property
    def quantisation(self) -> str:
        return _FILE_TYPES.get(self.values.get("general.file_type", -1), "unknown")

    @property
    def pre_tokenizer(self) -> str:
        return str(self.values.get("tokenizer.ggml.pre", ""))


def read_gguf_header(path: Path) -> GgufHeader:
    try:
        with path.open("rb") as file:
            return _Reader(file).header()
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise ModelError(f"{path} is not a whole GGUF file: {error}") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def header(self) -> GgufHeader:
        if self._file.read(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version, _tensors, entries = self._unpack("<IQQ")
        if version not in (2, 3):
            raise ValueError(f"its version {version} is unknown")
        if entries > MAX_ENTRIES:
            raise ValueError(f"it claims {entries} entries")
        values: dict[str, Any] = {}
        for _ in range(entries):
            name = self._string()
            value = self._value(self._unpack("<I")[0])
            if value is not None:
                values[name] = value
        return GgufHeader(values)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._skip_array()
        if kind not in _SCALARS:
            raise ValueError(f"it holds a value of unknown type {kind}")
        return self._unpack("<" + _SCALARS[kind])[0]

    def _skip_array(self) -> None:
        kind, count = self._unpack("<IQ")
        if count > MAX_ARRAY_ITEMS:
            raise ValueError(f"it claims an array of {count} items")
        if kind in _SCALARS:
            self._file.seek(count * struct.calcsize("<" + _SCALARS[kind]), 1)
        elif kind == _STRING:
            for _ in range(count):
                self._file.seek(self._string_size(), 1)
        else:
            raise ValueError(f"it holds an array of unknown type {kind}")

    def _string(self) -> str:
        return self._exactly(self._string_size()).decode()

    def _string_size(self) -> int:
        size = int(self._unpack("<Q")[0])
        if size > MAX_STRING_BYTES:
            raise ValueError(f"it claims a text of {size} bytes")
        return size

    def _unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._exactly(struct.calcsize(form)))

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError("it ends too early")
        return data
