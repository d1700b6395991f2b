"""The one bounded, fair queue: requests that no node can take yet. Pure data, no clock and no futures of its own.

Equal callers get equal turns; within one caller higher priority goes first, then who came first. A request is bound
to a node only when `bind` finds a free slot, so a slow phone never owns what a free one could start; one that cannot be
bound now never holds up others that can. Requests of one kind are alike, so a kind that is refused costs one look,
however many wait; nothing here but counting places takes longer when more wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from server.exchange import CallerId

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
SWEPT_AT = 16  # entries of a group, at least: smaller ones are not worth sweeping
COUNTED_AT_ONCE = 64  # so many are counted after every change: it takes no longer than binding one
PLACES_SECONDS = 0.5  # in a larger room places may be so old: counting ten thousand takes some 20 ms


@dataclass(slots=True, eq=False)
class Ticket(Generic[T, K]):
    """A place in the queue. `sequence`, unique, keeps it when a request goes back after a busy answer.

    Requests of one `kind` are alike: where one is refused, so are all.
    """

    caller: CallerId
    priority: int
    sequence: int
    since: float
    item: T
    kind: K
    gone: bool = False


@dataclass(slots=True, eq=False)
class Group(Generic[T, K]):
    """The tickets of one kind: the line of each caller, and the callers in the order of their turns.

    Tickets leave without being looked for: a head that is gone is dropped when it is met, the others by `sweep`.
    """

    kind: K
    lines: dict[CallerId, list[tuple[int, int, Ticket[T, K]]]] = field(default_factory=dict)  # heaps
    turns: list[tuple[int, CallerId]] = field(default_factory=list)  # a heap; one may be earlier than it really is
    live: int = 0
    entries: int = 0  # of all lines: the live ones, and those that are gone
    hopeless_since: float | None = None  # no node in service can serve them: kept by who offers

    def push(self, ticket: Ticket[T, K], turn: int) -> None:
        line = self.lines.get(ticket.caller)
        if line is None:
            line = self.lines[ticket.caller] = []
            heapq.heappush(self.turns, (turn, ticket.caller))
        heapq.heappush(line, (-ticket.priority, ticket.sequence, ticket))
        self.live += 1
        self.entries += 1

    def has(self, ticket: Ticket[T, K]) -> bool:
        return not ticket.gone and ticket.kind == self.kind

    def first_of(self, caller: CallerId) -> tuple[int, int, Ticket[T, K]] | None:
        line = self.lines[caller]
        while line and not self.has(line[0][2]):
            heapq.heappop(line)
            self.entries -= 1
        return line[0] if line else None

    def drop(self) -> None:
        """One ticket is gone."""
        self.live -= 1
        if self.entries <= max(SWEPT_AT, 2 * self.live):
            return
        for caller, line in list(self.lines.items()):
            line[:] = [entry for entry in line if self.has(entry[2])]
            heapq.heapify(line)
            if not line:
                del self.lines[caller]
        self.turns = [turn for turn in self.turns if turn[1] in self.lines]
        heapq.heapify(self.turns)
        self.entries = self.live

    def __iter__(self) -> Iterator[Ticket[T, K]]:
        return (ticket for line in self.lines.values() for *_, ticket in line if self.has(ticket))


@dataclass(slots=True)
class _Caller:
    """`turn`: who was served goes behind all others."""

    turn: int
    live: int = 0


@dataclass(slots=True)
class WaitingRoom(Generic[T, K]):
    """All tickets, by kind and caller. Callers take turns: the lowest turn of those that can be served is next."""

    limit: int
    callers: dict[CallerId, _Caller] = field(default_factory=dict)
    groups: dict[K, Group[T, K]] = field(default_factory=dict)
    waiting: int = 0
    _turns: Iterator[int] = field(default_factory=count)
    _places: dict[Ticket[T, K], int] = field(default_factory=dict)
    _counted_at: float | None = None  # None: nobody has been counted
    _changed: bool = False  # since they were counted

    @property
    def full(self) -> bool:
        return self.waiting >= self.limit

    def enter(self, ticket: Ticket[T, K]) -> None:
        caller = self.callers.get(ticket.caller)
        if caller is None:
            caller = self.callers[ticket.caller] = _Caller(next(self._turns))
        caller.live += 1
        self.waiting += 1
        self._changed = True
        self._join(ticket, caller)

    def leave(self, ticket: Ticket[T, K]) -> None:
        """The request gave up, or was bound."""
        if ticket.gone:
            return
        ticket.gone = True
        self.waiting -= 1
        self._changed = True
        caller = self.callers[ticket.caller]
        caller.live -= 1
        if not caller.live:
            del self.callers[ticket.caller]
        if not self.waiting:
            self._places.clear()
        self._part(ticket.kind)

    def move(self, ticket: Ticket[T, K], kind: K) -> None:
        """It is of another kind now (never again of this one), and keeps its place."""
        if ticket.gone or ticket.kind == kind:
            return
        before, ticket.kind = ticket.kind, kind
        self._join(ticket, self.callers[ticket.caller])
        self._part(before)

    def _join(self, ticket: Ticket[T, K], caller: _Caller) -> None:
        group = self.groups.get(ticket.kind)
        if group is None:
            group = self.groups[ticket.kind] = Group(ticket.kind)
        group.push(ticket, caller.turn)

    def _part(self, kind: K) -> None:
        group = self.groups[kind]
        group.drop()
        if not group.live:
            del self.groups[kind]

    def of(self, kind: K) -> list[Ticket[T, K]]:
        group = self.groups.get(kind)
        return list(group) if group is not None else []

    def bind(
        self,
        offer: Callable[[Ticket[T, K]], bool],
        concerns: Callable[[K], bool] = lambda _: True,
        enough: Callable[[], bool] = lambda: False,
    ) -> int:
        """Offer waiting requests, in fair order, until no further one can be bound. Returns how many were.

        `offer` binds a ticket's item and returns True, or returns False for "not now": then neither it nor any of its
        kind is offered again in this round. Kinds that it does not concern are left out; `enough` ends the round.
        """
        heads = [head for group in self.groups.values() if concerns(group.kind) and (head := self._head(group))]
        heapq.heapify(heads)
        bound = 0
        while heads and not enough():
            *_, ticket, group = heads[0]
            head = self._head(group)
            if head is None:
                heapq.heappop(heads)
            elif head != heads[0]:  # it was bound, or its caller has had a turn since
                heapq.heapreplace(heads, head)
            elif offer(ticket):
                bound += 1
                self.leave(ticket)
                if ticket.caller in self.callers:
                    self.callers[ticket.caller].turn = next(self._turns)
            else:
                heapq.heappop(heads)
        return bound

    def _head(self, group: Group[T, K]) -> tuple[int, int, int, Ticket[T, K], Group[T, K]] | None:
        """Who is next in the group: the caller's turn, then the order within its line."""
        while group.turns:
            turn, caller_id = group.turns[0]
            first = group.first_of(caller_id)
            if first is None:
                heapq.heappop(group.turns)
                del group.lines[caller_id]
            elif turn != self.callers[caller_id].turn:
                heapq.heapreplace(group.turns, (self.callers[caller_id].turn, caller_id))
            else:
                return (turn, *first, group)
        return None

    def position(self, ticket: Ticket[T, K], now: float) -> int:
        """Its place in the fair order, from 1: each round serves one ticket of each caller, in the callers' order.

        In a large room as it was up to `PLACES_SECONDS` ago, and at first not more than it can be. Of a ticket that
        was bound a moment ago: 1.
        """
        if ticket.gone:
            return 1
        if self._changed and (self.waiting <= COUNTED_AT_ONCE or self._is_old(now)):
            self._count(now)
        place = self._places.get(ticket)
        return min(self.waiting, len(self.callers) * self.callers[ticket.caller].live) if place is None else place

    def _is_old(self, now: float) -> bool:
        return self._counted_at is None or now - self._counted_at >= PLACES_SECONDS

    def _count(self, now: float) -> None:
        lines: dict[CallerId, list[tuple[int, int, Ticket[T, K]]]] = {caller: [] for caller in self.callers}
        for ticket in self:
            lines[ticket.caller].append((-ticket.priority, ticket.sequence, ticket))
        order: list[tuple[int, int, Ticket[T, K]]] = []
        for caller, line in lines.items():
            turn = self.callers[caller].turn
            order += [(number, turn, entry[-1]) for number, entry in enumerate(sorted(line))]
        self._places = {entry[-1]: place for place, entry in enumerate(sorted(order), 1)}
        self._counted_at, self._changed = now, False

    def by_caller(self) -> dict[CallerId, int]:
        return {caller_id: caller.live for caller_id, caller in self.callers.items()}

    def __iter__(self) -> Iterator[Ticket[T, K]]:
        return (ticket for group in self.groups.values() for ticket in group)
