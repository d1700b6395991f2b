"""Blocks of a cache by the holder's numbers, in pools of this process: near ones, lent ones, those in host memory.

Invariants: a number is in one pool at most; ranges come and go with leases, and what is in them goes with them. In host
memory all ranges are of one pool, so that a step is computed in one go however many leases there are. Where a step's
blocks lie is worked out once a step and window (`Staged`). Must not know links, leases or who holds the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor

from gpu_node.engine.attention import FEW_TOKENS, GROUP_ELEMENTS, AttentionTerms, alike
from gpu_node.engine.kv_pool import KvPool, LayerShape, Scratch
from gpu_node.memory.arena import Arena
from gpu_node.memory.errors import LeaseFault
from gpu_node.memory.partial_attention import Partial, Piece, attend_part, merged, spread
from gpu_node.memory.scene import Numbers, Scene


@dataclass(frozen=True, slots=True)
class CacheForm:
    """What blocks of one holder look like."""

    shapes: tuple[LayerShape, ...]
    block_tokens: int
    dtype: torch.dtype

    @property
    def block_elements(self) -> int:
        return sum(shape.elements for shape in self.shapes) * self.block_tokens

    @property
    def block_bytes(self) -> int:
        return self.block_elements * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class _Range:
    """Blocks `first` to `behind` (excluded), of which the pool calls the first one `first - base`."""

    first: int
    behind: int
    pool: KvPool
    base: int


@dataclass(slots=True, eq=False)
class Staged:
    """A scene in pools: which pieces are computed, by window."""

    scene: Scene
    writes: list[tuple[KvPool, tuple[Tensor, Tensor], Tensor]] = field(default_factory=list)  # slots, and which tokens
    pieces: dict[int | None, list[tuple[KvPool, Piece]]] = field(default_factory=dict)


class HeldBlocks:
    def __init__(self, form: CacheForm, device: torch.device | str = "cpu", most_blocks: int = 0) -> None:
        """`most_blocks`: numbers are below this; 0: nobody knows."""
        self.form, self.device = form, torch.device(device)
        self._ranges: list[_Range] = []
        self._scratch = Scratch() if self.device.type == "cpu" else None
        self._arena = Arena.of(form.block_bytes, most_blocks) if self._scratch is not None else None
        self._whole: KvPool | None = None  # over the arena

    @property
    def bytes(self) -> int:
        return sum(each.behind - each.first for each in self._ranges) * self.form.block_bytes

    def add(self, first: int, behind: int, pool: KvPool | None = None) -> None:
        """Room for blocks `first` to `behind` (excluded), empty unless a pool is given. Raises `LeaseFault` where some
        are here already, and torch's out-of-memory error or `MemoryError`."""
        if any(first < each.behind and each.first < behind for each in self._ranges):
            raise LeaseFault(f"blocks {first} to {behind - 1} are here already")
        if pool is None and self._arena is not None and behind <= self._arena.blocks:
            self._ranges.append(_Range(first, behind, self._in_arena(self._arena), 0))
        else:
            self._ranges.append(_Range(first, behind, pool or self._apart(behind - first), first))

    def remove(self, first: int) -> None:
        """The range that begins there, with its memory. Raises `LeaseFault`."""
        found = [each for each in self._ranges if each.first == first]
        if not found:
            raise LeaseFault(f"no blocks from {first} on are here")
        self._ranges.remove(found[0])
        if self._arena is not None and found[0].pool is self._whole:
            self._arena.let_go(first, found[0].behind)

    def holds(self, blocks: Numbers) -> bool:
        """All of them."""
        inside = numpy.zeros(len(blocks), dtype=bool)
        for each in self._ranges:
            inside |= (each.first <= blocks) & (blocks < each.behind)
        return bool(inside.all())

    def clear(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            pool, at = self._find(block)
            pool.clear((at,))

    def copy(self, source: int, target: int) -> None:
        (pool, at), (into, to) = self._find(source), self._find(target)
        into.storage[to].copy_(pool.storage[at])

    def read(self, blocks: Sequence[int]) -> Tensor:
        """[blocks, elements of a block] in host memory, whole blocks as they lie."""
        found = [self._find(block) for block in blocks]
        return torch.stack([pool.storage[at] for pool, at in found]).cpu()

    def put(self, blocks: Sequence[int], content: Tensor) -> None:
        """What `read` gave."""
        for block, each in zip(blocks, content, strict=True):
            pool, at = self._find(block)
            pool.storage[at].copy_(each)

    def stage(self, scene: Scene) -> Staged:
        """Clears what is fresh. The scene's blocks are all here."""
        self.clear(scene.fresh.tolist())
        staged = Staged(scene)
        for each in self._spans():
            mine = (each.first <= scene.write_blocks) & (scene.write_blocks < each.behind)
            if mine.any():
                slots = (self._tensor(scene.write_blocks[mine] - each.base), self._tensor(scene.write_slots[mine]))
                staged.writes.append((each.pool, slots, self._tensor(numpy.flatnonzero(mine))))
        return staged

    def write(self, staged: Staged, layer: int, key: Tensor, value: Tensor) -> None:
        """Of the scene's writes, in their order: [writes, kv_heads, dim]."""
        for pool, slots, mine in staged.writes:
            if len(mine) == len(key):
                pool.write(layer, slots, key, value)
            else:
                pool.write(layer, slots, key[mine], value[mine])

    def attend(self, staged: Staged, layer: int, query: Tensor, terms: AttentionTerms) -> Partial:
        """`query` [tokens of the scene, heads, key_dim]: over all slots that are here; sinks do not count."""
        pieces = staged.pieces.get(terms.window)
        if pieces is None:
            pieces = staged.pieces[terms.window] = list(self._pieces(staged.scene, terms.window))
        tokens, heads = query.shape[:2]
        if len(pieces) > 1 and all(pool is pieces[0][0] for pool, _ in pieces):
            return self._side_by_side(pieces, layer, query, terms)
        parts = []
        for pool, piece in pieces:
            part = attend_part(query[piece.tokens], pool, layer, piece, terms, self._scratch)
            parts.append(part if part.lse.shape[0] == tokens else _among(part, piece.tokens, tokens))
        if not parts:
            return Partial.nothing(tokens, heads, self.form.shapes[layer].value_dim, self.device)
        return merged(parts)

    def _side_by_side(
        self, pieces: Sequence[tuple[KvPool, Piece]], layer: int, query: Tensor, terms: AttentionTerms
    ) -> Partial:
        """Of one pool: every token is in one piece at most, and there is nothing to merge."""
        tokens, heads, _ = query.shape
        whole = Partial.nothing(tokens, heads, self.form.shapes[layer].value_dim, self.device)
        for pool, piece in pieces:
            part = attend_part(query[piece.tokens], pool, layer, piece, terms, self._scratch)
            whole.output[piece.tokens], whole.lse[piece.tokens] = part.output, part.lse
        return whole

    def _pieces(self, scene: Scene, window: int | None) -> Sequence[tuple[KvPool, Piece]]:
        row_of = numpy.repeat(numpy.arange(scene.rows), scene.sizes)
        tokens = self.form.block_tokens
        wanted = numpy.ones(len(scene.blocks), dtype=bool)
        if window is not None:  # the row's first new token looks back furthest
            wanted = (scene.at + 1) * tokens > (scene.starts + 1 - window)[row_of]
        found = []
        waste = GROUP_ELEMENTS // max(self.form.shapes[0].elements * tokens, 1)
        for each in self._spans():
            mine = wanted & (each.first <= scene.blocks) & (scene.blocks < each.behind)
            for rows in _alike(scene, row_of[mine], waste):
                chosen = [numpy.flatnonzero(mine & (row_of == row)) for row in rows]
                found.append((each.pool, self._piece(scene, rows, chosen, each.base, window)))
        return found

    def _piece(self, scene: Scene, rows: list[int], chosen: list[Numbers], base: int, window: int | None) -> Piece:
        """`chosen`: for each row, which of the scene's blocks."""
        block_tokens, count = self.form.block_tokens, int(scene.counts[rows[0]])
        longest = max(len(each) for each in chosen)
        tables = numpy.zeros((len(rows), longest), dtype=numpy.int64)
        # What fills a table up repeats its last block, at slots that nobody sees: finite numbers, hidden by the mask.
        slots = numpy.full((len(rows), longest, block_tokens), numpy.iinfo(numpy.int64).max)
        for index, each in enumerate(chosen):
            tables[index, : len(each)] = scene.blocks[each] - base
            tables[index, len(each) :] = tables[index, len(each) - 1]
            slots[index, : len(each)] = scene.at[each, None] * block_tokens + numpy.arange(block_tokens)
        positions = scene.starts[rows][:, None] + numpy.arange(count)
        keys = slots.reshape(len(rows), 1, -1)
        seen = keys <= positions[:, :, None]
        if window is not None:
            seen &= keys > positions[:, :, None] - window
        hidden = None if seen.all() else self._tensor(~seen)
        return Piece(self._tokens(scene, rows), len(rows), count, self._tensor(tables), hidden)

    def _tokens(self, scene: Scene, rows: list[int]) -> slice | Tensor:
        ends = numpy.cumsum(scene.counts)
        if rows[-1] - rows[0] == len(rows) - 1:
            return slice(int(ends[rows[0]] - scene.counts[rows[0]]), int(ends[rows[-1]]))
        return self._tensor(numpy.concatenate([numpy.arange(ends[row] - scene.counts[row], ends[row]) for row in rows]))

    def _spans(self) -> list[_Range]:
        """The ranges, those of the arena as one: what is between them is named by nobody."""
        apart = [each for each in self._ranges if each.pool is not self._whole]
        if self._whole is None or len(apart) == len(self._ranges):
            return apart
        return [_Range(0, self._whole.block_count, self._whole, 0), *apart]

    def _in_arena(self, arena: Arena) -> KvPool:
        if self._whole is None:
            form = self.form
            with torch.inference_mode(False):  # written inside of it and outside
                storage = arena.memory.view(form.dtype).view(arena.blocks, form.block_elements)
                self._whole = KvPool(form.shapes, form.block_tokens, arena.blocks, form.dtype, storage=storage)
        return self._whole

    def _apart(self, blocks: int) -> KvPool:
        form = self.form
        with torch.inference_mode(False):  # written inside of it and outside
            return KvPool(form.shapes, form.block_tokens, blocks, form.dtype, self.device)

    def _find(self, block: int) -> tuple[KvPool, int]:
        for each in self._ranges:
            if each.first <= block < each.behind:
                return each.pool, block - each.base
        raise LeaseFault(f"block {block} is not here")

    def _tensor(self, numbers: numpy.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)


def _alike(scene: Scene, row_of: Numbers, most_waste: int) -> list[list[int]]:
    """The rows that have blocks, in groups that are computed together: those of like length, where filling up to the
    longest costs no more than `most_waste` blocks."""
    groups: list[list[int]] = []
    few: dict[int, list[tuple[int, int]]] = {}
    for row, size in zip(*numpy.unique(row_of, return_counts=True), strict=True):
        count = int(scene.counts[row])
        if count > FEW_TOKENS:
            groups.append([int(row)])
        else:
            few.setdefault(count, []).append((int(row), int(size)))
    for rows in few.values():
        groups += [[rows[at][0] for at in chosen] for chosen in alike([size for _, size in rows], most_waste)]
    return groups


def _among(part: Partial, tokens: slice | Tensor, count: int) -> Partial:
    places = torch.arange(count, device=part.lse.device)[tokens] if isinstance(tokens, slice) else tokens
    return spread(part, places, count)
