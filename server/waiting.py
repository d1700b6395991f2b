"""The one bounded, fair queue: requests that no node can take yet. Pure data, no clock and no futures of its own.

Equal callers get equal turns; within one caller higher priority goes first, then who came first. A request is bound
to a node only when `bind` finds a free slot, so a slow phone never owns what a free one could start; one that cannot be
bound now never holds up others that can.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Generic, TypeVar

from server.exchange import CallerId

T = TypeVar("T")
SWEPT_AT = 16  # entries of a line, at least: shorter ones are not worth sweeping


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """A place in the queue. `sequence` keeps it when a request goes back after a busy answer.

    Requests of one `kind` are alike: where one is refused, so are all. None: no other is like it.
    """

    caller: CallerId
    priority: int
    sequence: int
    since: float
    item: T
    kind: Hashable | None = None
    gone: bool = False

    def __lt__(self, other: Ticket[T]) -> bool:
        return (-self.priority, self.sequence) < (-other.priority, other.sequence)


@dataclass(slots=True)
class _Line(Generic[T]):
    """The tickets of one caller: a heap that still holds some that are gone."""

    heap: list[tuple[int, int, Ticket[T]]] = field(default_factory=list)  # compared without a call into Python
    live: int = 0

    def push(self, ticket: Ticket[T]) -> None:
        heapq.heappush(self.heap, (-ticket.priority, ticket.sequence, ticket))
        self.live += 1

    def sweep(self) -> None:
        """One ticket is gone. The head never is, and never are most of the others."""
        self.live -= 1
        while self.heap and self.heap[0][2].gone:
            heapq.heappop(self.heap)
        if len(self.heap) > max(SWEPT_AT, 2 * self.live):
            self.heap = [entry for entry in self.heap if not entry[2].gone]
            heapq.heapify(self.heap)

    def in_order(self) -> Iterator[Ticket[T]]:
        """The head is nearly always the one that is wanted; the rest is sorted only when it is not."""
        head = self.heap[0][2]
        yield head
        if self.live > 1:
            yield from (ticket for *_, ticket in sorted(self.heap) if not ticket.gone and ticket is not head)


@dataclass(slots=True)
class _Round:
    """What is left to be offered: the usual end must not cost a look at everybody who waits."""

    left: int
    refused: set[Hashable] = field(default_factory=set)


@dataclass(slots=True)
class WaitingRoom(Generic[T]):
    """All tickets, by caller. Callers take turns: who was served goes to the end of the line of callers."""

    limit: int
    lines: OrderedDict[CallerId, _Line[T]] = field(default_factory=OrderedDict)
    waiting: int = 0
    kinds: Counter[Hashable] = field(default_factory=Counter)
    _places: dict[Ticket[T], int] = field(default_factory=dict)  # empty: to be counted anew

    @property
    def full(self) -> bool:
        return self.waiting >= self.limit

    def enter(self, ticket: Ticket[T]) -> None:
        line = self.lines.get(ticket.caller)
        if line is None:
            line = self.lines[ticket.caller] = _Line()
        line.push(ticket)
        self.waiting += 1
        self.kinds[ticket.kind] += 1
        self._places.clear()

    def leave(self, ticket: Ticket[T]) -> None:
        """The request gave up, or was bound."""
        if ticket.gone:
            return
        ticket.gone = True
        self.waiting -= 1
        self.kinds[ticket.kind] -= 1
        if not self.kinds[ticket.kind]:
            del self.kinds[ticket.kind]
        line = self.lines[ticket.caller]
        line.sweep()
        if not line.live:
            del self.lines[ticket.caller]
        self._places.clear()

    def bind(self, offer: Callable[[T], bool]) -> int:
        """Offer waiting requests, in fair order, until no further one can be bound. Returns how many were.

        `offer` binds an item and returns True, or returns False for "not now": then neither it nor any of its kind is
        offered again in this round.
        """
        bound = 0
        turn = _Round(self.waiting)
        again = True
        while again:
            again = False
            for caller in list(self.lines):
                if not turn.left:
                    return bound
                ticket = self._first_bindable(caller, offer, turn)
                if ticket is not None:
                    self.leave(ticket)
                    if caller in self.lines:
                        self.lines.move_to_end(caller)
                    bound += 1
                    again = True
        return bound

    def _first_bindable(self, caller: CallerId, offer: Callable[[T], bool], turn: _Round) -> Ticket[T] | None:
        line = self.lines.get(caller)
        if line is None:
            return None
        for ticket in line.in_order():
            likeness = ticket if ticket.kind is None else ticket.kind
            if likeness in turn.refused:
                continue
            if offer(ticket.item):
                turn.left -= 1
                return ticket
            turn.refused.add(likeness)
            turn.left -= 1 if ticket.kind is None else self.kinds[ticket.kind]
            if not turn.left:
                return None
        return None

    def position(self, ticket: Ticket[T]) -> int:
        """Its place in the fair order, from 1: each round serves one ticket of each caller, in the callers' order.

        Of a ticket that was bound a moment ago: 1.
        """
        if not self._places:
            rounds = zip_longest(*(line.in_order() for line in self.lines.values()))
            order = (ticket for turns in rounds for ticket in turns if ticket is not None)
            self._places.update((ticket, place) for place, ticket in enumerate(order, 1))
        return self._places.get(ticket, 1)

    def by_caller(self) -> dict[CallerId, int]:
        return {caller: line.live for caller, line in self.lines.items()}

    def __iter__(self) -> Iterator[Ticket[T]]:
        for line in self.lines.values():
            yield from (ticket for *_, ticket in line.heap if not ticket.gone)
