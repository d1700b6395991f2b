"""Arrays of any library as bytes with a type and a shape, and back, without importing any of them.

What has the buffer protocol (numpy arrays, `array`, memoryviews, bytes) is taken as it lies; what comes from a node is
a `TensorData`, whose bytes numpy, torch and others can use in place. Copies are made only of what is not contiguous and
of plain lists. Knows no node.
"""

from __future__ import annotations

import array
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wire.tensors import RANK_MOST, DType, tensor_bytes

from .errors import Misuse

if TYPE_CHECKING:
    import numpy

__all__ = ["ArrayLike", "TensorData", "dtype_named", "named", "tensor_of"]

# Anything with the buffer protocol or `__array_interface__`, a `TensorData`, a number, or lists of numbers.
ArrayLike = Any

_NAMES = {kind.name.lower(): kind for kind in DType}
_FORMATS = {
    "?": DType.BOOL, "B": DType.UINT8, "c": DType.UINT8, "b": DType.INT8, "e": DType.FLOAT16, "f": DType.FLOAT32,
    "d": DType.FLOAT64, "Zf": DType.COMPLEX64, "Zd": DType.COMPLEX128,
}  # fmt: skip
_WHOLE = {(True, size): DType[f"INT{8 * size}"] for size in (1, 2, 4, 8)} | {
    (False, size): DType[f"UINT{8 * size}"] for size in (1, 2, 4, 8)
}
_TYPESTRS = {
    DType.BOOL: "|b1", DType.UINT8: "|u1", DType.INT8: "|i1", DType.UINT16: "<u2", DType.UINT32: "<u4",
    DType.UINT64: "<u8", DType.INT16: "<i2", DType.INT32: "<i4", DType.INT64: "<i8", DType.FLOAT16: "<f2",
    DType.FLOAT32: "<f4", DType.FLOAT64: "<f8", DType.COMPLEX64: "<c8", DType.COMPLEX128: "<c16",
}  # fmt: skip
_CASTS = {
    DType.BOOL: "?", DType.UINT8: "B", DType.INT8: "b", DType.UINT16: "H", DType.INT16: "h", DType.UINT32: "I",
    DType.INT32: "i", DType.UINT64: "Q", DType.INT64: "q", DType.FLOAT32: "f", DType.FLOAT64: "d",
}  # fmt: skip
_ARRAY_CODES = {"?": "B"}  # an `array` has no flags


@dataclass(frozen=True, slots=True, eq=False)
class TensorData:
    """The elements of a tensor, little-endian in C order: `data` is flat bytes, `dtype` a name such as "float32".

    `numpy.asarray(it)` and `torch.as_tensor(it)` use the bytes in place. bfloat16 and float8 are not known to numpy:
    take `data`, or `potluck.torch`.
    """

    data: memoryview
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def __array_interface__(self) -> dict[str, Any]:
        typestr = _TYPESTRS.get(dtype_named(self.dtype))
        if typestr is None:
            raise AttributeError(f"numpy has no {self.dtype}")
        return {"version": 3, "shape": self.shape, "typestr": typestr, "data": self.data}

    def numpy(self) -> numpy.ndarray[Any, Any]:
        """The same memory as a numpy array. Raises Misuse for types that numpy has not."""
        import numpy

        if dtype_named(self.dtype) not in _TYPESTRS:
            raise Misuse(f"numpy has no {self.dtype}; take the bytes in data")
        return numpy.asarray(self)

    def tolist(self) -> Any:
        """The elements as nested lists. Raises Misuse for types that Python has no numbers for."""
        code = _CASTS.get(dtype_named(self.dtype))
        if code is None:
            raise Misuse(f"Python has no numbers of type {self.dtype}; take the bytes in data")
        numbers = array.array(_ARRAY_CODES.get(code, code))
        numbers.frombytes(self.data)
        flat: list[Any] = list(map(bool, numbers)) if code == "?" else numbers.tolist()
        for size in reversed(self.shape[1:]):
            flat = [flat[at : at + size] for at in range(0, len(flat), size)] if size else [[]] * self.shape[0]
        return flat if self.shape else flat[0]


def named(kind: DType) -> str:
    return kind.name.lower()


def dtype_named(name: str) -> DType:
    """Raises Misuse for a name that no tensor has, with the names there are."""
    kind = _NAMES.get(name.rpartition(".")[2])  # "torch.float32" is how torch says it
    if kind is None:
        raise Misuse(f"no tensor is of type {name!r}; types are {', '.join(_NAMES)}")
    return kind


def tensor_of(source: ArrayLike, dtype: str | None = None, shape: Sequence[int] | None = None) -> TensorData:
    """`source` as it lies in memory; `dtype` and `shape` say what bytes mean, or must agree with what is there.

    Raises Misuse for what is no array, has an unknown type, or another size than the shape.
    """
    if isinstance(source, TensorData):
        return _as_asked(source, dtype, shape)
    if isinstance(source, bool | int | float | list | tuple):
        return _as_asked(_of_numbers(source, dtype), dtype, shape)
    view = _view_of(source)
    return _as_asked(TensorData(_flat(view), named(_kind_of(view)), tuple(view.shape or ())), dtype, shape)


def _as_asked(found: TensorData, dtype: str | None, shape: Sequence[int] | None) -> TensorData:
    kind = dtype_named(dtype or found.dtype)
    if kind is not dtype_named(found.dtype) and dtype_named(found.dtype) is not DType.UINT8:
        raise Misuse(f"the array holds {found.dtype} and not {dtype}; convert it first")
    reads_bytes = kind is not dtype_named(found.dtype)
    if shape is None and reads_bytes:
        raise Misuse(f"bytes that are {named(kind)} need a shape")
    wanted = found.shape if shape is None else tuple(shape)
    if len(wanted) > RANK_MOST:
        raise Misuse(f"a tensor has at most {RANK_MOST} dimensions")
    if any(size < 0 for size in wanted) or tensor_bytes(kind, wanted) != found.data.nbytes:
        raise Misuse(f"{found.data.nbytes} bytes are no {named(kind)} of shape {wanted}")
    return TensorData(found.data, named(kind), wanted)


def _view_of(source: ArrayLike) -> memoryview:
    try:
        return memoryview(source)
    except TypeError:
        pass
    numpy = sys.modules.get("numpy")  # only where the caller has it anyway
    if numpy is None or not (hasattr(source, "__array__") or hasattr(source, "__array_interface__")):
        raise Misuse(f"{type(source).__name__} is no array: give something with the buffer protocol, or numbers")
    return memoryview(numpy.asarray(source))


def _kind_of(view: memoryview) -> DType:
    letters = view.format.lstrip("@=<")
    if letters in _FORMATS:
        return _FORMATS[letters]
    if letters in tuple("bBhHiIlLqQnN"):
        return _WHOLE[letters.islower(), view.itemsize]
    raise Misuse(f"arrays with elements of format {view.format!r} are not known here")


def _flat(view: memoryview) -> memoryview:
    if not view.nbytes:
        return memoryview(b"")
    if view.c_contiguous:
        try:
            return view.cast("B")
        except TypeError:  # half and complex numbers, which older Pythons cannot cast
            pass
    return memoryview(view.tobytes())  # in C order


def _of_numbers(numbers: Any, dtype: str | None) -> TensorData:
    flat, shape = _flattened(numbers)
    whole = all(isinstance(number, int) for number in flat)
    kind = dtype_named(dtype) if dtype else DType.INT64 if whole and flat else DType.FLOAT32
    code = _CASTS.get(kind)
    if code is None:
        raise Misuse(f"Python's numbers cannot become {named(kind)}; give bytes and a shape")
    try:
        made = array.array(_ARRAY_CODES.get(code, code), list(map(bool, flat)) if code == "?" else flat)
    except (TypeError, OverflowError) as error:
        raise Misuse(f"not all of these are {named(kind)}: {error}") from error
    return TensorData(memoryview(made.tobytes()), named(kind), shape)


def _flattened(numbers: Any) -> tuple[list[Any], tuple[int, ...]]:
    """The numbers in one row, and the shape that they had. Raises Misuse for rows of different lengths."""
    shape: list[int] = []
    row = [numbers]
    while row and isinstance(row[0], list | tuple):
        size = len(row[0])
        if not all(isinstance(each, list | tuple) and len(each) == size for each in row):
            raise Misuse("the rows of the list are of different lengths")
        shape.append(size)
        row = [each for part in row for each in part]
    if any(isinstance(each, list | tuple) for each in row):
        raise Misuse("the rows of the list are of different depths")
    assert math.prod(shape) == len(row), "every row was counted"
    return row, tuple(shape)
