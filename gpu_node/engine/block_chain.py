"""Names for the full blocks of one token list: each by its own tokens and everything before them.

Invariants: a key's digest covers the salt and all tokens up to its end, so equal digests mean equal prefixes but for a
collision, against which whoever looks up compares tokens too. Must not know where blocks lie or who holds them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

Digest = Callable[[bytes], bytes]


def digest_of(data: bytes) -> bytes:
    """16 bytes: two of a million million blocks would share one with a chance of 10^-15."""
    return blake2b(data, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class BlockKey:
    digest: bytes
    salt: str
    tokens: tuple[int, ...]  # of this block alone


@dataclass(slots=True)
class BlockChain:
    """The keys of the blocks of a list that only grows. Each block is digested once."""

    salt: str
    block_tokens: int
    digest: Digest = digest_of
    keys: list[BlockKey] = field(default_factory=list)

    def extend(self, tokens: Sequence[int], blocks: int) -> None:
        """Name the first `blocks` blocks of `tokens`, which must be full."""
        size = self.block_tokens
        last = self.keys[-1].digest if self.keys else self.digest(self.salt.encode("utf-8", "surrogatepass"))
        for index in range(len(self.keys), blocks):
            own = tuple(tokens[index * size : (index + 1) * size])
            assert len(own) == size, "only full blocks have names"
            last = self.digest(last + array("q", own).tobytes())
            self.keys.append(BlockKey(last, self.salt, own))
