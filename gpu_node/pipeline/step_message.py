"""One step of the model as bytes: what a part in another process has to be told before hidden states come to it.

    0                       8                       16
    +-----------------------+-----------+-----------+
    | "PSTP" ver want 0 0   | number    | rows      |
    | copies    | tokens    | blocks    | vectors   |   header: 4-byte little-endian numbers, counts of what follows
    +-----------------------+-----------+-----------+
    | rows: sequence (8 bytes), start, tokens, blocks, outputs, output kind, has vectors
    | copies: source, target
    | tokens of all rows, block numbers of all rows       4 bytes each
    | embeddings in place of tokens' own                  single precision, [tokens of those rows, hidden size]
    +-----------------------------------------------

Invariants: what was packed is unpacked the same; every number is checked against what the part has (`StepBounds`)
before anything is computed with it, so that no message reaches a block, a position or a token that is not there. The
number stands in the headers of the step's hidden states too. Pure. Must not know torch, sockets or layers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import chain
from typing import Any, get_args

import numpy

from gpu_node.engine.step import BlockCopy, Output, Row
from wire.errors import BadPayload, OutOfBounds

MAGIC, VERSION = b"PSTP", 1
NUMBER_MOST = 0xFFFF_FFFF
SEQUENCE_MOST = (1 << 63) - 1
_OUTPUTS: tuple[Output, ...] = get_args(Output)
_HEADER = struct.Struct("<4sBBxxIIIIII")
_ROW = struct.Struct("<QIIIIBBxx")
_COPY = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class StepMessage:
    """`rows` go through the part in one forward that answers `want`; the copies come before them."""

    number: int
    rows: tuple[Row, ...]
    want: Output
    copies: tuple[BlockCopy, ...] = ()


@dataclass(frozen=True, slots=True)
class StepBounds:
    """What a part has: nothing in a message may lie beyond it."""

    block_tokens: int
    block_count: int
    vocabulary: int
    hidden_size: int
    rows: int = 4096
    tokens: int = 1 << 16  # of one step
    copies: int = 4096

    @property
    def slots(self) -> int:
        return self.block_tokens * self.block_count


def pack_step(message: StepMessage, vectors: bool = True) -> bytes:
    """`vectors`: False leaves given embeddings out, which only the first part needs.

    Raises `OutOfBounds` for a number that has no place in the message."""
    rows = message.rows
    given = [row.vectors for row in rows if vectors and row.vectors is not None]
    numbers = sum(array.size for array in given)
    tokens, blocks = sum(len(row.tokens) for row in rows), sum(len(row.blocks) for row in rows)
    counts = (message.number, len(rows), len(message.copies), tokens, blocks, numbers)
    try:
        parts = [
            _HEADER.pack(MAGIC, VERSION, _OUTPUTS.index(message.want), *counts),
            *(_packed_row(row, vectors) for row in rows),
            *(_COPY.pack(copy.source, copy.target) for copy in message.copies),
            struct.pack(f"<{tokens}I", *chain.from_iterable(row.tokens for row in rows)),
            struct.pack(f"<{blocks}I", *chain.from_iterable(row.blocks for row in rows)),
        ]
    except struct.error as error:
        raise OutOfBounds(f"a number of this step has no place in a message: {error}") from error
    return b"".join([*parts, *(numpy.ascontiguousarray(array, "<f4").tobytes() for array in given)])


def unpack_step(data: bytes | bytearray | memoryview, bounds: StepBounds) -> StepMessage:
    """Raises `BadPayload` for what is no step of this part. Embeddings are read-only views of a copy of `data`."""
    reader = _Reader(memoryview(data).cast("B"))
    magic, version, want, number, row_count, copy_count, tokens, blocks, numbers = reader.take(_HEADER)
    _must(magic == MAGIC and version == VERSION and want < len(_OUTPUTS), "this is no step that can be read here")
    _must(0 < row_count <= bounds.rows, f"a step has 1 to {bounds.rows} rows, not {row_count}")
    _must(copy_count <= bounds.copies, f"a step has at most {bounds.copies} copies, not {copy_count}")
    _must(tokens <= bounds.tokens, f"a step has at most {bounds.tokens} tokens, not {tokens}")
    size = row_count * _ROW.size + copy_count * _COPY.size + 4 * (tokens + blocks + numbers)
    _must(reader.left == size, f"a step of {size} bytes has {reader.left}")
    heads = [_Head(*reader.take(_ROW)) for _ in range(row_count)]
    copies = tuple(BlockCopy(*reader.take(_COPY)) for _ in range(copy_count))
    _must(all(max(copy.source, copy.target) < bounds.block_count for copy in copies), "a copy of no block here")
    body = _Body(reader.numbers(tokens), reader.numbers(blocks), reader.floats(numbers))
    body.check(bounds)
    rows = tuple(body.row(head, bounds) for head in heads)
    _must(body.is_empty, "the rows are not all that is in the step")
    return StepMessage(number, rows, _OUTPUTS[want], copies)


def _packed_row(row: Row, vectors: bool) -> bytes:
    counts = (row.start, len(row.tokens), len(row.blocks), row.output_tokens)
    if row.sequence > SEQUENCE_MOST:
        raise OutOfBounds(f"sequences are counted up to {SEQUENCE_MOST}")
    return _ROW.pack(row.sequence, *counts, _OUTPUTS.index(row.output), vectors and row.vectors is not None)


@dataclass(frozen=True, slots=True)
class _Head:
    """A row without its lists."""

    sequence: int
    start: int
    tokens: int
    blocks: int
    output_tokens: int
    output: int
    given: int

    def check(self, bounds: StepBounds) -> None:
        _must(self.sequence <= SEQUENCE_MOST and self.output < len(_OUTPUTS) and self.given <= 1, "this is no row")
        _must(self.tokens > 0 and self.output_tokens <= self.tokens, "a row has tokens, and outputs of them only")
        end = self.start + self.tokens
        _must(end <= min(self.blocks * bounds.block_tokens, bounds.slots), "a row has blocks up to its end")


class _Body:
    """The lists of all rows, taken from the front."""

    def __init__(self, tokens: tuple[int, ...], blocks: tuple[int, ...], vectors: numpy.ndarray) -> None:
        self._tokens, self._blocks, self._vectors = tokens, blocks, vectors
        self._token = self._block = self._number = 0

    @property
    def is_empty(self) -> bool:
        left = (len(self._tokens) - self._token, len(self._blocks) - self._block, self._vectors.size - self._number)
        return left == (0, 0, 0)

    def check(self, bounds: StepBounds) -> None:
        """Of all rows at once."""
        inside = max(self._tokens, default=0) < bounds.vocabulary and max(self._blocks, default=0) < bounds.block_count
        _must(inside, "a token or a block of no model here")

    def row(self, head: _Head, bounds: StepBounds) -> Row:
        head.check(bounds)
        tokens = self._tokens[self._token : self._token + head.tokens]
        blocks = self._blocks[self._block : self._block + head.blocks]
        self._token, self._block = self._token + head.tokens, self._block + head.blocks
        _must(len(tokens) == head.tokens and len(blocks) == head.blocks, "rows claim more than is in the step")
        vectors = self._given(head.tokens, bounds.hidden_size) if head.given else None
        output = _OUTPUTS[head.output]
        return Row(head.sequence, tokens, head.start, blocks, output, head.output_tokens, vectors)

    def _given(self, tokens: int, hidden_size: int) -> numpy.ndarray:
        found = self._vectors[self._number : self._number + tokens * hidden_size]
        self._number += tokens * hidden_size
        _must(found.size == tokens * hidden_size, "rows claim more embeddings than are in the step")
        return found.reshape(tokens, hidden_size)


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        _must(self.left >= layout.size, "the step is cut short")
        self._at += layout.size
        return layout.unpack_from(self._data, self._at - layout.size)

    def numbers(self, count: int) -> tuple[int, ...]:
        return self.take(struct.Struct(f"<{count}I"))

    def floats(self, count: int) -> numpy.ndarray:
        piece = bytes(self._data[self._at : self._at + 4 * count])
        self._at += 4 * count
        return numpy.frombuffer(piece, "<f4")


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BadPayload(otherwise)
