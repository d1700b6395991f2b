"""The one queue: fair among callers, priorities within one, and nobody held up by what cannot be bound now."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.exchange import CallerId
from server.waiting import COUNTED_AT_ONCE, PLACES_SECONDS, SWEPT_AT, Ticket, WaitingRoom

SEQUENCE = count()
Room = WaitingRoom[str, Hashable]
TicketOf = Ticket[str, Hashable]


def enter(room: Room, caller: str, item: str, priority: int = 0, kind: Hashable = "plain") -> TicketOf:
    ticket = Ticket(CallerId(caller), priority, next(SEQUENCE), 0.0, item, kind)
    room.enter(ticket)
    return ticket


def slots(served: list[str], number: int, only: Callable[[str], bool] = lambda _: True) -> Callable[[TicketOf], bool]:
    """An offer that takes so many items, of those that `only` lets pass."""

    def offer(ticket: TicketOf) -> bool:
        if len(served) - start >= number or not only(ticket.item):
            return False
        served.append(ticket.item)
        return True

    start = len(served)
    return offer


def served_one_by_one(room: Room, times: int = 1000) -> list[str]:
    """The order of service when one slot gets free at a time."""
    served: list[str] = []
    for _ in range(times):
        if not room.bind(slots(served, 1)):
            break
    return served


def room_with(entries: Iterable[tuple[str, str]]) -> Room:
    room = Room(100)
    for caller, item in entries:
        enter(room, caller, item)
    return room


def test_first_come_first_served() -> None:
    assert served_one_by_one(room_with([("a", "1"), ("a", "2"), ("a", "3")])) == ["1", "2", "3"]


def test_equal_turns_per_caller() -> None:
    """Equal turns per caller: a thousand requests of one do not delay the first of another."""
    room = room_with([("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("b", "b2")])
    assert served_one_by_one(room) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_caller_that_was_served_goes_to_the_end_of_the_line_of_callers() -> None:
    room = room_with([("a", "a1"), ("a", "a2"), ("b", "b1")])
    served: list[str] = []
    room.bind(slots(served, 1))
    enter(room, "c", "c1")
    assert served + served_one_by_one(room) == ["a1", "b1", "a2", "c1"]


def test_priority_counts_within_one_caller_only() -> None:
    """Priorities within one caller: they never overtake another caller's turn."""
    room = Room(100)
    enter(room, "a", "a-low")
    enter(room, "b", "b-low")
    enter(room, "a", "a-high", priority=9)
    enter(room, "b", "b-lowest", priority=-1)
    assert served_one_by_one(room) == ["a-high", "b-low", "a-low", "b-lowest"]


def test_many_slots_at_once_are_shared_in_the_same_order() -> None:
    room = room_with([("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")])
    served: list[str] = []
    assert room.bind(slots(served, 3)) == 3
    assert served == ["a1", "b1", "a2"]
    assert room.waiting == 1


def test_what_cannot_be_bound_does_not_hold_up_what_can() -> None:
    """No head-of-line blocking across models, in one caller's line or among callers."""
    room = Room(100)
    for caller, item in (("a", "big1"), ("a", "small1"), ("b", "big2"), ("b", "small2")):
        enter(room, caller, item, kind=item[:-1])
    served: list[str] = []
    assert room.bind(slots(served, 9, only=lambda item: item.startswith("small"))) == 2
    assert served == ["small1", "small2"]
    assert served_one_by_one(room) == ["big1", "big2"]


def test_who_was_passed_over_keeps_its_turn() -> None:
    room = Room(100)
    enter(room, "a", "big1", kind="big")
    for number in range(3):
        enter(room, "b", f"small{number}", kind="small")
    served: list[str] = []
    room.bind(slots(served, 2, only=lambda item: item.startswith("small")))
    assert served_one_by_one(room) == ["big1", "small2"]


def test_one_refusal_answers_for_all_that_are_alike() -> None:
    """O(small) work: when nothing is free, one of a thousand is asked, and none is looked at."""
    room = Room(2000)
    for number in range(1000):
        enter(room, f"caller{number % 7}", str(number))
    asked: list[str] = []

    def refuse(ticket: TicketOf) -> bool:
        asked.append(ticket.item)
        return False

    assert room.bind(refuse) == 0
    assert asked == ["0"]


def test_each_kind_is_asked_until_it_refuses() -> None:
    room = Room(100)
    for number in range(4):
        enter(room, "a", str(number), kind=number)
    enter(room, "b", "plain")
    asked: list[str] = []

    def offer(ticket: TicketOf) -> bool:
        asked.append(ticket.item)
        return ticket.item in ("plain", "2")

    assert room.bind(offer) == 2
    assert sorted(asked) == ["0", "1", "2", "3", "plain"]


def test_only_the_kinds_that_may_be_served_are_asked() -> None:
    room = Room(100)
    for kind in "xyz":
        enter(room, "a", kind, kind=kind)
    served: list[str] = []
    assert room.bind(slots(served, 9), lambda kind: kind != "y") == 2
    assert served == ["x", "z"]


class CountedTicket(TicketOf):
    """A ticket that counts how often anybody looks whether it is still there."""

    looks = 0

    def __getattribute__(self, name: str) -> object:
        if name == "gone":
            CountedTicket.looks += 1
        return super().__getattribute__(name)


@pytest.mark.parametrize("callers", [1, 7, 4000])
def test_binding_one_does_not_look_at_all_that_wait(callers: int) -> None:
    """With thousands of big ones before them in each line, the small ones are bound as quickly as ever."""
    room = Room(10_000)
    for number in range(4000):
        kind = "small" if number % 100 == 99 else "big"
        caller = CallerId(f"caller{number % callers}")
        room.enter(CountedTicket(caller, 0, next(SEQUENCE), 0.0, kind, kind))
    CountedTicket.looks = 0
    served: list[str] = []
    for _ in range(40):
        assert room.bind(slots(served, 1, only=lambda item: item == "small")) == 1
    assert served == ["small"] * 40
    assert CountedTicket.looks < 40 * 40


def test_one_that_becomes_of_another_kind_keeps_its_place() -> None:
    room = Room(100)
    first = enter(room, "a", "first", kind="picky")
    enter(room, "a", "second")
    enter(room, "b", "third")
    room.move(first, "plain")
    room.move(first, "plain")
    assert {kind: group.live for kind, group in room.groups.items()} == {"plain": 3}
    assert served_one_by_one(room) == ["first", "third", "second"]


def test_one_that_has_left_becomes_nothing_else() -> None:
    room = Room(100)
    ticket = enter(room, "a", "1")
    room.leave(ticket)
    room.move(ticket, "other")
    assert (room.waiting, room.groups, room.callers) == (0, {}, {})


def test_it_is_bounded() -> None:
    room = Room(2)
    first = enter(room, "a", "1")
    assert not room.full
    enter(room, "b", "2")
    assert room.full
    room.leave(first)
    assert not room.full


def test_one_may_leave_at_any_time_and_only_once() -> None:
    room = room_with([("a", "a1"), ("b", "b1")])
    middle = enter(room, "a", "a2")
    last = enter(room, "a", "a3")
    room.leave(middle)
    room.leave(middle)
    assert (room.waiting, dict(room.by_caller())) == (3, {"a": 2, "b": 1})
    room.leave(last)
    assert served_one_by_one(room) == ["a1", "b1"]
    assert (room.waiting, room.callers, room.groups) == (0, {}, {})


def test_those_that_come_and_go_behind_a_patient_one_leave_nothing_behind() -> None:
    room = Room(100)
    enter(room, "a", "patient")
    for number in range(1000):
        room.leave(enter(room, "a", str(number)))
        room.leave(enter(room, f"caller{number}", str(number)))
    group = room.groups["plain"]
    assert sum(len(line) for line in group.lines.values()) == group.entries <= SWEPT_AT + 1
    assert len(group.turns) == len(group.lines) <= SWEPT_AT + 1
    assert [ticket.item for ticket in room] == ["patient"]


def test_a_place_is_kept_after_a_busy_answer() -> None:
    """`sequence` keeps the place of a request that goes back after a busy answer."""
    room = Room(100)
    early = Ticket(CallerId("a"), 0, next(SEQUENCE), 0.0, "early", "plain")
    enter(room, "a", "late")
    room.enter(early)
    assert room.position(early, 0.0) == 1
    assert served_one_by_one(room) == ["early", "late"]


def test_a_ticket_that_was_bound_a_moment_ago_is_first() -> None:
    room = Room(100)
    ticket = enter(room, "a", "1")
    enter(room, "b", "2")
    room.bind(slots([], 1))
    assert room.position(ticket, 0.0) == 1


def test_places_are_counted_seldom_when_many_wait() -> None:
    """Thousands that hear their place and come and go: counting them all each time would stop the loop."""
    room = Room(10_000)
    tickets: list[TicketOf] = []
    for number in range(2000):
        tickets.append(CountedTicket(CallerId(f"caller{number % 10}"), 0, next(SEQUENCE), 0.0, str(number), "plain"))
        room.enter(tickets[-1])
        room.position(tickets[-1], 0.0)
    CountedTicket.looks = 0
    for ticket in tickets:
        room.position(ticket, 0.1)
    assert CountedTicket.looks <= 2 * len(tickets)
    room.position(tickets[0], 1.0)
    CountedTicket.looks = 0
    for ticket in tickets[:100]:
        room.leave(ticket)
        room.position(tickets[-1], 1.0 + PLACES_SECONDS / 2)
    assert CountedTicket.looks < 10 * 100


def test_places_in_a_large_room_are_not_older_than_said() -> None:
    room = Room(1000)
    tickets = [enter(room, "a", str(number)) for number in range(2 * COUNTED_AT_ONCE)]
    last = tickets[-1]
    assert room.position(last, 10.0) == 2 * COUNTED_AT_ONCE
    room.leave(tickets[0])
    assert room.position(last, 10.0 + PLACES_SECONDS / 2) == 2 * COUNTED_AT_ONCE
    assert room.position(last, 10.0 + PLACES_SECONDS) == 2 * COUNTED_AT_ONCE - 1


def test_a_newcomer_hears_at_once_what_its_place_is_at_most() -> None:
    room = Room(1000)
    for number in range(2 * COUNTED_AT_ONCE):
        room.position(enter(room, "a", str(number)), 10.0)
    first_of_another = enter(room, "b", "1")
    assert room.position(first_of_another, 10.0) == 2
    assert room.position(enter(room, "b", "2"), 10.0) == 4
    assert room.position(enter(room, "a", "last"), 10.0) == 2 * COUNTED_AT_ONCE + 3


ENTRIES = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-1, 2)), max_size=30)


@given(entries=ENTRIES, leaving=st.sets(st.integers(0, 29)), first=st.integers(0, 5))
def test_the_position_is_the_real_order_of_service(
    entries: list[tuple[str, int]], leaving: set[int], first: int
) -> None:
    """The place in the queue that is shown equals the order in which slots are really given out."""
    room = Room(100)
    tickets = [enter(room, caller, str(number), priority) for number, (caller, priority) in enumerate(entries)]
    assert sorted(room.position(ticket, 0.0) for ticket in tickets) == list(range(1, len(tickets) + 1))
    room.bind(slots([], first))
    assert sorted(room.position(ticket, 0.0) for ticket in room) == list(range(1, room.waiting + 1))
    for number in leaving:
        if number < len(tickets):
            room.leave(tickets[number])
    foretold = {ticket.item: room.position(ticket, 0.0) for ticket in room}
    served = served_one_by_one(room)
    assert foretold == {item: place for place, item in enumerate(served, 1)}
