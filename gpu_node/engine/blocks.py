"""The blocks of the key-value cache: who holds them, which can be found again, which goes first when room is needed.

Invariants: a block is exactly one of empty, cached (published, held by nobody), used and retired; only a used block
with one holder that is not published may be written; who holds a published block holds its parent too, so that a cached
parent is always younger than its children and nothing cached is out of reach. Must not know torch, sequences or time.

A block is empty as soon as its last holder lets go of it, though steps under way may still read or write it: whoever
gets it next uses it in a later step, and every device computes the steps in their order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from gpu_node.engine.block_chain import BlockKey


@dataclass(slots=True, eq=False)
class _Entry:
    """A published block. Its parent is named by identity: a digest alone could be another's."""

    block: int
    key: BlockKey
    parent: _Entry | None


class BlockPool:
    """Reference-counted blocks with a prefix cache, least recently released first out.

    The chained names are vLLM's idea (Kwon et al. 2023, and its automatic prefix caching); eviction is per block.
    """

    def __init__(self, block_count: int, promised: int = 0) -> None:
        """`promised`: blocks from that number on are retired at first, and slower when they come. 0: there are none."""
        assert block_count > 0 and 0 <= promised <= block_count
        self.block_count, self._promised = block_count, promised or block_count
        self.releases = 0  # grows whenever a block becomes available: who found no room need not look again before
        self._holders = [0] * block_count
        self._empty = list(range(self._promised - 1, -1, -1))
        self._spare: list[int] = []  # empty, and not promised: taken when no other one is empty
        self._retired = set(range(self._promised, block_count))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently released first
        self._entries: list[_Entry | None] = [None] * block_count
        self._found: dict[bytes, _Entry] = {}

    @property
    def available(self) -> int:
        """So many can be allocated now."""
        return len(self._empty) + len(self._spare) + len(self._cached)

    @property
    def empty(self) -> int:
        return len(self._empty) + len(self._spare)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def used(self) -> int:
        return self.block_count - len(self._retired) - self.available

    @property
    def retired(self) -> int:
        return len(self._retired)

    def is_writable(self, block: int) -> bool:
        return self._holders[block] == 1 and self._entries[block] is None

    def is_cached(self, block: int) -> bool:
        """Held by nobody: whoever retains it takes it out of what is available."""
        return not self._holders[block]

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks nobody holds, at most `available`; each has one holder then, and unknown content."""
        assert 0 <= count <= self.available, "more blocks asked for than there are"
        blocks = [self._empty.pop() if self._empty else self._other() for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def retain(self, blocks: Sequence[int]) -> None:
        """One holder more for each; cached ones come back into use."""
        for block in blocks:
            if not self._holders[block]:
                del self._cached[block]  # a KeyError here is a block that nobody may name: it is empty
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each of a sequence's blocks in order; the last ones become the first to be evicted."""
        for block in reversed(blocks):
            self._release(block)

    def find(self, keys: Sequence[BlockKey]) -> list[int]:
        """The published blocks of the longest known prefix of `keys`. Nothing is retained."""
        found: list[int] = []
        parent: _Entry | None = None
        for key in keys:
            entry = self._found.get(key.digest)
            if entry is None or not _same(entry, key, parent):
                break
            found.append(entry.block)
            parent = entry
        return found

    def publish(self, block: int, key: BlockKey, parent: int | None) -> int:
        """Let a full and computed block be found. Returns the block to use from now on.

        When an equal one is known already, that one is retained and `block` released. `parent` is the holder's block
        before this one; None at the front. A block whose digest is another's stays unknown, and so does what follows.
        """
        assert self.is_writable(block), "only its only holder publishes a block, and once"
        above = None if parent is None else self._entries[parent]
        if parent is not None and above is None:
            return block
        known = self._found.get(key.digest)
        if known is not None and _same(known, key, above):
            self.retain((known.block,))
            self._release(block)
            return known.block
        if known is None:
            self._entries[block] = self._found[key.digest] = _Entry(block, key, above)
        return block

    def retire(self, blocks: Sequence[int]) -> None:
        """Nobody gets them from now on, and nobody holds them now. What is cached in them is forgotten, and with it
        whatever could only be found through it."""
        leaving = set(blocks) - self._retired
        assert not any(self._holders[block] for block in leaving), "somebody holds it"
        self._forget(leaving)
        self._empty = [block for block in self._empty if block not in leaving]
        self._spare = [block for block in self._spare if block not in leaving]
        self._retired |= leaving

    def restore(self, blocks: Sequence[int]) -> None:
        """They can be allocated again; those that are not retired already can."""
        coming = self._retired.intersection(blocks)
        self._retired -= coming
        self.releases += len(coming)
        for block in sorted(coming, reverse=True):
            self._put_back(block)

    def _forget(self, leaving: set[int]) -> None:
        """Whoever held a child would hold its parent: all that is forgotten is cached, parents after their children."""
        gone: dict[int, _Entry] = {}  # by identity
        for block in reversed(list(self._cached)):
            entry = self._entries[block]
            assert entry is not None
            if block in leaving or id(entry.parent) in gone:
                gone[id(entry)] = entry
                self._entries[block] = None
                del self._cached[block], self._found[entry.key.digest]
                self._put_back(block)

    def _put_back(self, block: int) -> None:
        (self._empty if block < self._promised else self._spare).append(block)

    def _release(self, block: int) -> None:
        assert self._holders[block] > 0, "released more often than held"
        self._holders[block] -= 1
        if self._holders[block]:
            return
        self.releases += 1
        if self._entries[block] is None:
            self._put_back(block)
        else:
            self._cached[block] = None

    def _other(self) -> int:
        return self._spare.pop() if self._spare else self._evict()

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        entry = self._entries[block]
        assert entry is not None
        self._entries[block] = None
        del self._found[entry.key.digest]
        return block


def _same(entry: _Entry, key: BlockKey, parent: _Entry | None) -> bool:
    return entry.parent is parent and entry.key.tokens == key.tokens and entry.key.salt == key.salt
