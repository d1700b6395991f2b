"""The one bounded, fair queue: requests that no node can take yet. Pure data, no clock and no futures of its own.

Equal callers get equal turns; within one caller higher priority goes first, then who came first. A request is bound
to a node only when `bind` finds a free slot, so a slow phone never owns what a free one could start; one that cannot be
bound now never holds up others that can.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from server.exchange import CallerId

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """A place in the queue. `sequence` keeps it when a request goes back after a busy answer."""

    caller: CallerId
    priority: int
    sequence: int
    since: float
    item: T
    gone: bool = False

    def __lt__(self, other: Ticket[T]) -> bool:
        return (-self.priority, self.sequence) < (-other.priority, other.sequence)


@dataclass(slots=True)
class WaitingRoom(Generic[T]):
    """All tickets, by caller. Callers take turns: who was served goes to the end of the line of callers."""

    limit: int
    lines: OrderedDict[CallerId, list[Ticket[T]]] = field(default_factory=OrderedDict)  # each a heap
    waiting: int = 0

    @property
    def full(self) -> bool:
        return self.waiting >= self.limit

    def enter(self, ticket: Ticket[T]) -> None:
        heapq.heappush(self.lines.setdefault(ticket.caller, []), ticket)
        self.waiting += 1

    def leave(self, ticket: Ticket[T]) -> None:
        """The request gave up, or was bound. Its heap entry is swept later, or with the caller's last ticket."""
        if ticket.gone:
            return
        ticket.gone = True
        self.waiting -= 1
        line = self.lines.get(ticket.caller)
        while line and line[0].gone:
            heapq.heappop(line)
        if line is not None and not line:
            del self.lines[ticket.caller]

    def bind(self, offer: Callable[[T], bool], kind: Callable[[T], Hashable | None]) -> int:
        """Offer waiting requests, in fair order, until no further one can be bound. Returns how many were.

        `offer` binds an item and returns True, or returns False for "not now". After a False all items of the same
        `kind` are passed over in this round (None: no other is like it).
        """
        bound = 0
        refused: set[Hashable] = set()
        again = True
        while again:
            again = False
            for caller in list(self.lines):
                ticket = self._first_bindable(caller, offer, kind, refused)
                if ticket is not None:
                    self.leave(ticket)
                    if caller in self.lines:
                        self.lines.move_to_end(caller)
                    bound += 1
                    again = True
        return bound

    def _first_bindable(
        self,
        caller: CallerId,
        offer: Callable[[T], bool],
        kind: Callable[[T], Hashable | None],
        refused: set[Hashable],
    ) -> Ticket[T] | None:
        line = self.lines.get(caller, [])
        # the head is nearly always the one; the rest is sorted only when it cannot be bound
        for ticket in _in_order(line):
            likeness = kind(ticket.item)
            if likeness is not None and likeness in refused:
                continue
            if offer(ticket.item):
                return ticket
            if likeness is not None:
                refused.add(likeness)
        return None

    def position(self, ticket: Ticket[T]) -> int:
        """Its place in the fair order, from 1: with equal turns, each other caller comes at most once a round."""
        line = self.lines.get(ticket.caller, [])
        before_mine = sum(1 for other in line if not other.gone and other < ticket)
        ahead = before_mine
        mine_seen = False
        for caller, others in self.lines.items():
            if caller == ticket.caller:
                mine_seen = True
                continue
            turns = before_mine + (0 if mine_seen else 1)
            ahead += min(turns, sum(1 for other in others if not other.gone))
        return ahead + 1

    def by_caller(self) -> dict[CallerId, int]:
        return {caller: sum(1 for ticket in line if not ticket.gone) for caller, line in self.lines.items()}

    def __iter__(self) -> Iterator[Ticket[T]]:
        for line in self.lines.values():
            yield from (ticket for ticket in line if not ticket.gone)


def _in_order(line: list[Ticket[T]]) -> Iterator[Ticket[T]]:
    if not line:
        return
    head = line[0]
    if not head.gone:
        yield head
    if len(line) > 1:
        yield from (ticket for ticket in sorted(line) if not ticket.gone and ticket is not head)
