"""A tensor of a client as what a model reads: whole numbers are token ids, reals are embeddings.

Invariants: the shape is judged before any element is looked at; leading dimensions of 1 count for nothing; every type
of the protocol is read or refused, none is guessed. Must not know sessions, buffers or models.
"""

from __future__ import annotations

from math import prod
from typing import Any

from gpu_node.engine.sequence import InputVectors
from gpu_node.errors import RequestError, Unsupported
from wire.frames import Buffer
from wire.tensors import DType

WHOLE = {
    DType.UINT8: "u1", DType.UINT16: "<u2", DType.UINT32: "<u4", DType.UINT64: "<u8",
    DType.INT8: "i1", DType.INT16: "<i2", DType.INT32: "<i4", DType.INT64: "<i8",
}  # fmt: skip
REALS = {DType.FLOAT16: "<f2", DType.FLOAT32: "<f4", DType.FLOAT64: "<f8"}
# Those that numpy does not know.
SHORT_REALS = (DType.BFLOAT16, DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2)


def are_ids(dtype: DType) -> bool:
    """Raises `Unsupported` for what is neither ids nor embeddings."""
    if dtype in WHOLE:
        return True
    if dtype in REALS or dtype in SHORT_REALS:
        return False
    raise Unsupported(f"a model reads token ids or embeddings, not {dtype.name}", field="inputs")


def tokens_in(dtype: DType, shape: tuple[int, ...]) -> int:
    """How many there are. Raises `RequestError` for a shape that is not one text."""
    own = 1 if are_ids(dtype) else 2
    leading, rest = shape[:-own], shape[-own:]
    if prod(leading) != 1 or (own == 2 and len(rest) < 2):
        wanted = "(tokens,)" if own == 1 else "(tokens, hidden size)"
        raise RequestError(f"a tensor of shape {shape} is not one text; {wanted} is", field="inputs")
    return rest[0] if rest else 1


def ids_of(dtype: DType, data: Buffer) -> tuple[int, ...]:
    import numpy

    return tuple(numpy.frombuffer(data, WHOLE[dtype]).tolist())


def vectors_of(dtype: DType, shape: tuple[int, ...], data: Buffer) -> InputVectors:
    """In single precision; `data` itself where it is that already."""
    width = shape[-1]
    if dtype is DType.FLOAT32:
        return InputVectors(memoryview(data), (shape[-2], width))
    numbers = _singles(dtype, data)
    return InputVectors(memoryview(numbers).cast("B") if len(numbers) else b"", (shape[-2], width))


def _singles(dtype: DType, data: Buffer) -> Any:
    """One flat float32 array; numbers beyond its range become infinite, which the engine refuses."""
    import numpy

    with numpy.errstate(all="ignore"):
        if dtype in REALS:
            return numpy.frombuffer(data, REALS[dtype]).astype("<f4")
        if dtype is DType.BFLOAT16:  # the upper half of a single
            return (numpy.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
        table = _e5m2() if dtype is DType.FLOAT8_E5M2 else _e4m3fn()
        return table[numpy.frombuffer(data, "u1")]


def _e5m2() -> Any:
    """All 256 of them: the upper half of a float16."""
    import numpy

    return (numpy.arange(256, dtype="<u2") << 8).view("<f2").astype("<f4")


def _e4m3fn() -> Any:
    """All 256 of them: exponents of 4 bits with bias 7, nothing infinite, and one mantissa for "not a number" (OCP
    8-bit floating point specification, revision 1.0)."""
    import numpy

    bits = numpy.arange(256)
    sign, exponent, mantissa = 1 - 2 * (bits >> 7), bits >> 3 & 15, bits & 7
    found = numpy.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7)) * sign
    found[(bits & 127) == 127] = numpy.nan
    return found.astype("<f4")
