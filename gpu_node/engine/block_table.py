"""Which blocks a sequence holds: taking, sharing, copying before a write, publishing and giving them up.

Invariants: no block that a row writes has another holder or is published; what was ordered to be copied is held until
it has been; a sequence gives its blocks up front last. Must not know steps, budgets or who goes first.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpu_node.engine.block_chain import BlockKey
from gpu_node.engine.blocks import BlockPool
from gpu_node.engine.sequence_state import SequenceState
from gpu_node.engine.step import BlockCopy


class BlockTables:
    def __init__(self, block_tokens: int, block_count: int, promised: int = 0) -> None:
        self.block_tokens = block_tokens
        self.pool = BlockPool(block_count, promised)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def shareable(self, state: SequenceState) -> list[BlockKey]:
        """The keys of the blocks that it may take from the cache."""
        count = state.shareable_blocks()
        state.chain.extend(state.tokens, count)
        return state.chain.keys[:count]

    def missing(self, state: SequenceState, found: Sequence[int]) -> int:
        """So many available blocks go when it takes `found` and the rest of what its tokens need."""
        cached = sum(self.pool.is_cached(block) for block in found)
        return self.blocks_for(len(state.tokens)) - len(found) + cached

    def take(self, state: SequenceState, found: Sequence[int]) -> None:
        """Blocks for all its tokens; those of `found` are computed already."""
        assert not state.blocks
        self.pool.retain(found)
        state.blocks = [*found, *self.pool.allocate(self.blocks_for(len(state.tokens)) - len(found))]
        state.published = len(found)
        state.computed = len(found) * self.block_tokens

    def make_room(self, state: SequenceState, slots: int) -> bool:
        """Let the slots from `computed` up to `slots` be written. False, and nothing done, when blocks are wanting."""
        more = max(0, self.blocks_for(slots) - len(state.blocks))
        first = state.computed // self.block_tokens
        # Only the block where writing starts can be somebody else's too: all later ones were taken to be written.
        shared = first < len(state.blocks) and not self.pool.is_writable(state.blocks[first])
        if more + shared > self.pool.available:
            return False
        if shared:
            (own,) = self.pool.allocate(1)
            state.copy = BlockCopy(state.blocks[first], own)
            state.blocks[first] = own
        if more:
            state.blocks += self.pool.allocate(more)
        return True

    def covered(self, state: SequenceState) -> int:
        return len(state.blocks) * self.block_tokens

    def copied(self, state: SequenceState) -> None:
        """Its order has been carried out."""
        if state.copy is not None:
            self.pool.release((state.copy.source,))
            state.copy = None

    def publish(self, state: SequenceState, certain: int) -> list[BlockKey]:
        """Let the full blocks of its first `certain` computed tokens be found; the keys of the new ones."""
        full, blocks, before = certain // self.block_tokens, state.blocks, state.published
        if full <= before or state.private:
            return []
        state.chain.extend(state.tokens, full)
        for index in range(before, full):
            above = blocks[index - 1] if index else None
            blocks[index] = self.pool.publish(blocks[index], state.chain.keys[index], above)
        state.published = full
        return state.chain.keys[before:full]

    def fork(self, parent: SequenceState, child: SequenceState, computed: int) -> None:
        """The child goes on from the parent's first `computed` tokens, which it has too, in the same blocks."""
        child.blocks = parent.blocks[: self.blocks_for(computed)]
        self.pool.retain(child.blocks)
        child.computed, child.answering = computed, True
        child.published = min(parent.published, computed // self.block_tokens)

    def drop(self, state: SequenceState) -> None:
        self.copied(state)  # or will never be
        self.pool.release(state.blocks)
        state.forget_blocks()
