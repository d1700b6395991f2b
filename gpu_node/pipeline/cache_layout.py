"""How many blocks the cache of a split model has, and how many of them each stage holds itself. Pure.

What all stages have room for is promised. Where something wants more, the stages with room to spare have more blocks of
their own, and lend the others memory for theirs when it comes to that. Must not know workers or torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_node.engine.cache_size import CacheOptions
from gpu_node.memory.desk import StageCache, StageNow, most_blocks
from gpu_node.memory.lending_policy import LendingPolicy
from gpu_node.pipeline.stage_room import StageRoom, blocks_for, wanted_blocks
from gpu_node.split_plan import Demand


@dataclass(frozen=True, slots=True)
class CacheLayout:
    block_count: int
    near_counts: tuple[int, ...]  # by stage

    @property
    def promised(self) -> int:
        return min(self.near_counts)

    @property
    def is_even(self) -> bool:
        """Every stage holds every block."""
        return self.promised == self.block_count


def layout_for(
    rooms: Sequence[StageRoom],
    cache: CacheOptions,
    demand: Demand,
    policy: LendingPolicy | None,
    most: int | None = None,
) -> CacheLayout:
    """`policy`: None where nothing is lent. `most`: no more than these in all. Raises as `blocks_for`."""
    promised = blocks_for(rooms, cache, demand, most)
    wanted = wanted_blocks(rooms, cache, demand)
    wanted = wanted if most is None else min(wanted, most)
    if policy is not None and promised < wanted and len(rooms) > 1:
        stages, now_at = _stages(rooms, cache.block_tokens, wanted)
        count = most_blocks(stages, now_at, wanted, policy)
        return CacheLayout(count, tuple(min(stage.near_count, count) for stage in stages))
    return CacheLayout(promised, (promised,) * len(rooms))


def _stages(rooms: Sequence[StageRoom], block_tokens: int, wanted: int) -> tuple[list[StageCache], list[StageNow]]:
    stages, now_at = [], []
    for room in rooms:
        blocks = room.blocks(block_tokens)
        near = wanted if blocks is None else blocks
        stages.append(StageCache(room.device, max(room.token_bytes * block_tokens, 1), near))
        now_at.append(StageNow(room.usable_bytes, room.weights_bytes + room.step_bytes))
    return stages, now_at
