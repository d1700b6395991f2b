"""Who lends, how much, and what is asked back first: pure decisions over plain numbers.

A lender is chosen by a score of its free capacity, its link's pace and how long it has been idle, 40 : 30 : 30 unless
set otherwise, each measured against the best candidate's. Invariants: no device lends more than a share of its memory,
nor what is not free, nor up to where reclaim would begin at once; who is short itself never lends. Asked back are
leases of low priority first, among these the youngest: the blocks with the highest numbers, which are handed out last
and so have the least computed in them. Must not know links, orders or clocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpu_node.memory.leases import Lease

# A device that has computed nothing for so long is as idle as can be: more says nothing about what comes.
IDLE_MOST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ScoreWeights:
    capacity: float = 40.0
    link: float = 30.0
    idle: float = 30.0

    def __post_init__(self) -> None:
        if min(self.capacity, self.link, self.idle) < 0 or not self.capacity + self.link + self.idle:
            raise ValueError("a lender is chosen by weights of which none is negative and one is more than nothing")


@dataclass(frozen=True, slots=True)
class LendingPolicy:
    ratio: float = 0.7  # of a device's memory, the most that is lent
    threshold: float = 0.8  # of a device's memory: reclaim begins when more is in use
    weights: ScoreWeights = ScoreWeights()
    chunk_blocks: int = 16  # granted at once, so that not every new block costs an order
    host_bytes: int = 1 << 30  # of one holder's host memory, for what was reclaimed
    move_seconds: float = 1.0  # a reclaim that would take longer than this lets blocks be computed anew
    idle_seconds: float = 120.0  # leases that nobody has needed for so long are given back
    pause_seconds: float = 1.0  # after a refusal, ordinary needs ask no earlier than this; urgent ones do

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1 or not 0 <= self.threshold <= 1:
            raise ValueError("what may be lent, and what may be in use, are shares of a device's memory")
        if self.chunk_blocks < 1 or min(self.host_bytes, self.move_seconds, self.idle_seconds, self.pause_seconds) < 0:
            raise ValueError("bytes and seconds of lending are not negative, and a chunk has a block")


@dataclass(frozen=True, slots=True)
class Lender:
    """A device as a lender: bytes, all of them now. `used_bytes` is everything in use, `lent_bytes` among it."""

    stage: int
    total_bytes: int
    used_bytes: int
    lent_bytes: int = 0
    link_pace: float = 1.0  # bytes a second between it and who asks
    idle_seconds: float = 0.0
    short: bool = False  # its own blocks do not suffice

    @property
    def free_bytes(self) -> int:
        return max(self.total_bytes - self.used_bytes, 0)

    @property
    def use(self) -> float:
        return self.used_bytes / self.total_bytes if self.total_bytes else 1.0


USUAL_POLICY = LendingPolicy()


def lendable_bytes(lender: Lender, policy: LendingPolicy) -> int:
    """What it may lend beyond what it has lent."""
    if lender.short:
        return 0
    share = int(policy.ratio * lender.total_bytes) - lender.lent_bytes
    quiet = int(policy.threshold * lender.total_bytes) - lender.used_bytes
    return max(min(share, quiet, lender.free_bytes), 0)


def scores(lenders: Sequence[Lender], policy: LendingPolicy) -> dict[int, float]:
    """By stage, 0 to 1: how good a lender each would be among these."""
    weights = policy.weights
    rooms = [float(lendable_bytes(lender, policy)) for lender in lenders]
    paces = [max(lender.link_pace, 0.0) for lender in lenders]
    idles = [min(max(lender.idle_seconds, 0.0), IDLE_MOST_SECONDS) for lender in lenders]
    parts = zip(_shares(rooms), _shares(paces), _shares(idles), strict=True)
    together = weights.capacity + weights.link + weights.idle
    return {
        lender.stage: (weights.capacity * room + weights.link * pace + weights.idle * idle) / together
        for lender, (room, pace, idle) in zip(lenders, parts, strict=True)
    }


def choose_lender(lenders: Sequence[Lender], wanted_bytes: int, policy: LendingPolicy) -> Lender | None:
    """The best of those that may lend so much at once; the lower stage number where they are alike. None: nobody."""
    able = [lender for lender in lenders if lendable_bytes(lender, policy) >= wanted_bytes]
    found = scores(able, policy)
    return max(able, key=lambda lender: (found[lender.stage], -lender.stage), default=None)


def due_bytes(lender: Lender, policy: LendingPolicy) -> int:
    """What it must get back now: it is in use beyond the threshold, or has lent more than its share."""
    over = lender.used_bytes - int(policy.threshold * lender.total_bytes)
    beyond = lender.lent_bytes - int(policy.ratio * lender.total_bytes)
    return min(max(over, beyond, 0), lender.lent_bytes)


def reclaim_order(leases: Iterable[Lease]) -> list[Lease]:
    """Those that go first come first."""
    return sorted(leases, key=lambda lease: (lease.terms.priority, -lease.granted_at, -lease.number))


def to_reclaim(leases: Iterable[Lease], wanted_bytes: int, below: int | None = None) -> list[Lease]:
    """As many as make up the bytes, or all there are; `below`: only of lower priority than this."""
    chosen: list[Lease] = []
    for lease in reclaim_order(leases):
        if wanted_bytes <= 0 or (below is not None and lease.terms.priority >= below):
            break
        if lease.state == "lent":
            chosen.append(lease)
            wanted_bytes -= lease.terms.size_bytes
    return chosen


def may_move(lease: Lease, host_bytes: int, pace: float, spent_bytes: int, policy: LendingPolicy) -> bool:
    """Whether a reclaimed lease goes to host memory: there is room beside `host_bytes`, and after `spent_bytes` of this
    round it still comes over in time."""
    size = lease.terms.size_bytes
    return host_bytes + size <= policy.host_bytes and spent_bytes + size <= pace * policy.move_seconds


def idle_leases(leases: Iterable[Lease], now: float, policy: LendingPolicy) -> list[Lease]:
    """To be given back: for long nobody has needed any of their blocks."""
    return [lease for lease in leases if lease.state != "asked" and now - lease.used_at >= policy.idle_seconds]


def _shares(numbers: Sequence[float]) -> list[float]:
    """Of the largest."""
    largest = max(numbers, default=0.0)
    return [number / largest if largest > 0 else 0.0 for number in numbers]
