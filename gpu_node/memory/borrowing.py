"""A stage's cache of which some blocks lie elsewhere: with lenders, or in host memory after a reclaim.

Blocks below the pool's own count are near; the others are wherever their lease is. In a forward every lender is asked
once a layer: the queries go there with the new keys and values, and come back as a partial output while the near part
is computed here. Invariants: a block is in one place; what moves takes its whole content along, or nothing has moved.
Leases change between steps only. Must not know links, orders or budgets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import numpy
import torch
from torch import Tensor

from gpu_node.engine.attention import AttentionTerms
from gpu_node.engine.batch import Batch
from gpu_node.engine.kv_pool import KvPool
from gpu_node.memory.errors import LeaseFault
from gpu_node.memory.lent_blocks import MOVE_BYTES, LentBlocks
from gpu_node.memory.partial_attention import Partial, merged, spread
from gpu_node.memory.places import CacheForm, HeldBlocks, Staged
from gpu_node.memory.scene import Numbers, Scene, StepTables

NOWHERE, NEAR, HOST, LENDERS = -1, 0, 1, 2  # the lender of stage n is the place LENDERS + n


class BorrowedCache:
    """Looks like a `KvPool` to whoever clears and copies; `opened` looks like a pool and an attention to a layer."""

    def __init__(self, near: KvPool, block_count: int) -> None:
        """`block_count`: of all blocks that may ever come, the near ones first."""
        self.form = CacheForm(near.shapes, near.block_tokens, near.dtype)
        self.near_count, self.device = near.block_count, near.device
        host = HeldBlocks(self.form, "cpu", max(block_count, near.block_count))
        self._held = {NEAR: HeldBlocks(self.form, near.device), HOST: host}
        self._held[NEAR].add(0, near.block_count, near)
        self._lenders: dict[int, LentBlocks] = {}  # by place
        self._leases: dict[int, tuple[int, int]] = {}  # number -> first block, behind the last
        self._owner = numpy.full(max(block_count, near.block_count), NOWHERE)
        self._owner[: near.block_count] = NEAR

    @property
    def far_blocks(self) -> int:
        """Those that have a place elsewhere."""
        return int((self._owner > NEAR).sum())

    @property
    def host_bytes(self) -> int:
        return self._held[HOST].bytes

    @property
    def round_trips(self) -> int:
        return sum(lender.round_trips for lender in self._lenders.values())

    def knows(self, lender: int) -> bool:
        """There is a channel to this stage."""
        return LENDERS + lender in self._lenders

    def meet(self, lender: LentBlocks) -> None:
        """From now on this lender can be borrowed from."""
        self._lenders[LENDERS + lender.lender] = lender

    def borrow(self, lease: int, lender: int, blocks: tuple[int, int]) -> None:
        """Raises `LeaseFault` for blocks that have a place, or a lender that nobody has met."""
        place = LENDERS + lender
        wanted = self._owner[slice(*blocks)]
        if place not in self._lenders or lease in self._leases:
            raise LeaseFault(f"lease {lease} is there already, or stage {lender} was never met")
        if not 0 <= blocks[0] < blocks[1] <= len(self._owner) or (wanted != NOWHERE).any():
            raise LeaseFault(f"blocks {blocks[0]} to {blocks[1] - 1} have a place already, or are none")
        self._leases[lease] = blocks
        wanted[:] = place

    @torch.inference_mode()
    def move_to_host(self, lease: int, within_seconds: float, clock: Callable[[], float] = time.monotonic) -> bool:
        """False: it would take longer, and nothing has moved. Raises `LeaseFault`, `LenderLost`, `MemoryError`."""
        first, behind = self._of(lease)
        lender = self._lenders.get(int(self._owner[first]))
        if lender is None:
            raise LeaseFault(f"lease {lease} does not lie with a lender")
        deadline = clock() + within_seconds
        host, step = self._held[HOST], max(MOVE_BYTES // self.form.block_bytes, 1)
        host.add(first, behind)
        whole = False
        try:
            for at in range(first, behind, step):
                some = range(at, min(at + step, behind))
                host.put(some, lender.read(some))
                if clock() > deadline:
                    return False
            whole = True
            self._owner[first:behind] = HOST
            return True
        finally:
            if not whole:
                host.remove(first)

    def repay(self, lease: int) -> None:
        """Nobody may name its blocks any more."""
        first, behind = self._of(lease)
        if self._owner[first] == HOST:
            self._held[HOST].remove(first)
        del self._leases[lease]
        self._owner[first:behind] = NOWHERE

    def part_with(self, lender: int) -> None:
        """It is gone; its blocks are nowhere, though their leases have to be repaid still."""
        found = self._lenders.pop(LENDERS + lender, None)
        if found is not None:
            self._owner[self._owner == LENDERS + lender] = NOWHERE
            found.close()

    def close(self) -> None:
        for place in list(self._lenders):
            self.part_with(place - LENDERS)

    @torch.inference_mode()
    def clear(self, blocks: Iterable[int]) -> None:
        for place, some in self._by_place(blocks).items():
            self._at(place).clear(some)

    @torch.inference_mode()
    def copy(self, source: int, target: int) -> None:
        """Everything that `source` holds, wherever both lie."""
        here, there = int(self._owner[source]), int(self._owner[target])
        if here != there:
            self._at(there).put((target,), self._at(here).read((source,)))
        elif here in self._held:
            self._held[here].copy(source, target)
        else:
            lender = self._at(here)
            assert isinstance(lender, LentBlocks), "neither near nor in host memory"
            lender.copy([(source, target)])

    def far_rows(self, batch: Batch) -> tuple[int, ...]:
        """Rows of which some block is not near, also where it lies nowhere: `opened` refuses those."""
        used = -(-numpy.array(batch.lengths) // batch.block_tokens)
        tables = batch.tables.cpu().numpy()
        far = (tables >= self.near_count) & (numpy.arange(tables.shape[1]) < used[:, None])
        return tuple(numpy.flatnonzero(far.any(1)).tolist())

    def opened(self, batch: Batch) -> FarForward:
        """For one forward of this batch; all lenders are told what it is about. Raises `LenderLost`, `LeaseFault`."""
        found = tables_of(batch).places(self._owner)
        if NOWHERE in found:
            raise LeaseFault("a block of this step lies nowhere")
        shares = [self._share(place, scene, tokens, batch) for place, (scene, tokens) in sorted(found.items())]
        return FarForward(shares, self.form, len(batch.tokens))

    def _share(self, place: int, scene: Scene, tokens: Numbers, batch: Batch) -> _Share:
        at, device = self._at(place), self.device
        every = len(tokens) == len(batch.tokens)
        mine = None if every else torch.from_numpy(tokens).to(device)
        written = torch.from_numpy(tokens[scene.write_tokens]).to(device)
        if isinstance(at, LentBlocks):
            at.stage(scene)
            return _Share(mine, written, at, None)
        return _Share(mine, written, at, at.stage(scene))

    def _of(self, lease: int) -> tuple[int, int]:
        found = self._leases.get(lease)
        if found is None:
            raise LeaseFault(f"there is no lease {lease}")
        return found

    def _at(self, place: int) -> HeldBlocks | LentBlocks:
        if place == NOWHERE:
            raise LeaseFault("a block that lies nowhere")
        return self._held[place] if place in self._held else self._lenders[place]

    def _by_place(self, blocks: Iterable[int]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for block in blocks:
            found.setdefault(int(self._owner[block]), []).append(block)
        return found


class _Share:
    """One place's part in a forward. `mine`: which tokens have blocks there; None: all."""

    def __init__(
        self, mine: Tensor | None, written: Tensor, at: HeldBlocks | LentBlocks, staged: Staged | None
    ) -> None:
        self.mine, self._written, self._at, self._staged = mine, written, at, staged

    @property
    def is_lent(self) -> bool:
        return isinstance(self._at, LentBlocks)

    def begin(self, layer: int, query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> None:
        """What is lent is asked for here, and computed meanwhile."""
        if isinstance(self._at, LentBlocks):
            asked = query if self.mine is None else query[self.mine]
            self._at.ask(layer, asked, key[self._written], value[self._written], terms)

    def finish(self, layer: int, query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Partial:
        if isinstance(self._at, LentBlocks):
            found = self._at.answer()
        else:
            assert self._staged is not None, "what is held was staged"
            asked, device = query if self.mine is None else query[self.mine], self._at.device
            new = (key[self._written].to(device), value[self._written].to(device))
            self._at.write(self._staged, layer, *new)
            found = self._at.attend(self._staged, layer, asked.to(device), terms)
        part = Partial(found.output.to(query.device), found.lse.to(query.device))
        return part if self.mine is None else spread(part, self.mine, query.shape[0])


class FarForward:
    """What layers of one forward write to, and attend with."""

    def __init__(self, shares: Sequence[_Share], form: CacheForm, tokens: int) -> None:
        # Lenders are waited for last: what is near is computed while they do theirs.
        self._shares = sorted(shares, key=lambda share: share.is_lent)
        self.shapes, self._tokens = form.shapes, tokens
        self._new: tuple[int, Tensor, Tensor] | None = None

    def write(self, layer: int, slots: tuple[Tensor, Tensor], key: Tensor, value: Tensor) -> None:
        """Kept until this layer attends: then each place gets its own."""
        self._new = (layer, key, value)

    def attend(self, query: Tensor, layer: int, batch: Batch, pool: object, terms: AttentionTerms) -> Tensor:
        """As `Attention`; `pool` is this one."""
        assert self._new is not None and self._new[0] == layer, "a layer writes before it attends"
        given = (layer, query, *self._new[1:], terms)
        for share in self._shares:
            share.begin(*given)
        found = merged([share.finish(*given) for share in self._shares], terms.sinks)
        return found.output.to(query.dtype).contiguous()


def tables_of(batch: Batch) -> StepTables:
    counts = numpy.diff(batch.starts)
    return StepTables(
        starts=numpy.array(batch.lengths) - counts,
        counts=counts,
        tables=batch.tables.cpu().numpy(),
        write_blocks=batch.slots[0].cpu().numpy(),
        write_slots=batch.slots[1].cpu().numpy(),
        fresh=numpy.array(batch.fresh, dtype=numpy.int64),
        block_tokens=batch.block_tokens,
    )
