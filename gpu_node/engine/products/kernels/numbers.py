"""How numbers lie in memory and how a kernel computes exp and its relatives on eight of them.

Invariants: NaN stays NaN through every function here, in 16-bit memory too. Must not know what the numbers mean.
"""

from __future__ import annotations

import math
from typing import Literal

from gpu_node.engine.products.kernels.emitter import F32, HALF, I16, I32, LANES, Emitter, Value, lanes

Kind = Literal["f32", "bf16", "f16"]
KIND_BYTES: dict[Kind, int] = {"f32": 4, "bf16": 2, "f16": 2}

LEAST_EXPONENT = -87.33654  # exp of less is no normal number any more
GREATEST_EXPONENT = 88.3762
# 1.5 * 2^23: added to a small number it leaves the nearest integer in the low bits.
ROUNDING = 12582912.0
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
# exp(r) on |r| <= ln(2) / 2, after Cephes' expf (Moshier): relative error below 2e-7.
EXP_TERMS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def load_numbers(e: Emitter, address: Value, kind: Kind, count: int = LANES) -> Value:
    """`count` neighbours in memory as single precision."""
    wide = lanes(F32, count)
    if kind == "f32":
        return e.load(address, wide)
    if kind == "f16":
        return e.widen(e.load(address, lanes(HALF, count)), wide)
    return e.cast(e.widen(e.load(address, lanes(I16, count)), lanes(I32, count)) << 16, wide)


def store_numbers(e: Emitter, address: Value, value: Value, kind: Kind) -> None:
    """A vector, rounded to nearest, ties to even."""
    if kind == "f32":
        e.store(address, value)
    elif kind == "f16":
        e.store(address, e.narrow(value, lanes(HALF, value.type.count)))
    else:
        bits = e.cast(value, lanes(I32, value.type.count))
        rounded = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
        whole = e.select(value.equals(value), rounded, 0x7FC0)  # rounding would carry a NaN's bits into the sign
        e.store(address, e.narrow(whole, lanes(I16, value.type.count)))


def exponential(e: Emitter, x: Value) -> Value:
    """exp(x); 0 below the least normal number, infinity above the greatest."""
    clamped = e.select(x > GREATEST_EXPONENT, e.like(x, GREATEST_EXPONENT), x)
    shifted = clamped * math.log2(math.e) + ROUNDING
    whole = shifted - ROUNDING
    rest = e.fused(whole, e.like(x, -LN2_HIGH), clamped)
    rest = e.fused(whole, e.like(x, -LN2_LOW), rest)
    series = e.like(x, EXP_TERMS[0])
    for term in EXP_TERMS[1:]:
        series = e.fused(series, rest, e.like(x, term))
    series = e.fused(series * rest, rest, rest + 1.0)
    integers = I32 if x.type == F32 else lanes(I32, x.type.count)
    power = e.cast((e.cast(shifted, integers) + 127) << 23, x.type)
    result = e.select(x > GREATEST_EXPONENT, e.like(x, math.inf), series * power)
    return e.select(x < LEAST_EXPONENT, e.like(x, 0.0), result)


def sigmoid(e: Emitter, x: Value) -> Value:
    return e.like(x, 1.0) / (exponential(e, x * -1.0) + 1.0)


def hyperbolic_tangent(e: Emitter, x: Value) -> Value:
    """2 / (1 + exp(-2 x)) - 1: the error is absolute (1e-7), which a soft cap and GELU can bear."""
    return sigmoid(e, x * 2.0) * 2.0 - 1.0
