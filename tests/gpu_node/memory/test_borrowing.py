"""A cache in several places against the same blocks in one pool, through any writes, clears, copies and moves."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from gpu_node.engine.attention import AttentionTerms, ReferenceAttention
from gpu_node.engine.kv_pool import KvPool, LayerShape
from gpu_node.errors import DeviceOutOfMemory
from gpu_node.memory.errors import LeaseFault, LenderLost
from gpu_node.memory.partial_attention import Partial
from gpu_node.memory.places import Staged
from tests.gpu_node.memory.lending_pair import HOLDER, Borrowed, borrowing
from tests.gpu_node.memory.scattered import batch_over, filled, form_of

SHAPE = LayerShape(2, 8, 8)
FORM = form_of(SHAPE)
NEAR, BLOCKS = 6, 30


def attended(borrowed: Borrowed, whole: KvPool, sizes: list[tuple[int, int]], seed: int, terms: AttentionTerms) -> None:
    """One forward in both."""
    torch.manual_seed(seed)
    batch = batch_over(sizes, BLOCKS, seed)
    far = borrowed.cache.opened(batch)
    whole.clear(batch.fresh)
    for layer in range(2):
        query, key, value = (torch.randn(len(batch.tokens), heads, 8) for heads in (4, 2, 2))
        far.write(layer, batch.slots, key, value)
        found = far.attend(query, layer, batch, far, terms)
        whole.write(layer, batch.slots, key, value)
        torch.testing.assert_close(found, ReferenceAttention().attend(query, layer, batch, whole, terms))


def everything(borrowed: Borrowed) -> torch.Tensor:
    into = KvPool(FORM.shapes, FORM.block_tokens, 1, FORM.dtype)
    rows = []
    for block in range(BLOCKS):
        owner = borrowed.cache._at(int(borrowed.cache._owner[block]))
        rows.append(owner.read((block,))[0].clone())
    assert into.block_bytes == FORM.block_bytes
    return torch.stack(rows)


@pytest.mark.parametrize("seed", range(6))
def test_blocks_in_many_places_are_one_cache(seed: int) -> None:
    """Random forwards, copies, clears and moves; the content of every block is what one pool has."""
    chance = random.Random(seed)
    window = chance.choice([None, 7])
    form = form_of(LayerShape(2, 8, 8, window))
    whole = filled(form, BLOCKS, seed)
    near = KvPool(form.shapes, form.block_tokens, NEAR, form.dtype)
    near.storage.copy_(whole.storage[:NEAR])
    terms = AttentionTerms(0.3, window, chance.choice([None, 3.0]), chance.choice([None, torch.ones(4)]))
    with borrowing(near, BLOCKS, (1, 2)) as borrowed:
        leases = [borrowed.borrow(1, 6, 14), borrowed.borrow(2, 14, 20), borrowed.borrow(1, 20, 30)]
        for stage, ranges in ((1, (range(6, 14), range(20, 30))), (2, (range(14, 20),))):
            for blocks in ranges:
                borrowed.cache._lenders[2 + stage].put(blocks, whole.storage[blocks.start : blocks.stop])
        for turn in range(8):
            doing = chance.choice(["attend", "attend", "copy", "clear", "move"])
            if doing == "attend":
                sizes = [(chance.randrange(20), chance.choice([1, 1, 2, 11])) for _ in range(chance.randint(1, 3))]
                attended(borrowed, whole, sizes, seed * 100 + turn, terms)
            elif doing == "copy":
                source, target = chance.sample(range(BLOCKS), 2)
                borrowed.cache.copy(source, target)
                whole.copy(source, target)
            elif doing == "clear":
                cleared = chance.sample(range(BLOCKS), 4)
                borrowed.cache.clear(cleared)
                whole.clear(cleared)
            elif leases:
                assert borrowed.cache.move_to_host(leases.pop(), 60.0)
        assert torch.equal(everything(borrowed), whole.storage)


def near_pool() -> KvPool:
    return KvPool(FORM.shapes, FORM.block_tokens, NEAR, FORM.dtype)


def test_a_layer_costs_one_round_trip_and_a_step_without_far_blocks_none() -> None:
    with borrowing(near_pool(), BLOCKS) as borrowed:
        borrowed.borrow(1, NEAR, BLOCKS)
        near = batch_over([(3, 1), (0, 5)], NEAR)
        assert borrowed.cache.far_rows(near) == () and borrowed.channels[1].said == 0
        attended(borrowed, _zeros(), [(0, 20), (0, 30), (0, 1)], 1, AttentionTerms(1.0))
        assert borrowed.cache.round_trips == 2, "two layers"
        assert borrowed.channels[1].said == 1 + 2, "one scene, and a message a layer"


def _zeros() -> KvPool:
    return KvPool(FORM.shapes, FORM.block_tokens, BLOCKS, FORM.dtype)


def test_rows_with_far_blocks_are_told_apart_and_what_fills_a_table_up_counts_not() -> None:
    with borrowing(near_pool(), BLOCKS) as borrowed:
        assert borrowed.cache.far_rows(batch_over([(0, 100)], BLOCKS)) == (0,), "nobody computes with what is nowhere"
        borrowed.borrow(1, NEAR, BLOCKS)
        batch = batch_over([(0, 60), (0, 1), (0, 3), (0, 40)], BLOCKS, 5)
        expected = tuple(
            row for row, length in enumerate(batch.lengths) if (batch.tables[row, : -(-length // 4)] >= NEAR).any()
        )
        assert expected and borrowed.cache.far_rows(batch) == expected


def test_bytes_are_lent_until_they_are_taken_back() -> None:
    with borrowing(near_pool(), BLOCKS) as borrowed:
        lender = borrowed.lenders[1]
        one, two = borrowed.borrow(1, 6, 10), borrowed.borrow(1, 10, 30)
        assert lender.lent_bytes == 24 * FORM.block_bytes and borrowed.cache.far_blocks == 24
        assert borrowed.cache.move_to_host(one, 60.0)
        assert borrowed.cache.host_bytes == 4 * FORM.block_bytes
        assert lender.take_back(HOLDER, one) == 4 * FORM.block_bytes
        assert lender.lent_bytes == 20 * FORM.block_bytes
        borrowed.cache.repay(one)
        borrowed.cache.repay(two)
        lender.take_back(HOLDER, two)
        assert (lender.lent_bytes, borrowed.cache.host_bytes, borrowed.cache.far_blocks) == (0, 0, 0)
        borrowed.borrow(1, 6, 30)


def test_a_move_that_takes_too_long_has_moved_nothing() -> None:
    times = iter([0.0, 2.0])
    with borrowing(near_pool(), BLOCKS) as borrowed:
        lease = borrowed.borrow(1, 6, 10)
        assert not borrowed.cache.move_to_host(lease, 1.0, lambda: next(times))
        assert borrowed.cache.host_bytes == 0
        borrowed.cache.repay(lease)


def test_mistakes_with_leases_are_refused() -> None:
    with borrowing(near_pool(), BLOCKS) as borrowed:
        lease = borrowed.borrow(1, 6, 10)
        for blocks in ((5, 7), (9, 12), (12, 12), (20, 31)):
            with pytest.raises(LeaseFault):
                borrowed.cache.borrow(99, 1, blocks)
        with pytest.raises(LeaseFault, match="never met"):
            borrowed.cache.borrow(99, 7, (12, 13))
        with pytest.raises(LeaseFault, match="there already"):
            borrowed.cache.borrow(lease, 1, (12, 13))
        with pytest.raises(LeaseFault, match="no lease"):
            borrowed.cache.repay(98)
        with pytest.raises(LeaseFault, match="lies nowhere"):
            borrowed.cache.opened(batch_over([(0, 100)], BLOCKS))


def test_a_lender_that_is_gone_is_named_and_its_blocks_are_nowhere() -> None:
    with borrowing(near_pool(), BLOCKS, (1, 4)) as borrowed:
        borrowed.borrow(1, 6, 10)
        gone = borrowed.borrow(4, 10, 30)
        borrowed.channels[4].close()
        batch = batch_over([(0, 100)], BLOCKS)
        far = borrowed.cache.opened(batch)
        new = torch.zeros(len(batch.tokens), 2, 8)
        far.write(0, batch.slots, new, new)
        with pytest.raises(LenderLost, match="stage 4") as caught:
            far.attend(torch.zeros(len(batch.tokens), 4, 8), 0, batch, far, AttentionTerms(1.0))
        assert caught.value.lender == 4
        borrowed.cache.part_with(4)
        assert borrowed.cache.far_blocks == 4
        with pytest.raises(LeaseFault):
            borrowed.cache.opened(batch)
        borrowed.cache.repay(gone)


def test_a_lender_lends_no_more_than_it_may() -> None:
    with borrowing(near_pool(), BLOCKS) as borrowed:
        lender = borrowed.lenders[1]
        lender._spare = lambda: 6 * FORM.block_bytes - lender.lent_bytes
        lender.lend(HOLDER, 1, (6, 10), FORM)
        with pytest.raises(MemoryError, match="may still be lent"):
            lender.lend(HOLDER, 2, (10, 13), FORM)
        lender.lend(HOLDER, 3, (10, 11), FORM)
        assert lender.lent_bytes == 5 * FORM.block_bytes
        with pytest.raises(LeaseFault, match="there already"):
            lender.lend(HOLDER, 3, (11, 12), FORM)


def test_a_lender_without_memory_says_so_and_goes_on() -> None:
    with borrowing(near_pool(), BLOCKS) as borrowed:
        lease = borrowed.borrow(1, 6, 30)
        blocks = borrowed.lenders[1]._holders[HOLDER].blocks
        attend, blocks.attend = blocks.attend, _without_memory  # type: ignore[method-assign]
        with pytest.raises(DeviceOutOfMemory, match="stage 1"):
            attended(borrowed, _zeros(), [(0, 100)], 1, AttentionTerms(1.0))
        blocks.attend = attend  # type: ignore[method-assign]
        attended(borrowed, _zeros(), [(0, 100)], 1, AttentionTerms(1.0))
        borrowed.cache.repay(lease)


def _without_memory(staged: Staged, layer: int, query: Tensor, terms: AttentionTerms) -> Partial:
    raise MemoryError("not enough memory")
