"""The cache of a split model: the stage with the least room decides."""

from __future__ import annotations

import pytest

from gpu_node.engine.cache_size import CacheOptions
from gpu_node.errors import DeviceOutOfMemory
from gpu_node.pipeline.stage_room import StageRoom, blocks_for
from gpu_node.split_plan import Demand

DEMAND = Demand(64, sequences=2, block_tokens=16)
CACHE = CacheOptions(16, max_running=4, context=64)


def room(usable: int, token: int = 10, stated: bool = True) -> StageRoom:
    return StageRoom("cpu:1", usable + 150, weights_bytes=100, step_bytes=50, token_bytes=token, stated=stated)


def test_the_least_room_decides() -> None:
    assert blocks_for([room(1600), room(900), room(3200)], CACHE, DEMAND) == 5
    assert blocks_for([room(1600), room(1600, token=20)], CACHE, DEMAND) == 5
    assert blocks_for([room(1600), room(0, token=0)], CACHE, DEMAND) == 10, "a stage may keep nothing"


def test_no_more_than_is_wanted() -> None:
    plenty = [room(10**9), room(10**9)]
    assert blocks_for(plenty, CACHE, DEMAND) == 16, "four whole contexts"
    assert blocks_for([room(10**9), room(10**9, stated=False)], CACHE, DEMAND) == 8, "what was planned for"
    assert blocks_for(plenty, CacheOptions(16, size_bytes=3200), DEMAND) == 10
    assert blocks_for(plenty, CacheOptions(16, block_count=7), DEMAND) == 7


def test_what_is_asked_for_exactly_is_given_or_refused() -> None:
    with pytest.raises(DeviceOutOfMemory, match=r"cpu:1 has .* left for the cache, beside .* 6 blocks take"):
        blocks_for([room(900)], CacheOptions(16, block_count=6), DEMAND)
    assert blocks_for([room(900)], CacheOptions(16, block_count=6), DEMAND, most=6) == 5, "fewer were told meanwhile"
    assert blocks_for([room(900)], CACHE, DEMAND, most=3) == 3


def test_no_room_for_one_block_is_told() -> None:
    with pytest.raises(DeviceOutOfMemory, match="cpu:1 has"):
        blocks_for([room(159), room(1600)], CACHE, DEMAND)
