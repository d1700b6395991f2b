"""The code of what lies between the products: norms, rotary positions, writing to the cache, gates.

Every dimension is a multiple of 8 and every row without gaps; rows may lie apart. Must not know torch.
"""

from __future__ import annotations

from typing import Literal

from gpu_node.engine.products.kernels.availability import Target
from gpu_node.engine.products.kernels.emitter import F32, LANES, Emitter, Value, lanes
from gpu_node.engine.products.kernels.numbers import KIND_BYTES, Kind, hyperbolic_tangent, sigmoid, store_numbers

Activation = Literal["silu", "gelu_tanh"]
# GELU by tanh: x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))).
GELU_SLOPE, GELU_CUBE = 0.7978845608028654, 0.044715


def write_norm(name: str, target: Target) -> str:
    """Arguments: x, its stride, rows, columns, weight, epsilon's bits, y, its stride, delta or 0, its stride.

    x += delta where there is one; y = weight * x / sqrt(mean(x^2) + epsilon). x and y may be the same.
    """
    e = Emitter(name, target.triple)
    x, x_stride, rows, columns, weight, epsilon, y, y_stride, delta, delta_stride = e.arguments(10)
    size = e.number(columns, F32)
    begin, end = e.share(rows)
    with e.loop(begin, end) as row:
        source, result = x + row * x_stride * 4, y + row * y_stride * 4
        with e.when(e.integer(0) < delta), e.loop(0, columns, LANES) as column:
            change = e.load(delta + (row * delta_stride + column) * 4, lanes(F32))
            e.store(source + column * 4, e.load(source + column * 4, lanes(F32)) + change)
        squares = e.variable(e.constant(lanes(F32), 0.0))
        with e.loop(0, columns, LANES) as column:
            part = e.load(source + column * 4, lanes(F32))
            squares.set(e.fused(part, part, squares.get()))
        mean = e.total(squares.get()) / size
        factor = e.splat(e.like(mean, 1.0) / e.root(mean + e.float_bits(epsilon)))
        with e.loop(0, columns, LANES) as column:
            part = e.load(source + column * 4, lanes(F32)) * factor
            e.store(result + column * 4, part * e.load(weight + column * 4, lanes(F32)))
    return e.finish()


def write_rotation(name: str, target: Target) -> str:
    """Arguments: x, its stride, tokens, heads, size of a head, half the rotated size, cosines, sines, their stride.

    In place, the convention of GPT-NeoX and transformers: number i of a head turns with number i + half.
    """
    e = Emitter(name, target.triple)
    x, stride, tokens, heads, size, half, cosines, sines, table_stride = e.arguments(9)
    begin, end = e.share(tokens * heads)
    with e.loop(begin, end) as unit:
        token, head = unit // heads, unit % heads
        start = x + (token * stride + head * size) * 4
        with e.loop(0, half, LANES) as index:
            place = (token * table_stride + index) * 4
            cosine, sine = (e.load(table + place, lanes(F32)) for table in (cosines, sines))
            low_at = start + index * 4
            high_at = low_at + half * 4
            low, high = e.load(low_at, lanes(F32)), e.load(high_at, lanes(F32))
            e.store(low_at, low * cosine - high * sine)
            e.store(high_at, high * cosine + low * sine)
    return e.finish()


def write_store(kind: Kind, name: str, target: Target) -> str:
    """Arguments: x, its stride, tokens, heads, size of a head, pool, strides of block, token, head, blocks, places.

    x [tokens, heads, size] goes to the pool's (block, place) of each token, rounded to the pool's kind.
    """
    e = Emitter(name, target.triple)
    x, stride, tokens, heads, size, pool, block_stride, token_stride, head_stride, blocks, places = e.arguments(11)
    begin, end = e.share(tokens * heads)
    with e.loop(begin, end) as unit:
        token, head = unit // heads, unit % heads
        block, place = e.load(blocks + token * 8, token.type), e.load(places + token * 8, token.type)
        slot = block * block_stride + place * token_stride + head * head_stride
        source, result = x + (token * stride + head * size) * 4, pool + slot * KIND_BYTES[kind]
        with e.loop(0, size, LANES) as index:
            part = e.load(source + index * 4, lanes(F32))
            store_numbers(e, result + index * KIND_BYTES[kind], part, kind)
    return e.finish()


def write_gate(activation: Activation, name: str, target: Target) -> str:
    """Arguments: gates, their stride, raised numbers, their stride, tokens, columns, y, its stride.

    y = activation(gate) * up.
    """
    e = Emitter(name, target.triple)
    gates, gate_stride, ups, up_stride, tokens, columns, y, y_stride = e.arguments(8)
    begin, end = e.share(columns, LANES)
    with e.loop(0, tokens) as token, e.loop(begin, end, LANES) as column:
        gate = e.load(gates + (token * gate_stride + column) * 4, lanes(F32))
        up = e.load(ups + (token * up_stride + column) * 4, lanes(F32))
        e.store(y + (token * y_stride + column) * 4, _activated(e, gate, activation) * up)
    return e.finish()


def _activated(e: Emitter, x: Value, activation: Activation) -> Value:
    if activation == "silu":
        return x * sigmoid(e, x)
    inner = (x * x * GELU_CUBE + 1.0) * x * GELU_SLOPE
    return x * 0.5 * (hyperbolic_tangent(e, inner) + 1.0)
