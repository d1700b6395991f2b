"""Which blocks a sequence holds, and when it needs others."""

from __future__ import annotations

from gpu_node.engine.block_chain import BlockChain
from gpu_node.engine.block_table import BlockTables
from gpu_node.engine.planned import Submission
from gpu_node.engine.sequence_state import SequenceState


def state(tokens: int, first: int = 0, identity: int = 1) -> SequenceState:
    ids = [first, *range(1, tokens)]
    return SequenceState(identity, Submission(tuple(ids), 100), ids, 100, BlockChain("", 4), True)


def filled(tables: BlockTables, one: SequenceState) -> SequenceState:
    tables.take(one, ())
    one.computed = len(one.tokens)
    tables.publish(one, len(one.tokens))
    return one


def test_what_is_taken_covers_all_tokens() -> None:
    tables = BlockTables(4, 8)
    first = filled(tables, state(9))
    second = state(14)
    found = tables.pool.find(tables.shareable(second))
    assert found == first.blocks[:2] and tables.missing(second, found) == 2
    tables.take(second, found)
    assert len(second.blocks) == 4 and (second.computed, second.published) == (8, 2)
    assert tables.covered(second) == 16


def test_cached_blocks_that_are_taken_are_missing_to_others() -> None:
    tables = BlockTables(4, 8)
    tables.drop(filled(tables, state(9)))
    again = state(9)
    found = tables.pool.find(tables.shareable(again))
    assert len(found) == 2 and tables.missing(again, found) == 3


def test_room_is_made_whole_or_not_at_all() -> None:
    tables = BlockTables(4, 4)
    one = filled(tables, state(6))
    assert tables.make_room(one, 8) and len(one.blocks) == 2
    assert not tables.make_room(one, 17) and len(one.blocks) == 2 and tables.pool.available == 2
    assert tables.make_room(one, 16) and len(one.blocks) == 4


def test_a_shared_block_is_copied_before_it_is_written_and_held_until_then() -> None:
    tables = BlockTables(4, 8)
    parent = filled(tables, state(6))
    child = state(6, identity=2)
    tables.fork(parent, child, 6)
    shared = parent.blocks[1]
    assert child.blocks == parent.blocks and child.computed == 6 and child.published == 1
    assert tables.make_room(child, 7)
    assert child.copy is not None and (child.copy.source, child.copy.target) == (shared, child.blocks[1])
    assert child.blocks[0] == parent.blocks[0] and child.blocks[1] != shared
    tables.drop(parent)
    assert not tables.pool.is_cached(shared)
    tables.copied(child)
    assert tables.pool.is_cached(shared) and child.copy is None
    tables.copied(child)
    tables.drop(child)
    assert tables.pool.used == 0


def test_dropping_gives_back_what_was_to_be_copied() -> None:
    tables = BlockTables(4, 8)
    parent, child = filled(tables, state(6)), state(6, identity=2)
    tables.fork(parent, child, 6)
    tables.make_room(child, 7)
    tables.drop(child)
    tables.drop(parent)
    assert tables.pool.used == 0 and tables.pool.cached == 1


def test_without_a_block_for_the_copy_nothing_is_done() -> None:
    tables = BlockTables(4, 2)
    parent, child = filled(tables, state(6)), state(6, identity=2)
    tables.fork(parent, child, 6)
    assert not tables.make_room(child, 7) and child.copy is None and child.blocks == parent.blocks


def test_only_full_and_certain_blocks_are_published_once() -> None:
    tables = BlockTables(4, 8)
    one = state(11)
    tables.take(one, ())
    assert tables.publish(one, 3) == []
    assert tables.publish(one, 8) == one.chain.keys[:2]
    assert tables.publish(one, 11) == [] and one.published == 2
    assert tables.pool.is_writable(one.blocks[2])


def test_an_equal_block_takes_the_place_of_the_own_one() -> None:
    tables = BlockTables(4, 8)
    first, second = state(8), state(8, identity=2)
    tables.take(first, ())
    tables.take(second, ())
    tables.publish(first, 8)
    tables.publish(second, 8)
    assert first.blocks == second.blocks and tables.pool.used == 2
