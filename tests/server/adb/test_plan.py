"""Which forwards there should be: each phone once, persons' forwards kept, only our stale ones removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from server.adb.plan import Forward, Memory, Place, Plan, is_movable, plan_forwards
from server.adb.ports import CHOICES, FIRST_PORT, PORTS, free_port, is_choice, preferred_port
from server.adb.states import AdbPhone, Facts, Transport
from server.nodes import NodeId, NodeSpec

OURS = preferred_port("S1")
LEFT = Memory(left=frozenset({Forward("S1", OURS)}))


def phone(identity: str = "S1", *ways: str, state: str = "device") -> AdbPhone:
    serials = ways or (identity,)
    return AdbPhone(identity, "Pixel", Transport(serials[0], state), serials, known=True)


def entry(name: str, port: int, serial: str | None = None, host: str = "127.0.0.1") -> NodeSpec:
    return NodeSpec(NodeId(name), name, "ollama", host, port, serial=serial)


def planned(
    existing: Sequence[Forward] = (),
    entries: Sequence[NodeSpec] = (),
    memory: Memory = Memory(),  # noqa: B008  # frozen
    phones: Sequence[AdbPhone] = (phone(),),
    serving: Sequence[str] = ("S1",),
) -> Plan:
    return plan_forwards(phones, serving, existing, entries, memory)


def test_a_phone_that_serves_gets_its_own_port() -> None:
    plan = planned()
    assert plan.create == (Forward("S1", OURS),) and plan.remove == ()
    assert plan.places == {"S1": Place(NodeId("S1"), OURS, listed=False)}


def test_one_that_does_not_serve_gets_none_and_one_that_is_not_usable_either() -> None:
    assert planned(serving=()) == Plan()
    away = AdbPhone("S1", "Pixel", Transport("S1", "offline"), ("S1",), known=True, advice="gone")
    assert planned(phones=(away,)) == Plan()


def test_what_is_as_it_should_be_stays() -> None:
    plan = planned(existing=(Forward("S1", OURS),))
    assert plan.create == plan.remove == () and plan.places["S1"].port == OURS


def test_a_persons_forward_is_adopted_and_ours_given_up_when_it_is_not_in_use() -> None:
    theirs = Forward("S1", 11434)
    plan = planned(existing=(Forward("S1", OURS), theirs), memory=LEFT)
    assert plan.adopted == {"S1": theirs} and plan.places["S1"].port == 11434
    assert plan.remove == (Forward("S1", OURS),)
    in_use = planned(existing=(Forward("S1", OURS), theirs), memory=Memory(ports={"S1": OURS}))
    assert in_use.places["S1"].port == OURS and in_use.remove == ()


def test_a_persons_forward_meets_its_entry_and_is_never_removed() -> None:
    theirs = Forward("S1", 11434)
    plan = planned(existing=(theirs, Forward("S1", OURS)), entries=(entry("desk", 11434),), memory=LEFT)
    assert plan.places == {"S1": Place(NodeId("desk"), 11434, listed=True)}
    assert plan.remove == (Forward("S1", OURS),) and plan.create == ()


def test_a_persons_forward_is_made_again_with_its_own_ports() -> None:
    memory = Memory(adopted={"S1": Forward("old-way", 11500, 11999)})
    plan = planned(entries=(entry("desk", 11500),), memory=memory)
    assert plan.create == (Forward("S1", 11500, 11999),) and plan.adopted == {"S1": Forward("S1", 11500, 11999)}
    unlisted = planned(memory=Memory(adopted={"S1": Forward("old-way", 11500)}))
    assert unlisted.create == (Forward("S1", 11500),) and not unlisted.places["S1"].listed


def test_other_forwards_of_the_phone_are_nobodys_business() -> None:
    web, stranger = Forward("S1", 8080, 80), Forward("S7", OURS + 5)
    plan = planned(existing=(web, stranger))
    assert plan.remove == () and plan.create == (Forward("S1", OURS),)


def test_an_entry_with_the_serial_gets_its_port_whether_or_not_it_serves() -> None:
    plan = planned(entries=(entry("shelf", 11500, "S1"),), serving=())
    assert plan.create == (Forward("S1", 11500),) and plan.places["S1"] == Place(NodeId("shelf"), 11500, listed=True)


def test_an_entry_with_an_address_of_the_network_is_the_phone_and_needs_no_forward() -> None:
    plan = planned(existing=(Forward("S1", OURS),), entries=(entry("wifi", 11434, "S1", "192.168.1.7"),), memory=LEFT)
    assert plan.places == {"S1": Place(NodeId("wifi"), None, listed=True)}
    assert plan.create == () and plan.remove == (Forward("S1", OURS),)


def test_a_port_that_leads_to_another_phone_is_never_taken_over() -> None:
    plan = planned(existing=(Forward("S2", 11500),), entries=(entry("shelf", 11500, "S1"),))
    assert plan.create == () and plan.conflicts == {"S1": 11500} and plan.places == {}


def test_an_entry_without_a_port_of_its_own_moves_on() -> None:
    own = entry("S1", OURS, "S1")
    assert is_movable(own) and not is_movable(entry("x", 11500, "S1"))
    plan = planned(entries=(own,), memory=Memory(blocked=frozenset({OURS})))
    assert plan.create == (Forward("S1", preferred_port("S1", 1)),)


def test_the_port_of_an_entry_is_left_to_it() -> None:
    """S1 was found, S2 is listed at the port that S1 would like."""
    both = (phone("S1"), phone("S2"))
    plan = planned(phones=both, serving=("S1", "S2"), entries=(entry("two", OURS, "S2"),))
    assert set(plan.create) == {Forward("S2", OURS), Forward("S1", OURS + 1)}


def test_our_forward_moves_to_the_way_that_is_used_now() -> None:
    moved = phone("S1", "S1", "10.0.0.7:5555")
    old = Forward("10.0.0.7:5555", OURS)
    plan = planned(existing=(old,), phones=(moved,), memory=Memory(frozenset({old}), ports={"S1": OURS}))
    assert plan.remove == (old,) and plan.create == (Forward("S1", OURS),)


def test_ports_are_stable_and_run_out_with_a_word() -> None:
    assert OURS == 24588  # the same in every process: a later run knows its forwards by it
    assert FIRST_PORT <= OURS < FIRST_PORT + PORTS
    choices = [preferred_port("S1", attempt) for attempt in range(CHOICES)]
    assert free_port("S1", choices[:2]) == choices[2] and free_port("S1", choices) is None
    assert planned(memory=Memory(blocked=frozenset(choices))).conflicts == {"S1": OURS}


def test_any_port_of_the_phones_own_choices_is_ours_and_used_ones_are_told() -> None:
    """A run that was killed had stepped over its first port."""
    left = Forward("S1", preferred_port("S1", 3))
    found = planned(existing=(left,))
    assert found.places["S1"].port == left.local_port and found.kept == {left} and not found.adopted
    shelf = entry("shelf", 11500, "S1")
    assert planned(existing=(left,), entries=(shelf,), memory=Memory(left=frozenset({left}))).remove == (left,)
    stranger = Forward("S1", preferred_port("S1", CHOICES))
    assert planned(existing=(stranger,)).adopted == {"S1": stranger}
    assert is_choice("S1", left.local_port) and not is_choice("S1", stranger.local_port)


def test_what_looks_like_ours_and_came_after_us_is_another_gateways() -> None:
    theirs, shelf = Forward("S1", OURS), entry("shelf", 11500, "S1")
    plan = planned(existing=(theirs,), entries=(shelf,), memory=Memory())
    assert plan.remove == () and plan.kept == frozenset() and plan.places["S1"].port == 11500
    assert planned(existing=(theirs,), entries=(shelf,), memory=Memory(frozenset({theirs}))).remove == (theirs,)
    assert planned(existing=(theirs,)).kept == {theirs}  # shared


JOINED = replace(entry("kitchen", 11434, host="192.168.1.7"), details={"chip": "gs201", "android": "14"})
TOLD = Facts("S1", "Pixel", "14", "gs201", addresses=("10.1.0.4", "192.168.1.7"))
BOTH_WAYS = replace(phone(), told=TOLD)


def test_a_phone_that_joined_over_the_network_and_hangs_on_a_cable_counts_once() -> None:
    plan = planned(phones=(BOTH_WAYS,), entries=(JOINED,), existing=(Forward("S1", OURS),), memory=LEFT)
    assert plan.places == {"S1": Place(NodeId("kitchen"), None, listed=True)}
    assert plan.create == () and plan.remove == (Forward("S1", OURS),)


def test_while_its_network_is_lost_the_cable_serves() -> None:
    plan = planned(phones=(BOTH_WAYS,), entries=(JOINED,), memory=Memory(silent=frozenset({JOINED.id})))
    assert plan.places == {"S1": Place(NodeId("S1"), OURS, listed=False)}


@pytest.mark.parametrize(
    "other",
    [
        replace(JOINED, host="192.168.1.8"),
        replace(JOINED, details={"chip": "gs201", "android": "13"}),  # of another network with the same addresses
        replace(JOINED, details={"chip": "sm8550"}),
        replace(JOINED, kind="relay"),
        replace(JOINED, serial="S2"),
    ],
)
def test_what_differs_is_another(other: NodeSpec) -> None:
    assert not planned(phones=(BOTH_WAYS,), entries=(other,)).places["S1"].listed


def test_an_entry_that_says_less_of_its_phone_is_believed() -> None:
    by_hand = replace(JOINED, details={})
    assert planned(phones=(BOTH_WAYS,), entries=(by_hand,)).places["S1"].listed
