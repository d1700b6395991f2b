"""The waiting room equals turns as one would write them down, whatever enters, leaves, changes and is bound."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.exchange import CallerId
from server.waiting import Ticket
from tests.server.test_waiting import Room, TicketOf


@dataclass
class PlainRoom:
    """Turns as one would write them down: lists, searched from the front."""

    callers: list[str] = field(default_factory=list)
    lines: dict[str, list[tuple[int, int, str, str]]] = field(default_factory=dict)

    def enter(self, caller: str, entry: tuple[int, int, str, str]) -> None:
        if caller not in self.callers:
            self.callers.append(caller)
            self.lines[caller] = []
        self.lines[caller] = sorted([*self.lines[caller], entry])

    def leave(self, caller: str, item: str) -> None:
        self.lines[caller] = [entry for entry in self.lines[caller] if entry[2] != item]
        if not self.lines[caller]:
            self.callers.remove(caller)

    def bind(self, free: Counter[str]) -> list[str]:
        """Each kind has so many slots; callers take turns until nobody gets any more."""
        served: list[str] = []
        again = True
        while again:
            again = False
            for caller in list(self.callers):
                fitting = [entry for entry in self.lines[caller] if free[entry[3]] > 0]
                if fitting:
                    _, _, item, kind = fitting[0]
                    free[kind] -= 1
                    served.append(item)
                    self.leave(caller, item)
                    if caller in self.callers:
                        self.callers.remove(caller)
                        self.callers.append(caller)
                    again = True
        return served


class TheRoomEqualsThePlainOne(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.room = Room(1000)
        self.plain = PlainRoom()
        self.tickets: dict[str, TicketOf] = {}
        self.numbers = count()

    @rule(caller=st.sampled_from("abc"), priority=st.integers(-1, 1), kind=st.sampled_from("xyz"), alone=st.booleans())
    def enter(self, caller: str, priority: int, kind: str, alone: bool) -> None:
        number = next(self.numbers)
        item = f"{kind}{number}"
        self.tickets[item] = Ticket(CallerId(caller), priority, number, 0.0, item, number if alone else kind)
        self.room.enter(self.tickets[item])
        self.plain.enter(caller, (-priority, number, item, kind))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.tickets)))
        ticket = self.tickets.pop(item)
        self.room.leave(ticket)
        self.plain.leave(ticket.caller, item)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.tickets)))
        self.room.move(self.tickets[item], item[0])  # one that was alone is like others now

    @rule(free=st.dictionaries(st.sampled_from("xyz"), st.integers(0, 3)))
    def bind(self, free: dict[str, int]) -> None:
        left, served = Counter(free), []

        def offer(ticket: TicketOf) -> bool:
            if left[ticket.item[0]] <= 0:
                return False
            left[ticket.item[0]] -= 1
            served.append(ticket.item)
            return True

        assert self.room.bind(offer) == len(served)
        assert served == self.plain.bind(Counter(free))
        for item in served:
            del self.tickets[item]

    @invariant()
    def counts_agree(self) -> None:
        assert self.room.waiting == len(self.tickets)
        assert {ticket.item for ticket in self.room} == set(self.tickets)
        assert sorted(self.room.callers, key=lambda name: self.room.callers[name].turn) == self.plain.callers
        assert self.room.by_caller() == {caller: len(self.plain.lines[caller]) for caller in self.plain.callers}
        kinds = Counter(ticket.kind for ticket in self.tickets.values())
        assert {kind: group.live for kind, group in self.room.groups.items()} == kinds
        for kind, group in self.room.groups.items():
            assert set(group) == {ticket for ticket in self.tickets.values() if ticket.kind == kind}
            assert group.entries == sum(len(line) for line in group.lines.values())
            assert sorted(caller for _, caller in group.turns) == sorted(group.lines)


TestTheRoomEqualsThePlainOne = TheRoomEqualsThePlainOne.TestCase
TestTheRoomEqualsThePlainOne.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
