"""The block pool beside a slow model of it: nothing leaks, nothing is freed twice, nobody writes what another reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from gpu_node.engine.block_chain import BlockChain, BlockKey, digest_of
from gpu_node.engine.blocks import BlockPool

SIZE = 2
COUNT = 9
PROMISED = 6


def keys_of(tokens: list[int], salt: str = "", digest: Callable[[bytes], bytes] = digest_of) -> list[BlockKey]:
    chain = BlockChain(salt, SIZE, digest)
    chain.extend(tokens, len(tokens) // SIZE)
    return chain.keys


@dataclass(eq=False)
class Holder:
    """A sequence: its whole text is known, `filled` blocks of it are computed."""

    salt: str
    tokens: list[int]
    keys: list[BlockKey]
    blocks: list[int] = field(default_factory=list)
    filled: int = 0


class PoolMachine(RuleBasedStateMachine):
    """Sequences take blocks, fill and publish them one by one, fork, and give them back; blocks come and go."""

    digest = staticmethod(digest_of)
    holders = Bundle("holders")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(COUNT, PROMISED)
        self.retired = set(range(PROMISED, COUNT))
        self.live: list[Holder] = []
        self.content: dict[int, tuple[str, tuple[int, ...]]] = {}  # what a block was last filled with, and all before
        self.published: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.released: list[int] = []  # published and held by nobody, in the order of their release

    def allocate(self, count: int) -> list[int]:
        evicted = max(0, count - self.pool.empty)
        blocks = self.pool.allocate(count)
        assert set(self.released[:evicted]) <= set(blocks), "the least recently released goes first"
        assert not set(self.released[evicted:]) & set(blocks), "cached blocks go only when nothing is empty"
        for block in self.released[:evicted]:
            del self.published[block]
        del self.released[:evicted]
        for block in blocks:
            assert not any(block in holder.blocks for holder in self.live), "somebody holds it"
            assert block not in self.retired
            self.content.pop(block, None)
        if any(block >= PROMISED for block in blocks):
            held = {block for holder in self.live for block in holder.blocks}
            assert set(range(PROMISED)) <= held | set(self.released) | set(blocks) | self.retired, "promised ones first"
        return blocks

    def released_by(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            if block in self.published and not any(block in holder.blocks for holder in self.live):
                self.released.append(block)

    @rule(
        target=holders,
        tokens=st.lists(st.integers(0, 1), min_size=SIZE, max_size=8),
        salt=st.sampled_from(["", "x"]),
    )
    def begin(self, tokens: list[int], salt: str):
        holder = Holder(salt, tokens, keys_of(tokens, salt, self.digest))
        found = self.pool.find(holder.keys)
        for index, block in enumerate(found):
            assert self.published[block] == (salt, tuple(tokens[: (index + 1) * SIZE])), "a hit on another prefix"
        self.assert_longest(holder, len(found))
        cached = sum(block in self.released for block in found)
        assert cached == sum(self.pool.is_cached(block) for block in found)
        more = len(holder.keys) - len(found)
        if more + cached > self.pool.available:
            return multiple()
        self.pool.retain(found)
        self.released = [block for block in self.released if block not in found]
        self.live.append(holder)
        holder.blocks = list(found)
        holder.blocks += self.allocate(more)
        holder.filled = len(found)
        return holder

    def assert_longest(self, holder: Holder, found: int) -> None:
        """With digests that do not collide, whatever is published is found."""
        known = set(self.published.values())
        wanted = [(holder.salt, tuple(holder.tokens[: (n + 1) * SIZE])) for n in range(len(holder.keys))]
        assert found == next((n for n, prefix in enumerate(wanted) if prefix not in known), len(wanted))

    @rule(holder=holders)
    def fill(self, holder: Holder) -> None:
        index = holder.filled
        if holder not in self.live or index == len(holder.keys):
            return
        block = holder.blocks[index]
        if not self.pool.is_writable(block):  # another one's too: copy before the write
            if not self.pool.available:
                return
            (own,) = self.allocate(1)
            holder.blocks[index] = own
            self.pool.release([block])
            self.released_by([block])
            block = own
        assert sum(other.blocks.count(block) for other in self.live) == 1, "a block that is written has one holder"
        assert block not in self.published
        prefix = (holder.salt, tuple(holder.tokens[: (index + 1) * SIZE]))
        self.content[block] = prefix
        holder.filled += 1
        used = self.pool.publish(block, holder.keys[index], holder.blocks[index - 1] if index else None)
        holder.blocks[index] = used
        if used != block:
            assert self.published[used] == prefix
            self.released = [other for other in self.released if other != used]
        elif not self.pool.is_writable(block):
            self.published[block] = prefix
        else:
            self.assert_may_stay_unknown(holder)

    def assert_may_stay_unknown(self, holder: Holder) -> None:
        raise AssertionError("a full block was not published")

    @rule(target=holders, holder=holders)
    def fork(self, holder: Holder):
        if holder not in self.live:
            return multiple()
        child = Holder(holder.salt, holder.tokens, holder.keys, list(holder.blocks), holder.filled)
        self.pool.retain(child.blocks)
        self.live.append(child)
        return child

    @rule(holder=consumes(holders))
    def end(self, holder: Holder) -> None:
        if holder in self.live:
            self.live.remove(holder)
            self.pool.release(holder.blocks)
            self.released_by(holder.blocks)

    @rule(blocks=st.sets(st.integers(0, COUNT - 1)))
    def retire(self, blocks: set[int]) -> None:
        leaving = blocks - {block for holder in self.live for block in holder.blocks}
        lost = [self.published[block] for block in self.released if block in leaving]
        forgotten = [block for block in self.released if any(self.continues(block, prefix) for prefix in lost)]
        self.pool.retire(sorted(leaving))
        self.retired |= leaving
        self.released = [block for block in self.released if block not in forgotten]
        for block in forgotten:
            del self.published[block]

    def continues(self, block: int, prefix: tuple[str, tuple[int, ...]]) -> bool:
        salt, tokens = self.published[block]
        return (salt, tokens[: len(prefix[1])]) == prefix

    @rule(blocks=st.sets(st.integers(0, COUNT - 1)))
    def restore(self, blocks: set[int]) -> None:
        before = self.pool.releases
        self.pool.restore(sorted(blocks))
        assert (self.pool.releases > before) == bool(blocks & self.retired)
        self.retired -= blocks

    @precondition(lambda self: not self.live)
    @rule()
    def everything_is_free_again(self) -> None:
        assert self.pool.available == COUNT - len(self.retired) and self.pool.used == 0

    @invariant()
    def counts_add_up(self) -> None:
        held = {block for holder in self.live for block in holder.blocks}
        assert self.pool.used == len(held)
        assert self.pool.cached == len(self.released)
        assert self.pool.empty == COUNT - len(held) - len(self.released) - len(self.retired)
        assert self.pool.retired == len(self.retired)
        assert self.pool.available == self.pool.empty + self.pool.cached

    @invariant()
    def what_is_computed_stays(self) -> None:
        for holder in self.live:
            for index, block in enumerate(holder.blocks[: holder.filled]):
                assert self.content[block] == (holder.salt, tuple(holder.tokens[: (index + 1) * SIZE]))


class CollidingMachine(PoolMachine):
    """Digests of two bits: most are equal. Blocks may stay unknown then, but a hit is never wrong."""

    digest = staticmethod(lambda data: digest_of(data)[:1] if not data else bytes([digest_of(data)[0] % 4]))

    def assert_longest(self, holder: Holder, found: int) -> None:
        pass

    def assert_may_stay_unknown(self, holder: Holder) -> None:
        pass


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestCollidingPool = CollidingMachine.TestCase
TestCollidingPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def filled(pool: BlockPool, keys: list[BlockKey]) -> list[int]:
    blocks = pool.allocate(len(keys))
    for index, key in enumerate(keys):
        blocks[index] = pool.publish(blocks[index], key, blocks[index - 1] if index else None)
    return blocks


def test_more_than_there_is_cannot_be_allocated() -> None:
    pool = BlockPool(2)
    pool.allocate(2)
    with pytest.raises(AssertionError, match="more blocks"):
        pool.allocate(1)


def test_a_block_is_not_released_twice() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="more often"):
        pool.release(blocks)


def test_an_empty_block_cannot_be_retained() -> None:
    with pytest.raises(KeyError):
        BlockPool(2).retain([1])


def test_a_published_block_is_not_published_again() -> None:
    pool = BlockPool(2)
    keys = keys_of([1, 2])
    blocks = filled(pool, keys)
    with pytest.raises(AssertionError, match="once"):
        pool.publish(blocks[0], keys[0], None)


def test_the_front_of_a_prompt_outlives_its_end() -> None:
    pool = BlockPool(3)
    keys = keys_of([1, 2, 3, 4, 5, 6])
    pool.release(filled(pool, keys))
    for left in (2, 1, 0):
        pool.allocate(1)
        assert len(pool.find(keys)) == left


def test_a_hit_makes_a_prefix_young_again() -> None:
    pool = BlockPool(2)
    first, second = keys_of([1, 2]), keys_of([3, 4])
    pool.release(filled(pool, first))
    pool.release(filled(pool, second))
    found = pool.find(first)
    pool.retain(found)
    pool.release(found)
    pool.allocate(1)
    assert pool.find(first) and not pool.find(second)


def test_looking_does_not_take_hold() -> None:
    pool = BlockPool(2)
    keys = keys_of([1, 2])
    pool.release(filled(pool, keys))
    assert pool.find(keys) and pool.used == 0


def test_equal_tokens_under_another_salt_or_parent_are_no_hit() -> None:
    pool = BlockPool(4)
    filled(pool, keys_of([1, 2, 3, 4]))
    assert not pool.find(keys_of([1, 2], salt="other"))
    assert not pool.find(keys_of([3, 4]))
    assert len(pool.find(keys_of([1, 2, 4, 3]))) == 1


def test_a_colliding_digest_is_no_hit_and_takes_nobodys_name() -> None:
    def one(data: bytes) -> bytes:
        return b"same"

    pool = BlockPool(4)
    first, second = keys_of([1, 2], digest=one), keys_of([3, 4, 5, 6], digest=one)
    held = filled(pool, first)
    other = filled(pool, second)
    assert pool.find(first) == held and not pool.find(second)
    pool.release(other)
    assert pool.cached == 0 and pool.find(first) == held


def test_an_equal_block_is_kept_once() -> None:
    pool = BlockPool(4)
    keys = keys_of([1, 2])
    first, second = filled(pool, keys), filled(pool, keys)
    assert first == second and pool.used == 1
    pool.release(first)
    assert pool.used == 1 and not pool.is_writable(second[0])


def test_releases_tell_when_looking_again_is_worth_it() -> None:
    pool = BlockPool(2)
    before = pool.releases
    blocks = pool.allocate(1)
    pool.retain(blocks)
    pool.release(blocks)
    assert pool.releases == before
    pool.release(blocks)
    assert pool.releases > before


def test_promised_blocks_go_first_and_slower_ones_before_the_cache() -> None:
    pool = BlockPool(4, promised=2)
    assert pool.available == 2 and pool.retired == 2
    pool.restore([2, 3])
    keys = keys_of([1, 2])
    pool.release(filled(pool, keys))
    assert pool.allocate(3) == [1, 2, 3] and pool.find(keys)
    assert pool.allocate(1) == [0] and not pool.find(keys)


def test_a_retired_block_that_somebody_holds_is_a_mistake() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    with pytest.raises(AssertionError, match="holds it"):
        pool.retire(blocks)


def test_what_is_only_found_through_a_retired_block_is_forgotten_with_it() -> None:
    pool = BlockPool(6)
    long, other = keys_of([1, 2, 3, 4, 5, 6]), keys_of([1, 2, 9, 9])
    first = filled(pool, long)
    second = filled(pool, other)
    pool.release(first)
    pool.release(second)
    pool.retire([first[1]])
    assert pool.find(long) == first[:1] and pool.find(other) == second
    assert pool.cached == 2 and pool.empty == 3 and pool.retired == 1
    again = filled(pool, keys_of([1, 2, 3, 4]))
    assert first[1] not in again
