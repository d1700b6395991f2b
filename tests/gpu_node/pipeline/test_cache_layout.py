"""How many blocks there are when stages lend to each other, over any rooms."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpu_node.engine.cache_size import CacheOptions
from gpu_node.memory.lending_policy import LendingPolicy
from gpu_node.pipeline.cache_layout import layout_for
from gpu_node.pipeline.stage_room import StageRoom, blocks_for
from gpu_node.split_plan import Demand

CACHE = CacheOptions(block_tokens=4, context=64, max_running=8)  # 128 blocks
DEMAND = Demand(64, block_tokens=4, step_tokens=16)


def room(name: str, usable: int, weights: int = 100, token_bytes: int = 1) -> StageRoom:
    return StageRoom(name, usable, weights, 0, token_bytes, True)


def test_spare_memory_makes_more_blocks_than_the_smallest_stage_has() -> None:
    rooms = [room("a", 140), room("b", 2000)]
    layout = layout_for(rooms, CACHE, DEMAND, LendingPolicy())
    assert (layout.block_count, layout.near_counts, layout.promised) == (128, (10, 128), 10)
    assert not layout.is_even


def test_without_lending_and_where_nothing_lacks_all_stages_hold_the_same() -> None:
    rooms = [room("a", 140), room("b", 2000)]
    assert layout_for(rooms, CACHE, DEMAND, None).near_counts == (10, 10)
    assert layout_for(rooms, CACHE, DEMAND, LendingPolicy(ratio=0.0)).near_counts == (10, 10)
    wide = [room("a", 1000), room("b", 2000)]
    assert layout_for(wide, CACHE, DEMAND, LendingPolicy()).near_counts == (128, 128)
    assert layout_for(rooms[:1], CACHE, DEMAND, LendingPolicy()).near_counts == (10,)


def test_what_proved_too_many_is_not_asked_for_again() -> None:
    rooms = [room("a", 140), room("b", 2000)]
    assert layout_for(rooms, CACHE, DEMAND, LendingPolicy(), most=60).block_count == 60
    assert layout_for(rooms, CACHE, DEMAND, LendingPolicy(), most=7).near_counts == (7, 7)


SIZES = st.tuples(st.integers(120, 3000), st.integers(1, 3))


@given(st.lists(SIZES, min_size=1, max_size=4), st.floats(0, 1), st.floats(0, 1))
def test_every_stage_keeps_within_its_room_and_what_is_lent_is_there(
    sizes: list[tuple[int, int]], ratio: float, threshold: float
) -> None:
    rooms = [room(str(at), usable, 100, token) for at, (usable, token) in enumerate(sizes)]
    policy = LendingPolicy(ratio=ratio, threshold=threshold)
    layout = layout_for(rooms, CACHE, DEMAND, policy)
    assert layout.promised == blocks_for(rooms, CACHE, DEMAND)
    assert layout.promised <= layout.block_count <= 128
    lent = spare = 0
    for each, near in zip(rooms, layout.near_counts, strict=True):
        size = each.token_bytes * 4
        assert each.weights_bytes + near * size <= each.usable_bytes
        if near < layout.block_count:
            lent += (layout.block_count - near) * size
        else:
            left = int(threshold * each.usable_bytes) - each.weights_bytes - near * size
            spare += max(min(left, int(ratio * each.usable_bytes)), 0)
    assert lent <= spare
