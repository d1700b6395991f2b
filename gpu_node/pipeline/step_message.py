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
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

import numpy

from gpu_node.engine.step import BlockCopy, Output, Row
from wire.errors import BadPayload, OutOfBounds

MAGIC, VERSION = b"PSTP", 1
NUMBER_MOST = 0xFFFF_FFFF
SEQUENCE_MOST = (1 << 63) - 1
# Fewer numbers are looked through before numpy has begun.
FEW = 64
_OUTPUTS: tuple[Output, ...] = get_args(Output)
_KINDS = {output: number for number, output in enumerate(_OUTPUTS)}
_OUTPUT_MOST = len(_OUTPUTS) - 1
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
    heads: list[Any] = []
    tokens: list[int] = []
    blocks: list[int] = []
    given = []
    for row in rows:
        has = vectors and row.vectors is not None
        if has:
            given.append(row.vectors)
        mine, its_blocks = row.tokens, row.blocks
        if row.sequence > SEQUENCE_MOST:
            raise OutOfBounds(f"sequences are counted up to {SEQUENCE_MOST}")
        sizes = len(mine), len(its_blocks), row.output_tokens
        heads += (row.sequence, row.start, *sizes, _KINDS[row.output], has)
        tokens += mine
        blocks += its_blocks
    pairs = [number for copy in message.copies for number in (copy.source, copy.target)]
    numbers = sum(array.size for array in given)
    counts = (message.number, len(rows), len(message.copies), len(tokens), len(blocks), numbers)
    lists = struct.Struct(f"<{len(pairs) + len(tokens) + len(blocks)}I")
    try:
        packed = _table(len(rows)).pack(MAGIC, VERSION, _KINDS[message.want], *counts, *heads)
        packed += lists.pack(*pairs, *tokens, *blocks)
    except struct.error as error:
        raise OutOfBounds(f"a number of this step has no place in a message: {error}") from error
    if not given:
        return packed
    return b"".join([packed, *(numpy.ascontiguousarray(array, "<f4").tobytes() for array in given)])


def unpack_step(data: bytes | bytearray | memoryview, bounds: StepBounds) -> StepMessage:
    """Raises `BadPayload` for what is no step of this part. Embeddings are read-only views of a copy of `data`."""
    view = memoryview(data).cast("B")
    if view.nbytes < _HEADER.size:
        raise BadPayload("the step is cut short")
    magic, version, want, number, row_count, copy_count, tokens, blocks, given = _HEADER.unpack_from(view)
    if magic != MAGIC or version != VERSION or want >= len(_OUTPUTS):
        raise BadPayload("this is no step that can be read here")
    if not 0 < row_count <= bounds.rows:
        raise BadPayload(f"a step has 1 to {bounds.rows} rows, not {row_count}")
    if copy_count > bounds.copies:
        raise BadPayload(f"a step has at most {bounds.copies} copies, not {copy_count}")
    if tokens > bounds.tokens:
        raise BadPayload(f"a step has at most {bounds.tokens} tokens, not {tokens}")
    table = _HEADER.size + row_count * _ROW.size
    behind = table + copy_count * _COPY.size
    size = behind + 4 * (tokens + blocks + given)
    if view.nbytes != size:
        raise BadPayload(f"a step of {size} bytes has {view.nbytes}")
    copies = _copies(view[table:behind], bounds) if copy_count else ()
    vectors = numpy.frombuffer(bytes(view[size - 4 * given :]), "<f4") if given else None
    lists = _Lists(view[behind : size - 4 * given], tokens, vectors)
    lists.check(bounds)
    return StepMessage(
        number, _rows(_ROW.iter_unpack(view[_HEADER.size : table]), lists, bounds), _OUTPUTS[want], copies
    )


def _copies(view: memoryview, bounds: StepBounds) -> tuple[BlockCopy, ...]:
    copies = tuple(BlockCopy(*pair) for pair in _COPY.iter_unpack(view))
    if max(max(copy.source, copy.target) for copy in copies) >= bounds.block_count:
        raise BadPayload("a copy of no block here")
    return copies


@lru_cache(maxsize=256)
def _table(rows: int) -> struct.Struct:
    """The header and so many rows, packed by one call."""
    return struct.Struct(_HEADER.format + _ROW.format[1:] * rows)


@dataclass(slots=True)
class _OpenRow:
    """A `Row` while it is made: fields of a frozen one take four times as long to be set, one after the other, which
    would be half of all time here."""

    sequence: int
    tokens: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]
    output: Output
    output_tokens: int
    vectors: Any


class _Lists:
    """What the rows share out among themselves, from the front."""

    def __init__(self, view: memoryview, tokens: int, vectors: numpy.ndarray | None) -> None:
        self.numbers: tuple[int, ...] = struct.unpack(f"<{view.nbytes // 4}I", view)  # tokens, then blocks
        self.tokens, self.vectors, self._view = tokens, vectors, view

    def check(self, bounds: StepBounds) -> None:
        """Of all rows at once."""
        tokens, blocks = self._most(0, self.tokens), self._most(self.tokens, len(self.numbers))
        if tokens >= bounds.vocabulary or blocks >= bounds.block_count:
            raise BadPayload("a token or a block of no model here")

    def _most(self, start: int, behind: int) -> int:
        if behind - start < FEW:
            return max(self.numbers[start:behind], default=0)
        return int(numpy.frombuffer(self._view, "<u4", behind - start, 4 * start).max())


def _rows(heads: Iterable[tuple[int, ...]], lists: _Lists, bounds: StepBounds) -> tuple[Row, ...]:
    """One loop, whose every line counts: each stage runs it for each row of each step."""
    numbers, behind = lists.numbers, lists.tokens
    block_tokens, slots = bounds.block_tokens, bounds.slots
    token, block, given = 0, behind, 0
    rows: list[Any] = []
    for sequence, start, count, held, outputs, output, has in heads:
        if sequence > SEQUENCE_MOST or output > _OUTPUT_MOST or has > 1:
            raise BadPayload("this is no row")
        if not 0 < count >= outputs:
            raise BadPayload("a row has tokens, and outputs of them only")
        end = start + count
        if end > held * block_tokens or end > slots:
            raise BadPayload("a row has blocks up to its end")
        token_end, block_end = token + count, block + held
        if token_end > behind or block_end > len(numbers):
            raise BadPayload("rows claim more than is in the step")
        vectors = None
        if has:
            vectors = _given(lists.vectors, given, (count, bounds.hidden_size))
            given += vectors.size
        mine, its_blocks = numbers[token:token_end], numbers[block:block_end]
        row = _OpenRow(sequence, mine, start, its_blocks, _OUTPUTS[output], outputs, vectors)
        row.__class__ = Row  # type: ignore[assignment]  # with the same fields in the same places
        rows.append(row)
        token, block = token_end, block_end
    left = 0 if lists.vectors is None else lists.vectors.size - given
    if token != behind or block != len(numbers) or left:
        raise BadPayload("the rows are not all that is in the step")
    return tuple(rows)


def _given(vectors: numpy.ndarray | None, start: int, shape: tuple[int, int]) -> numpy.ndarray:
    size = shape[0] * shape[1]
    if vectors is None or vectors.size < start + size:
        raise BadPayload("rows claim more embeddings than are in the step")
    return vectors[start : start + size].reshape(shape)
