"""How many blocks the cache of a split model has: from what its workers really hold. Pure.

Every block has a place on every stage, so the stage with the least room decides. Invariant: what is asked for exactly
is given or refused, never changed. Must not know workers or torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_node.engine.cache_size import CacheOptions
from gpu_node.errors import DeviceOutOfMemory
from gpu_node.plan_picture import size_text
from gpu_node.split_plan import Demand


@dataclass(frozen=True, slots=True)
class StageRoom:
    device: str
    usable_bytes: int
    weights_bytes: int
    step_bytes: int  # activations of the largest step
    token_bytes: int  # of the cache, in its layers
    stated: bool  # somebody gave it exactly so much

    @property
    def cache_bytes(self) -> int:
        """What is left for the cache."""
        return max(self.usable_bytes - self.weights_bytes - self.step_bytes, 0)

    def blocks(self, block_tokens: int) -> int | None:
        """None: as many as anybody wants, there is nothing to keep."""
        size = self.token_bytes * block_tokens
        return self.cache_bytes // size if size else None


def blocks_for(rooms: Sequence[StageRoom], cache: CacheOptions, demand: Demand, most: int | None = None) -> int:
    """`most`: no more than these, because more have proven too many.

    Raises `DeviceOutOfMemory` with the figures of the stage that is too small."""
    counts = [room.blocks(cache.block_tokens) for room in rooms]
    least = min((count for count in counts if count is not None), default=None)
    wanted = wanted_blocks(rooms, cache, demand)
    exact = cache.block_count is not None
    if most is not None:
        wanted, exact = min(wanted, most), False
    found = wanted if least is None else min(wanted, least)
    if found < 1 or (exact and found < wanted):
        short = next(room for room, count in zip(rooms, counts, strict=True) if count == least)
        need = max(wanted, 1)
        raise DeviceOutOfMemory(
            f"{short.device} has {size_text(short.cache_bytes)} left for the cache, beside "
            f"{size_text(short.weights_bytes)} of weights and {size_text(short.step_bytes)} for a step, and "
            f"{need:,} blocks take {size_text(need * short.token_bytes * cache.block_tokens)}"
        )
    return found


def wanted_blocks(rooms: Sequence[StageRoom], cache: CacheOptions, demand: Demand) -> int:
    """As many as are of use, whether there is room for them or not."""
    if cache.block_count is not None:
        return cache.block_count
    if cache.size_bytes is not None:
        return cache.size_bytes // max(sum(room.token_bytes for room in rooms) * cache.block_tokens, 1)
    if all(room.stated for room in rooms):  # it is theirs to fill
        return cache.max_running * -(-cache.context // cache.block_tokens)
    return -(-demand.wanted_tokens // cache.block_tokens)
