"""The book of lent blocks: who holds them, where they lie, how many bytes, since when.

    asked -> lent -> moving -> host
      any of them -> ended, which is not in the book any more

Invariants: a holder has at most one lease for a block; every byte stands with its lender from the moment it is asked
for until the lease has ended or has moved, and with the holder's host memory from the beginning of a move. `now` is an
argument. Must not know policies, links or torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from gpu_node.memory.errors import LeaseFault

LeaseState = Literal["asked", "lent", "moving", "host"]
_FOLLOWS: dict[LeaseState, tuple[LeaseState, ...]] = {
    "asked": ("lent",),
    "lent": ("moving",),
    "moving": ("host", "lent"),  # back: the move has failed and nothing was let go
    "host": (),
}


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked for: blocks `first` to `behind` (excluded) of the holder's cache, in the lender's memory.

    Holder and lender are stages, by number. Leases of one `bundle` give the same blocks to different holders: they
    are of use together only."""

    holder: int
    lender: int
    first: int
    behind: int
    block_bytes: int  # of one block in the holder's layers
    priority: int = 0  # the lowest are reclaimed first
    bundle: int = 0

    @property
    def blocks(self) -> int:
        return self.behind - self.first

    @property
    def size_bytes(self) -> int:
        return self.blocks * self.block_bytes


@dataclass(frozen=True, slots=True)
class Lease:
    number: int
    terms: Terms
    granted_at: float
    used_at: float  # when one of its blocks was last needed
    state: LeaseState = "asked"

    @property
    def at_lender(self) -> int:
        """Bytes that count against the lender."""
        return 0 if self.state == "host" else self.terms.size_bytes

    @property
    def at_host(self) -> int:
        """Bytes that count against the host memory of the holder."""
        return self.terms.size_bytes if self.state in ("moving", "host") else 0


class LeaseBook:
    def __init__(self) -> None:
        self._leases: dict[int, Lease] = {}
        self._next = 1

    def __iter__(self) -> Iterator[Lease]:
        """In the order in which they were granted."""
        return iter(tuple(self._leases.values()))

    def __len__(self) -> int:
        return len(self._leases)

    def get(self, number: int) -> Lease:
        """Raises `LeaseFault` for one that is not in the book."""
        found = self._leases.get(number)
        if found is None:
            raise LeaseFault(f"there is no lease {number}")
        return found

    def grant(self, terms: Terms, now: float) -> Lease:
        """Asked for from now on. Raises `LeaseFault` where the holder has one of the blocks already."""
        if not 0 <= terms.first < terms.behind or terms.block_bytes <= 0 or terms.holder == terms.lender:
            raise LeaseFault(f"nobody can lend this: {terms}")
        for other in self._leases.values():
            theirs = other.terms
            if theirs.holder == terms.holder and terms.first < theirs.behind and theirs.first < terms.behind:
                raise LeaseFault(f"lease {other.number} has blocks {theirs.first} to {theirs.behind - 1} already")
        lease = Lease(self._next, terms, granted_at=now, used_at=now)
        self._next += 1
        self._leases[lease.number] = lease
        return lease

    def become(self, number: int, state: LeaseState) -> Lease:
        """Raises `LeaseFault` for a state that does not follow."""
        lease = self.get(number)
        if state not in _FOLLOWS[lease.state]:
            raise LeaseFault(f"lease {number} is {lease.state}, and cannot be {state} next")
        self._leases[number] = replace(lease, state=state)
        return self._leases[number]

    def end(self, number: int) -> Lease:
        """Its bytes are nobody's any more."""
        lease = self.get(number)
        del self._leases[number]
        return lease

    def use(self, highest: int, now: float) -> None:
        """Blocks up to `highest` are needed now: blocks are handed out from the lowest on."""
        for number, lease in self._leases.items():
            if lease.terms.first <= highest:
                self._leases[number] = replace(lease, used_at=now)

    def covers(self, holder: int, block: int) -> bool:
        """The holder can compute with this block: it lies somewhere."""
        return any(
            lease.terms.holder == holder and lease.terms.first <= block < lease.terms.behind and lease.state != "asked"
            for lease in self._leases.values()
        )

    def bundle(self, number: int) -> tuple[Lease, ...]:
        """All leases of the same bundle as this one."""
        wanted = self.get(number).terms.bundle
        return tuple(lease for lease in self._leases.values() if lease.terms.bundle == wanted)

    def lent_bytes(self, lender: int | None = None) -> int:
        """Of one lender, or of all."""
        return sum(lease.at_lender for lease in self if lender is None or lease.terms.lender == lender)

    def host_bytes(self, holder: int | None = None) -> int:
        return sum(lease.at_host for lease in self if holder is None or lease.terms.holder == holder)
