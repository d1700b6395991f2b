"""The head's side of lending: which blocks are granted to whom, which are asked back, and what the engine is told.

A block of a split model has a place on every stage. Those that some stage has no room for are retired from the start;
a grant gives them a lender for each stage that is short, as one bundle of leases, and only then they can be used.
Invariants: a block is open to the engine exactly while every stage has a place for it; decisions change the book at
once, and what became of them is told back (`granted`, `refused`, `moved`, `ended`). Not for several threads, but for
`status`. Must not know workers, orders or torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpu_node.memory.leases import Lease, LeaseBook, Terms
from gpu_node.memory.lending_policy import (
    Lender,
    LendingPolicy,
    choose_lender,
    due_bytes,
    idle_leases,
    lendable_bytes,
    may_move,
    to_reclaim,
)
from gpu_node.pipeline_status import LeaseStatus, LendingStatus

# A grant that keeps somebody running is worth more than one for what waits.
USUAL, URGENT = 0, 1


@dataclass(frozen=True, slots=True)
class StageCache:
    """A stage as it took its part: blocks below `near_count` are its own."""

    device: str
    block_bytes: int
    near_count: int


@dataclass(frozen=True, slots=True)
class StageNow:
    """Its device at this moment. `used_bytes`: everything in use, lent or its own. `link_pace`: bytes a second."""

    total_bytes: int
    used_bytes: int
    link_pace: float = 1e9
    idle_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Reclaim:
    """The lender gets its memory back; the blocks go to the holder's host memory, or are computed anew."""

    lease: Lease
    to_host: bool


@dataclass(frozen=True, slots=True)
class Moves:
    grants: tuple[Lease, ...] = ()
    reclaims: tuple[Reclaim, ...] = ()
    repayments: tuple[Lease, ...] = ()  # nobody needs their blocks, or the other leases of their bundle are gone

    def __bool__(self) -> bool:
        return bool(self.grants or self.reclaims or self.repayments)


class LendingDesk:
    def __init__(self, policy: LendingPolicy, stages: Sequence[StageCache], block_count: int) -> None:
        self.policy, self.stages, self.block_count = policy, tuple(stages), block_count
        self.promised = min(min(stage.near_count for stage in stages), block_count)
        self.book = LeaseBook()
        self._open: frozenset[int] = frozenset()  # blocks behind the promised ones that the engine may use
        self._bundles = 0
        self._refused_at: float | None = None
        self._granted = self._reclaimed = self._refused = self._recomputed = self._moved = 0

    @property
    def wants_more(self) -> bool:
        """There are blocks that a grant could open."""
        return self.promised + len(self._open) < self.block_count

    def has(self, lease: int) -> bool:
        """It is in the book still."""
        return any(each.number == lease for each in self.book)

    def is_due(self, now_at: Sequence[StageNow], now: float) -> bool:
        """`decide` would ask or give something back, without any shortage."""
        needs = (due_bytes(self._lender(stage, state), self.policy) for stage, state in enumerate(now_at))
        return any(needs) or bool(idle_leases(self.book, now, self.policy))

    def decide(self, shortage: int, now_at: Sequence[StageNow], now: float, urgent: bool = False) -> Moves:
        """`now_at`: by stage. `shortage`: blocks that the engine would use at once; `urgent`: or somebody who runs
        gives way. Reclaims come first: who is in need itself lends nothing."""
        reclaims = self._reclaims(now_at)
        repayments = self._gone_with(reclaims)
        if not shortage:
            repayments += self._idle(now, [*reclaims, *repayments])
        grants: list[Lease] = []
        if shortage > 0 and self._may_ask(now, urgent):
            grants = self._grants(shortage, now_at, now, urgent)
        return Moves(tuple(grants), tuple(reclaims), tuple(repayments))

    def granted(self, lease: int) -> None:
        self.book.become(lease, "lent")
        self._granted += 1

    def refused(self, lease: int, now: float) -> None:
        """It was not to be had after all; the caller ends the rest of its bundle with `ended`."""
        self.book.end(lease)
        self._refuse(now)

    def moved(self, lease: int) -> None:
        """It lies in host memory, and the lender has its bytes back."""
        found = self.book.become(lease, "host")
        self._reclaimed += 1
        self._moved += found.terms.blocks

    def ended(self, lease: int, reclaimed: bool = False) -> None:
        """`reclaimed`: its blocks are computed anew where somebody needs them."""
        found = self.book.end(lease)
        if reclaimed:
            self._reclaimed += 1
            self._recomputed += found.terms.blocks

    def used(self, highest: int, now: float) -> None:
        """A step needs blocks up to this one."""
        if highest >= self.promised:
            self.book.use(highest, now)

    def changes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Blocks that the engine may use from now on, and those that it may not any more."""
        found = frozenset(
            block
            for block in range(self.promised, self.block_count)
            if all(stage.near_count > block or self.book.covers(at, block) for at, stage in enumerate(self.stages))
        )
        restored, retired = found - self._open, self._open - found
        self._open = found
        return tuple(sorted(restored)), tuple(sorted(retired))

    def status(self, now: float) -> LendingStatus:
        leases = tuple(
            LeaseStatus(
                lease.number,
                self.stages[lease.terms.lender].device,
                self.stages[lease.terms.holder].device,
                lease.terms.blocks,
                lease.terms.size_bytes,
                lease.terms.priority,
                max(now - lease.granted_at, 0.0),
                lease.state,
            )
            for lease in self.book
        )
        return LendingStatus(
            self.policy.ratio, self.policy.threshold, self.book.lent_bytes(), self.book.host_bytes(), self._granted,
            self._reclaimed, self._refused, self._recomputed, self._moved, leases,
        )  # fmt: skip

    def _may_ask(self, now: float, urgent: bool) -> bool:
        return urgent or self._refused_at is None or now - self._refused_at >= self.policy.pause_seconds

    def _refuse(self, now: float) -> None:
        self._refused += 1
        self._refused_at = now

    def _lender(self, stage: int, now_at: StageNow, extra: int = 0, unbooked: int = 0) -> Lender:
        """`extra`: bytes that were decided on and are not in use yet, `unbooked` of them are not in the book either."""
        short = self.stages[stage].near_count < self.block_count
        lent = self.book.lent_bytes(stage) + unbooked
        return Lender(
            stage, now_at.total_bytes, now_at.used_bytes + extra, lent, now_at.link_pace, now_at.idle_seconds, short
        )

    def _reclaims(self, now_at: Sequence[StageNow]) -> list[Reclaim]:
        found, spent = [], 0
        for stage, state in enumerate(now_at):
            due = due_bytes(self._lender(stage, state), self.policy)
            mine = [lease for lease in self.book if lease.terms.lender == stage]
            for lease in to_reclaim(mine, due):
                host = self.book.host_bytes(lease.terms.holder)
                to_host = may_move(lease, host, state.link_pace, spent, self.policy)
                spent += lease.terms.size_bytes if to_host else 0
                found.append(Reclaim(self.book.become(lease.number, "moving") if to_host else lease, to_host))
        return found

    def _gone_with(self, reclaims: Sequence[Reclaim]) -> list[Lease]:
        """The rest of the bundles whose blocks are let go."""
        ending = {one.lease.number for one in reclaims}
        bundles = {one.lease.terms.bundle for one in reclaims if not one.to_host}
        return [lease for lease in self.book if lease.terms.bundle in bundles and lease.number not in ending]

    def _idle(self, now: float, ending: Sequence[Reclaim | Lease]) -> list[Lease]:
        numbers = {one.lease.number if isinstance(one, Reclaim) else one.number for one in ending}
        bundles = {lease.terms.bundle for lease in idle_leases(self.book, now, self.policy)}
        return [lease for lease in self.book if lease.terms.bundle in bundles and lease.number not in numbers]

    def _grants(self, shortage: int, now_at: Sequence[StageNow], now: float, urgent: bool) -> list[Lease]:
        """Bundle by bundle from the lowest block on that is not open; as many again as there are at least, so that
        leases stay few. What an urgent need asked for is of more worth than what comes along."""
        wanted = max(shortage, self.policy.chunk_blocks, len(self._open))
        parts = [(shortage, URGENT), (wanted - shortage, USUAL)] if urgent else [(wanted, USUAL)]
        granted: list[Lease] = []
        asked = [0] * len(self.stages)  # bytes by lender, in this decision
        for count, priority in parts:
            while count > 0:
                span = self._next_span(count)
                leases = self._bundle(span, now_at, asked, now, priority) if span else []
                if not leases:
                    if span and not granted:
                        self._refuse(now)
                    return granted
                granted += leases
                count -= leases[0].terms.blocks
        return granted

    def _next_span(self, most: int) -> tuple[int, int] | None:
        """The lowest blocks without a place everywhere, and for all of which the same stages are short."""
        taken = [
            range(lease.terms.first, lease.terms.behind) for lease in self.book if lease.terms.first >= self.promised
        ]
        free = (block for block in range(self.promised, self.block_count) if not any(block in each for each in taken))
        first = next(free, None)
        if first is None:
            return None
        bounds = [stage.near_count for stage in self.stages if stage.near_count > first]
        bounds += [each.start for each in taken if each.start > first]
        return first, min([first + most, self.block_count, *bounds])

    def _bundle(
        self, span: tuple[int, int], now_at: Sequence[StageNow], asked: list[int], now: float, priority: int
    ) -> list[Lease]:
        """Leases for as many of these blocks as somebody has room for, from the first on; none where for not one."""
        count = span[1] - span[0]
        while count > 0:
            chosen = self._lenders_for(span[0], count, now_at, asked)
            if chosen is not None:
                break
            count //= 2
        else:
            return []
        self._bundles += 1
        terms = Terms(0, 0, span[0], span[0] + count, 0, priority, self._bundles)
        found = []
        for holder, lender in chosen.items():
            size = self.stages[holder].block_bytes
            found.append(self.book.grant(replace(terms, holder=holder, lender=lender, block_bytes=size), now))
            asked[lender] += count * size
        return found

    def _lenders_for(
        self, first: int, count: int, now_at: Sequence[StageNow], asked: Sequence[int]
    ) -> dict[int, int] | None:
        """By holder; None where one of them finds nobody."""
        extra, found = list(asked), {}
        for holder, stage in enumerate(self.stages):
            if stage.near_count > first:
                continue
            size = count * stage.block_bytes
            lenders = [
                self._lender(at, state, extra[at], extra[at] - asked[at])
                for at, state in enumerate(now_at)
                if at != holder
            ]
            best = choose_lender(lenders, size, self.policy)
            if best is None:
                return None
            found[holder] = best.stage
            extra[best.stage] += size
        return found


def most_blocks(stages: Sequence[StageCache], now_at: Sequence[StageNow], wanted: int, policy: LendingPolicy) -> int:
    """So many blocks, at most `wanted`, can be there at once when the stages lend to each other. `near_count` of each
    stage: what it has room for; of `now_at` no cache is in use yet."""

    def fits(count: int) -> bool:
        short = sum(max(count - stage.near_count, 0) * stage.block_bytes for stage in stages)
        spare = sum(
            lendable_bytes(Lender(at, state.total_bytes, state.used_bytes + count * stage.block_bytes), policy)
            for at, (stage, state) in enumerate(zip(stages, now_at, strict=True))
            if stage.near_count >= count
        )
        return short <= spare

    low, high = min(min(stage.near_count for stage in stages), wanted), wanted
    while low < high:  # fewer blocks need less and leave more to lend
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
