"""What a model's layers may ask of compiled kernels: operations over tensors, and programs of them.

Every method but `run`, `program` and `close` only describes: it checks shapes, so that code without checks never
reads or writes elsewhere, and gives operations. Tensors of an operation stay where they are and may change their
contents between runs. All activations are float32. Must not know models.

    kernels = open_kernels(folder, threads=2)          # None where kernels cannot be compiled
    weight = dense_weight(tensor) or packed_weight(quantised)
    kernels.run(kernels.multiply(weight, x, y))         # once
    step = kernels.program([*kernels.normalise(...), *kernels.multiply(...), ...])
    step.run()                                          # as often as wanted, one call for all of it
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gpu_node.engine.products.kernels import availability
from gpu_node.engine.products.kernels.attention_code import LONGEST_BLOCK, MOST_NUMBERS, MOST_SHARING
from gpu_node.engine.products.kernels.catalogue import QUANTISER, catalogue
from gpu_node.engine.products.kernels.library import KernelLibrary
from gpu_node.engine.products.kernels.program import INTERPRETER, Crew, Operation, Program
from gpu_node.engine.products.kernels.proof import proven
from gpu_node.engine.products.kernels.small_code import Activation
from gpu_node.engine.products.kernels.tensors import (
    NO_WINDOW,
    Look,
    Paged,
    RoundingRoom,
    address,
    check,
    check_heads,
    check_lanes,
    float_bits,
    pool_kind,
)
from gpu_node.engine.products.kernels.weights import GROUP, KernelWeight, Unsuitable

logger = logging.getLogger(__name__)

# What a thread takes at a time lasts some microseconds: less is lost in taking it, more leaves others without.
PIECE_BYTES = 1 << 16
PIECE_NUMBERS = 1 << 13


class Kernels:
    """Safe to use from several threads: several engines may share one."""

    def __init__(self, library: KernelLibrary, threads: int = 1) -> None:
        self.library = library
        self._crew = Crew(threads) if threads > 1 else None

    def run(self, operations: Sequence[Operation]) -> None:
        Program(self.library, operations, self._crew).run()

    def program(self, operations: Sequence[Operation]) -> Program:
        """Compiles what is missing: call it while loading."""
        return Program(self.library, operations, self._crew)

    def close(self) -> None:
        """Ends the threads. Idempotent."""
        if self._crew is not None:
            self._crew.close()

    def multiply(
        self, weight: KernelWeight, x: Tensor, y: Tensor, adds: bool = False, room: RoundingRoom | None = None
    ) -> tuple[Operation, ...]:
        """y = x W^T + b, or y += with `adds`. `x` [m, columns], `y` [m, rows]; rows of either may lie apart.

        Quantised weights round x to 8 bits for every 32 numbers first, as llama.cpp does. Any m works; with more rows
        than `weight.rows_worth_it` torch is quicker. `room`: for the rounded x; None: one of its own.
        """
        check(x, (x.shape[0], weight.columns))
        check(y, (x.shape[0], weight.rows))
        result = (x.shape[0], y.data_ptr(), y.stride(0), address(weight.bias), int(adds))
        if not weight.quantised:
            first = (weight.data.data_ptr(), weight.rows, weight.columns, x.data_ptr(), x.stride(0))
            return (
                Operation(weight.kernel, (*first, *result), (weight, x, y), weight.bytes // PIECE_BYTES, weight.bytes),
            )
        groups = weight.columns // GROUP
        room = room or RoundingRoom.of(x.shape[0], weight.columns)
        written = room.addresses(x.shape[0], weight.columns)
        source = (x.data_ptr(), x.stride(0), x.shape[0], groups)
        matrix = (weight.data.data_ptr(), weight.rows, groups)
        kept, pieces = (weight, room, y), weight.bytes // PIECE_BYTES
        return (
            Operation(QUANTISER, (*source, *written), (x, room), x.numel() // PIECE_NUMBERS),
            Operation(weight.kernel, (*matrix, *written, *result), kept, pieces, weight.bytes),
        )

    def normalise(
        self, x: Tensor, weight: Tensor, y: Tensor, epsilon: float, delta: Tensor | None = None
    ) -> tuple[Operation, ...]:
        """x += delta; y = weight * x / rms(x). All [rows, columns] but `weight` [columns]; y may be x.

        For a norm of every head, give views [tokens * heads, size].
        """
        rows, columns = x.shape
        check_lanes(columns)
        check(weight, (columns,))
        for tensor in (x, y) if delta is None else (x, y, delta):
            check(tensor, (rows, columns))
        source = (x.data_ptr(), x.stride(0), rows, columns, weight.data_ptr(), float_bits(epsilon))
        result = (y.data_ptr(), y.stride(0), address(delta), 0 if delta is None else delta.stride(0))
        return (Operation("norm", (*source, *result), (x, weight, y, delta), rows * columns // PIECE_NUMBERS),)

    def rotate(self, x: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Operation, ...]:
        """`x` [tokens, heads, size] in place; `cosines`, `sines` [tokens, half]: number i turns with number i + half.

        Numbers from 2 * half on stay. Queries and keys that lie behind one another are one x.
        """
        check_heads(x)
        tokens, heads, size = x.shape
        half = cosines.shape[1]
        check_lanes(half)
        for table in (cosines, sines):
            check(table, (tokens, half))
        if 2 * half > size or cosines.stride(0) != sines.stride(0):
            raise Unsuitable(f"{2 * half} rotated numbers do not fit into heads of {size}.")
        tables = (cosines.data_ptr(), sines.data_ptr(), cosines.stride(0))
        arguments = (x.data_ptr(), x.stride(0), tokens, heads, size, half, *tables)
        return (Operation("rotate", arguments, (x, cosines, sines), tokens * heads * size // PIECE_NUMBERS),)

    def store(self, x: Tensor, pool: Tensor, blocks: Tensor, places: Tensor) -> tuple[Operation, ...]:
        """`x` [tokens, kv_heads, size] into `pool` [blocks, block_tokens, kv_heads, size] at int64 (block, place)."""
        check_heads(x)
        tokens, heads, size = x.shape
        kind = pool_kind(pool)
        if tuple(pool.shape[2:]) != (heads, size):
            raise Unsuitable(f"{heads} heads of {size} do not belong into a cache of {tuple(pool.shape)}.")
        for index in (blocks, places):
            check(index, (tokens,), torch.int64)
        source = (x.data_ptr(), x.stride(0), tokens, heads, size)
        target = (pool.data_ptr(), *pool.stride()[:3], blocks.data_ptr(), places.data_ptr())
        return (
            Operation(
                f"store_{kind}", (*source, *target), (x, pool, blocks, places), tokens * heads * size // PIECE_NUMBERS
            ),
        )

    def gate(self, gates: Tensor, ups: Tensor, y: Tensor, activation: Activation = "silu") -> tuple[Operation, ...]:
        """y = activation(gates) * ups, all [rows, columns]; y may be one of the others, those halves of one product."""
        rows, columns = gates.shape
        check_lanes(columns)
        for tensor in (gates, ups, y):
            check(tensor, (rows, columns))
        source = (gates.data_ptr(), gates.stride(0), ups.data_ptr(), ups.stride(0))
        arguments = (*source, rows, columns, y.data_ptr(), y.stride(0))
        return (Operation(f"gate_{activation}", arguments, (gates, ups, y), rows * columns // PIECE_NUMBERS),)

    def attend(self, q: Tensor, paged: Paged, look: Look, y: Tensor) -> tuple[Operation, ...]:
        """`q` [tokens, heads, key_dim] over the cache -> `y` [tokens, heads, value_dim], which is overwritten.

        Reads one token after the other: right for decoding and short pieces of prompts.
        """
        kind = pool_kind(paged.keys)
        tokens, heads, _ = q.shape
        _, block_tokens, kv_heads, key_dim = paged.keys.shape
        value_dim = paged.values.shape[3]
        if pool_kind(paged.values) != kind or paged.values.shape[:3] != paged.keys.shape[:3]:
            raise Unsuitable("keys and values of a cache must be of one kind and shape.")
        if block_tokens % 8 or block_tokens > LONGEST_BLOCK or heads % kv_heads or heads // kv_heads > MOST_SHARING:
            raise Unsuitable(f"no kernel reads blocks of {block_tokens} for {heads} heads on {kv_heads}.")
        if block_tokens * max(key_dim, value_dim) > MOST_NUMBERS:
            raise Unsuitable(f"blocks of {block_tokens} with heads of {key_dim} and {value_dim} are too large.")
        for tensor, size in ((q, key_dim), (y, value_dim)):
            check_heads(tensor)
            check(tensor, (tokens, heads, size))
        for index in (paged.rows, paged.positions):
            check(index, (tokens,), torch.int64)
        check(paged.tables, tuple(paged.tables.shape), torch.int64)
        if look.sinks is not None:
            check(look.sinks, (heads,))
        source = (q.data_ptr(), q.stride(0), tokens, paged.rows.data_ptr(), paged.positions.data_ptr())
        tables = (paged.tables.data_ptr(), paged.tables.stride(0), block_tokens)
        keys = (paged.keys.data_ptr(), *paged.keys.stride()[:3])
        values = (paged.values.data_ptr(), *paged.values.stride()[:3])
        sizes = (kv_heads, heads // kv_heads, key_dim, value_dim)
        how = (float_bits(look.scale), float_bits(look.cap), look.window or NO_WINDOW, address(look.sinks))
        arguments = (*source, *tables, *keys, *values, *sizes, *how, y.data_ptr(), y.stride(0))
        return (Operation(f"attend_{kind}", arguments, (q, paged, look, y), tokens * kv_heads),)


def open_kernels(folder: Path | None = None, threads: int = 1) -> Kernels | None:
    """`folder`: where compiled code is kept between starts. None where kernels cannot be compiled."""
    if not availability.available():
        return None
    try:
        library = KernelLibrary(catalogue(), folder)
        library.address(INTERPRETER)
        return Kernels(proven(library, lambda target: KernelLibrary(catalogue(), folder, target)), threads)
    except (ImportError, OSError, RuntimeError) as error:  # an installation that is broken, or made for other machines
        logger.warning("kernels cannot be compiled here, torch multiplies: %s", error)
        return None
