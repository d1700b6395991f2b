"""What becomes of the fleet file when a phone comes, and comes again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.adb.plan import SEEN_AT, Memory, entry_for
from server.adb.states import AdbPhone, Facts, Transport
from server.errors import RequestInvalid
from server.nodes import NodeId, NodeSpec
from server.phones.registration import (
    DISPLACED,
    Registration,
    distinct,
    is_at,
    joined,
    moved,
    place_of,
    plain,
    renewed,
)
from server.phones_entry import entry_of, spec_of
from server.roster import Seat, learned_weight
from tests.server.scripted_nodes import node_of, seat_of

ID, OTHER = NodeId("a" * 32), NodeId("b" * 32)
PHONE = Registration(ID, "Pixel 5", 11434, {"chip": "SM8550", "ram_bytes": 6_000_000_000, "tokens_per_second": 12.5})
HOST = "192.168.1.20"


def test_a_new_phone_is_the_last_entry_and_learns_its_weight() -> None:
    before = NodeSpec(NodeId("x"), "Pixel 5", "ollama", "10.0.0.1", 11434)
    first, phone = joined([before], PHONE, HOST)
    assert first is before
    assert phone == NodeSpec(ID, "Pixel 5 2", "ollama", HOST, 11434, weight=None, details=PHONE.details)
    assert spec_of(entry_of(phone)) == phone


def test_a_phone_that_is_known_keeps_what_its_owner_wrote() -> None:
    known = NodeSpec(ID, "Kitchen", "ollama", "10.0.0.1", 11434, ("a",), 2.0, tags=("t",), details={"chip": "old"})
    (phone,) = joined([known], PHONE, HOST)
    assert phone == replace(known, host=HOST, details=PHONE.details)


def test_an_entry_by_address_becomes_the_phones_own() -> None:
    byhand = NodeSpec(NodeId(f"{HOST}:11434"), f"{HOST}:11434", "ollama", HOST, 11434, weight=3.0)
    (phone,) = joined([byhand], PHONE, HOST)
    assert (phone.id, phone.name, phone.weight) == (ID, "Pixel 5", 3.0)
    (phone,) = joined([replace(byhand, id=NodeId("own"), name="Shelf")], PHONE, HOST)
    assert (phone.id, phone.name, phone.weight) == (ID, "Shelf", 3.0)
    assert len(joined([replace(byhand, port=11435)], PHONE, HOST)) == 2
    with pytest.raises(RequestInvalid, match="this address belongs to another kind"):
        joined([replace(byhand, kind="openai")], PHONE, HOST)


def test_an_entry_by_host_name_becomes_the_phones_own_where_the_name_leads_to_it() -> None:
    byhand = NodeSpec(NodeId("pixel.lan:11434"), "pixel.lan:11434", "ollama", "pixel.lan", 11434, weight=3.0)
    (phone,) = joined([byhand], PHONE, HOST, {"pixel.lan"})
    assert (phone.id, phone.name, phone.host, phone.weight) == (ID, "Pixel 5", "pixel.lan", 3.0)
    assert len(joined([byhand], PHONE, HOST)) == len(joined([byhand], PHONE, HOST, {"other.lan"})) == 2
    assert len(joined([replace(byhand, id=OTHER)], PHONE, HOST, {"pixel.lan"})) == 2, "another phone that has joined"


def test_a_phone_by_host_name_is_known_on_a_cable_by_the_address_that_it_had_last() -> None:
    known = NodeSpec(ID, "Kitchen", "ollama", "kitchen.local", 11434, details={"chip": "SM8550"})
    facts = Facts(serialno="S1", addresses=(HOST,))
    plugged = AdbPhone("S1", "Pixel 5", Transport("S1", "device"), ("S1",), known=True, told=facts)
    assert entry_for(plugged, [], [known], Memory()) is None
    (entry,) = joined([known], PHONE, HOST)
    assert entry_for(plugged, [], [entry], Memory()) is entry
    assert entry_for(plugged, [], [moved(entry, "192.168.1.99", 11434)], Memory()) is None
    assert spec_of(entry_of(entry)) == entry


def test_a_host_name_of_the_owners_is_kept() -> None:
    known = NodeSpec(ID, "Kitchen", "ollama", "kitchen.local", 11434)
    assert joined([known], PHONE, HOST)[0].host == "kitchen.local"
    noted = moved(known, HOST, 22_000)
    assert noted == replace(known, details={SEEN_AT: HOST}), "a port of a machine that nobody has looked at"
    assert is_at(known, HOST, 11434) and is_at(known, HOST, 22_000)
    assert (place_of(known), place_of(noted)) == ("kitchen.local", HOST)
    by_address = replace(noted, host="10.0.0.1")
    assert place_of(by_address) == "10.0.0.1" and SEEN_AT not in moved(by_address, HOST, 11434).details
    assert not is_at(replace(known, host="10.0.0.1"), HOST, 11434)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_the_end_of_a_cable_stays_where_it_is(host: str) -> None:
    known = NodeSpec(ID, "Kitchen", "ollama", host, 40_001, serial="S1")
    assert is_at(known, HOST, 11434) and moved(known, HOST, 11434) is known
    assert joined([known], PHONE, HOST)[0] == replace(known, details=PHONE.details)


def test_what_was_measured_counts_until_more_is_known() -> None:
    def seat(**details: str | float) -> Seat:
        return seat_of(node_of("a", weight=None, details=details))

    assert learned_weight(seat(tokens_per_second=16.0)) == 16.0
    assert learned_weight(seat()) == learned_weight(seat(tokens_per_second="fast")) < 16.0
    used = seat(tokens_per_second=16.0)
    used.load.tokens_per_second = 4.0
    used.weigh(0.0)
    assert learned_weight(used) == 4.0


def test_an_address_that_changed_hands_counts_once() -> None:
    stale = NodeSpec(OTHER, "Other", "ollama", HOST, 11434)
    displaced, phone = joined([stale], PHONE, HOST)
    assert not displaced.enabled and displaced.details == {DISPLACED: 1} and phone.enabled
    assert not is_at(displaced, HOST, 11434)
    back = moved(displaced, "192.168.1.21", 11434)
    assert back == replace(stale, host="192.168.1.21")
    owners = replace(stale, id=NodeId("by-hand"), port=11435)
    assert joined([owners], PHONE, HOST)[0] is owners


def test_a_drained_phone_stays_drained_when_it_comes_again() -> None:
    known = NodeSpec(ID, "Kitchen", "ollama", "10.0.0.1", 11434, enabled=False)
    assert not renewed(known, PHONE, HOST).enabled


def test_the_id_of_another_kind_of_node_is_refused() -> None:
    with pytest.raises(RequestInvalid):
        joined([NodeSpec(ID, "tower", "relay", "10.0.0.1", 8765)], PHONE, HOST)


def test_names_are_told_apart_and_made_plain() -> None:
    assert distinct("a", set()) == "a" and distinct("a", {"a", "a 2"}) == "a 3"
    assert plain(" Pixel\x1b[2J\n5 ") == "Pixel[2J5" and len(plain("x" * 500)) == 100
