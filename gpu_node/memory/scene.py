"""What one place has to know of a step: its rows' blocks that lie there, and what is written there. And its bytes.

    rows | blocks | writes | fresh           four counts
    rows: start, new tokens, blocks          of each
    blocks: number | place in the row's table
    writes: token | block | slot in the block
    fresh: number

Numbers are unsigned, 4 bytes, little-endian. Invariants: a row of a scene has a block in the place; a scene's tokens
are those of its rows, one row after the other; block numbers are the holder's. What arrives is checked against
`SceneBounds` before anything is made of it. Pure. Must not know torch or links.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from wire.errors import BadPayload

Numbers = NDArray[numpy.int64]
_COUNTS = 4
_ROW, _BLOCK, _WRITE = 3, 2, 3
NUMBER_BYTES = 4


@dataclass(frozen=True, slots=True)
class SceneBounds:
    block_tokens: int
    rows: int = 4096
    tokens: int = 1 << 16
    blocks: int = 1 << 20  # of all rows' tables


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    starts: Numbers  # [rows]: position of the first new token
    counts: Numbers  # [rows]: new tokens
    sizes: Numbers  # [rows]: blocks of the row in this place
    blocks: Numbers  # [blocks of all rows]
    at: Numbers  # [blocks of all rows]: times block_tokens, the position of the block's first slot
    write_tokens: Numbers  # [writes]: which of the scene's tokens
    write_blocks: Numbers
    write_slots: Numbers
    fresh: Numbers  # blocks that are cleared before

    @property
    def rows(self) -> int:
        return len(self.counts)

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    @property
    def writes(self) -> int:
        return len(self.write_tokens)

    def pack(self) -> bytes:
        counts = numpy.array([self.rows, len(self.blocks), self.writes, len(self.fresh)], dtype=numpy.int64)
        parts: list[Numbers] = [counts, self.starts, self.counts, self.sizes, self.blocks, self.at]
        parts += [self.write_tokens, self.write_blocks, self.write_slots, self.fresh]
        return numpy.concatenate(parts).astype("<u4").tobytes()


def unpack_scene(data: bytes | memoryview, bounds: SceneBounds, held: Callable[[Numbers], bool]) -> Scene:
    """`held`: whether all of these blocks are this holder's, here. Raises `BadPayload`."""
    size = len(data)
    _must(size % NUMBER_BYTES == 0 and size >= _COUNTS * NUMBER_BYTES, "this is no scene")
    numbers = numpy.frombuffer(data, "<u4").astype(numpy.int64)
    rows, blocks, writes, fresh = (int(count) for count in numbers[:_COUNTS])
    _must(
        0 < rows <= bounds.rows and blocks <= bounds.blocks and writes <= bounds.tokens, "a scene of this size is none"
    )
    _must(len(numbers) == _COUNTS + _ROW * rows + _BLOCK * blocks + _WRITE * writes + fresh, "a scene cut short")
    lengths = (_COUNTS, rows, rows, rows, blocks, blocks, writes, writes, writes, fresh)
    ends = numpy.cumsum(lengths)
    scene = Scene(*(numbers[end - length : end] for end, length in zip(ends[1:], lengths[1:], strict=True)))
    _check(scene, bounds, held)
    return scene


def _check(scene: Scene, bounds: SceneBounds, held: Callable[[Numbers], bool]) -> None:
    _must(bool((scene.counts > 0).all() and (scene.sizes > 0).all()), "a row has new tokens and blocks")
    _must(scene.tokens <= bounds.tokens, f"a scene has at most {bounds.tokens} tokens")
    _must(int(scene.sizes.sum()) == len(scene.blocks), "rows have other blocks than the scene")
    ends = numpy.repeat(scene.starts + scene.counts, scene.sizes)
    _must(bool((scene.at * bounds.block_tokens < ends).all()), "a block behind the end of its row")
    inside = (scene.write_tokens < scene.tokens).all() and (scene.write_slots < bounds.block_tokens).all()
    _must(bool(inside), "what is written has no token, or no slot")
    _must(all(held(blocks) for blocks in (scene.blocks, scene.write_blocks, scene.fresh)), "a block that nobody lent")


@dataclass(frozen=True, slots=True, eq=False)
class StepTables:
    """A batch as plain numbers."""

    starts: Numbers  # [rows]: position of each row's first new token
    counts: Numbers  # [rows]: new tokens
    tables: Numbers  # [rows, longest]
    write_blocks: Numbers  # [tokens]
    write_slots: Numbers  # [tokens]
    fresh: Numbers
    block_tokens: int

    def places(self, owner: Numbers) -> dict[int, tuple[Scene, Numbers]]:
        """By place: its scene, and which of the batch's tokens are in it. `owner` [block count]: the place of each
        block."""
        used = -(-(self.starts + self.counts) // self.block_tokens)
        filled = numpy.arange(self.tables.shape[1]) < used[:, None]
        owners = numpy.where(filled, owner[self.tables], -1)
        wanted = numpy.unique(owners[filled])
        return {int(place): self._scene(int(place), owners == place, owner) for place in wanted}

    def _scene(self, place: int, there: NDArray[numpy.bool_], owner: Numbers) -> tuple[Scene, Numbers]:
        rows = there.any(1)
        mine = numpy.repeat(rows, self.counts)  # by token
        tokens = numpy.flatnonzero(mine)
        written = owner[self.write_blocks[tokens]] == place
        scene = Scene(
            starts=self.starts[rows],
            counts=self.counts[rows],
            sizes=there.sum(1)[rows],
            blocks=self.tables[there],
            at=numpy.nonzero(there)[1],
            write_tokens=numpy.flatnonzero(written),
            write_blocks=self.write_blocks[tokens][written],
            write_slots=self.write_slots[tokens][written],
            fresh=self.fresh[owner[self.fresh] == place],
        )
        return scene, tokens


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BadPayload(otherwise)
