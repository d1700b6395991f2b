"""What adb lists, in all its spellings, becomes phones with words that help."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.adb.states import (
    LONGEST_WORD,
    TWICE,
    WORDS,
    AdbPhone,
    Facts,
    Transport,
    advice_for,
    details_of,
    is_whole,
    parse_addresses,
    parse_facts,
    parse_transports,
    phones_of,
)

LISTED = """28161FDH2000QX         device usb:1-2 product:panther model:Pixel_7 device:panther transport_id:3
192.168.1.7:5555       device product:panther model:Pixel_7 device:panther transport_id:9
R58M\tunauthorized
ZY22\tno permissions (missing udev rules? user is in the plugdev group); see [http://developer.android.com/tools]
????????????           no permissions
0a38fd1 offline usb:1-4 transport_id:12
* daemon started successfully
emulator-5554 weird-new-state transport_id:x

"""


def test_every_spelling_of_the_list_is_read() -> None:
    found = {each.serial: each for each in parse_transports(LISTED)}
    assert found["28161FDH2000QX"] == Transport("28161FDH2000QX", "device", "Pixel 7", 3)
    assert not found["28161FDH2000QX"].is_network and found["192.168.1.7:5555"].is_network
    assert found["R58M"].state == "unauthorized" and found["ZY22"].state == "no permissions"
    assert found["????????????"].state == "no permissions" and found["0a38fd1"].number == 12
    assert found["emulator-5554"] == Transport("emulator-5554", "weird-new-state", "", 0)
    assert len(found) == 7


@pytest.mark.parametrize("text", ["", "\n\n", "List of devices attached\n", "lonely\n", "\t\n"])
def test_what_is_no_line_of_the_list_is_passed_over(text: str) -> None:
    assert parse_transports(text) == ()


def test_every_state_but_ready_has_words_and_an_unknown_one_its_name() -> None:
    assert [state for state, words in WORDS.items() if not words] == ["device"]
    assert "tap Allow" in advice_for("unauthorized") and "plug it in again" in advice_for("offline")
    assert advice_for("flying") == "adb says 'flying'"


TOLD = "S1\nPixel 7\n14\n\ngs201\npanther\nMemTotal:        7812345 kB\nMemFree: 12 kB\n"


def test_facts_are_lines_and_missing_ones_are_empty() -> None:
    assert parse_facts(TOLD) == Facts("S1", "Pixel 7", "14", "gs201", 7812345 * 1024)
    assert parse_facts("S1\nPixel 7\n14\nSM8550\nkalama\nqcom\n").chip == "SM8550"
    assert parse_facts(f"{TOLD}{BOOT}\n").boot == BOOT
    assert parse_facts("S1\r\n") == Facts("S1") and parse_facts("") == Facts()


def test_an_answer_that_was_cut_short_is_not_whole() -> None:
    assert is_whole(TOLD) and is_whole("\n" * 6) and not is_whole("S1\nPixel 7\n") and not is_whole("")


def test_what_a_phone_tells_cannot_steer_a_terminal_and_an_error_is_no_serial() -> None:
    assert parse_facts("S1\nPixel\x1b[2J 7\n14\n").model == "Pixel[2J 7"
    assert len(parse_facts(f"S1\n{'x' * 1000}\n").model) == LONGEST_WORD
    assert parse_facts("/bin/sh: 1: getprop: not found\n" * 6).serialno == ""


def test_details_are_those_of_phones_that_join_and_only_what_is_known() -> None:
    phone = AdbPhone("S1", "Pixel 7", Transport("S1", "device"), ("S1",), known=True, told=parse_facts(TOLD))
    told = {"chip": "gs201", "ram_bytes": 7812345 * 1024, "android": "14", "ollama": "0.31.1", "mode": "usb"}
    assert details_of(phone, "0.31.1") == told
    assert details_of(replace(phone, told=Facts()), "") == {"mode": "usb"}


def test_one_phone_by_cable_and_by_network_is_one_and_the_cable_is_used() -> None:
    ways = (Transport("10.0.0.7:5555", "device", number=2), Transport("S1", "device", number=1))
    facts = {way.key: Facts("S1", "Pixel 7") for way in ways}
    (phone,) = phones_of(ways, facts, {})
    assert (phone.id, phone.transport.serial, phone.serials) == ("S1", "S1", ("10.0.0.7:5555", "S1"))
    (kept,) = phones_of(ways, facts, {"S1": "10.0.0.7:5555"})
    assert kept.transport.serial == "10.0.0.7:5555"
    (spared,) = phones_of(ways, facts, {"S1": "10.0.0.7:5555"}, avoided={"10.0.0.7:5555"})
    assert spared.transport.serial == "S1"


@pytest.mark.parametrize("shared", ["", "unknown", "0123456789ABCDEF", "EMULATOR36X4X10X0"])
def test_numbers_that_many_share_tell_nobody_apart(shared: str) -> None:
    ways = (Transport("A", "device", number=1), Transport("B", "device", number=2))
    phones = phones_of(ways, {way.key: Facts(shared) for way in ways}, {})
    assert [phone.id for phone in phones] == ["A", "B"]


def test_two_phones_with_the_same_serial_are_said_to_be() -> None:
    ways = (Transport("A", "device", number=1), Transport("A", "device", number=2))
    (phone,) = phones_of(ways, {way.key: Facts("A") for way in ways}, {})
    assert phone.advice == TWICE and not phone.usable


BOOT, OTHER_BOOT = "5a1e7f0c-0000-4000-8000-000000000001", "5a1e7f0c-0000-4000-8000-000000000002"


def by_wifi(last: int, number: int) -> Transport:
    return Transport(f"10.0.0.{last}:5555", "device", number=number)


def test_two_phones_that_tell_one_number_are_told_apart_and_each_keeps_its_id() -> None:
    one, two = by_wifi(7, 1), by_wifi(8, 2)
    facts = {one.key: Facts("CLONE", boot=BOOT), two.key: Facts("CLONE", boot=OTHER_BOOT)}
    both = {phone.id: phone.transport.serial for phone in phones_of((one, two), facts, {})}
    assert both == {"CLONE": one.serial, two.serial: two.serial}
    came_second = {phone.id: phone.transport.serial for phone in phones_of((one, two), facts, {"CLONE": two.serial})}
    assert came_second == {"CLONE": two.serial, one.serial: one.serial}
    (left,) = phones_of((two,), facts, both)
    assert left.id == two.serial
    assert [phone.id for phone in phones_of((two,), facts, {})] == ["CLONE"]


def test_one_phone_by_cable_network_and_name_is_one_by_its_boot() -> None:
    named = Transport("adb-S1-x9Kz2._adb-tls-connect._tcp", "device", number=3)
    ways = (Transport("S1", "device", number=1), by_wifi(7, 2), named)
    (phone,) = phones_of(ways, {way.key: Facts("S1", boot=BOOT) for way in ways}, {})
    assert phone.serials == tuple(way.serial for way in ways) and phone.transport.serial == "S1"
    (without,) = phones_of(ways, {way.key: Facts("S1", boot=BOOT if way.number == 1 else "") for way in ways}, {})
    assert without.serials and len(without.serials) == 3
    (over_air,) = phones_of(ways[1:], {way.key: Facts("S1", boot=BOOT) for way in ways}, {"S1": "S1"})
    assert over_air.id == "S1" and over_air.transport.is_network


def test_of_twins_on_cables_the_one_in_use_stays_so() -> None:
    one, two = Transport("A", "device", number=1), Transport("A", "device", number=2)
    facts = {way.key: Facts("A") for way in (one, two)}
    for ways in ((one, two), (two, one)):
        (phone,) = phones_of(ways, facts, {"A": "A"}, in_use={two.key})
        assert phone.usable and phone.transport is two and phone.has_twin
    (phone,) = phones_of((one, two), facts, {"A": "A"}, in_use={("A", 3)})
    assert phone.advice == TWICE, "the one in use has left, and neither of the others may take its place"
    unnumbered = (Transport("A", "device"), Transport("A", "device"))
    (phone,) = phones_of(unnumbered, {("A", 0): Facts("A")}, {"A": "A"}, in_use={("A", 0)})
    assert phone.advice == TWICE


@pytest.mark.parametrize(("state", "has_twin"), [("offline", False), ("unauthorized", True)])
def test_a_twin_that_cannot_be_used_is_in_nobodys_way(state: str, has_twin: bool) -> None:
    """Or it is the phone's own last connection, which adb has not given up yet."""
    ways = (Transport("A", state, number=1), Transport("A", "device", number=2))
    (phone,) = phones_of(ways, {ways[1].key: Facts("A")}, {"A": "A"}, in_use={ways[0].key})
    assert phone.usable and phone.transport is ways[1] and phone.has_twin == has_twin


HOME = ("192.168.1.7",)


def ids(facts: dict[Transport, Facts]) -> list[tuple[str, int]]:
    """Each phone's id and by how many ways it is reached."""
    found = phones_of(tuple(facts), {way.key: told for way, told in facts.items()}, {})
    return sorted((phone.id, len(phone.serials)) for phone in found)


def test_a_phone_whose_number_identifies_nobody_counts_once_by_cable_and_by_air() -> None:
    cable, named = Transport("0123456789ABCDEF", "device", number=1), Transport("adb-x._adb-tls-connect._tcp", "device")
    told = Facts("0123456789ABCDEF", boot=BOOT, addresses=HOME)
    assert ids({by_wifi(7, 2): told, cable: told, named: told}) == [("0123456789ABCDEF", 3)]
    assert ids({by_wifi(7, 2): told, named: told}) == [("10.0.0.7:5555", 2)]
    emulator = Transport("emulator-5554", "device", number=4)
    told = Facts("EMULATOR36X4X10X0", boot=BOOT, addresses=("10.0.2.15",))
    assert ids({by_wifi(7, 2): told, emulator: told}) == [("emulator-5554", 2)]


def test_an_equal_boot_alone_makes_nobody_one() -> None:
    """Containers have the boot of their machine; emulators of one snapshot have boot and address in common."""
    one, two = Facts("", boot=BOOT, addresses=("172.17.0.2",)), Facts("", boot=BOOT, addresses=("172.17.0.3",))
    assert len(ids({by_wifi(7, 1): one, by_wifi(8, 2): two})) == 2
    unknown = Facts("", boot=BOOT)
    assert len(ids({by_wifi(7, 1): unknown, by_wifi(8, 2): unknown})) == 2
    emulators = [Transport(f"emulator-555{number}", "device", number=number) for number in (4, 6)]
    told = Facts("EMULATOR36X4X10X0", boot=BOOT, addresses=("10.0.2.15",))
    assert len(ids({**dict.fromkeys(emulators, told), by_wifi(7, 1): told})) == 3


def test_clones_of_one_number_on_cables_are_never_spoken_to() -> None:
    ways = (Transport("A", "device", number=1), Transport("A", "device", number=2))
    facts = {ways[0].key: Facts("A", boot=BOOT), ways[1].key: Facts("A", boot=OTHER_BOOT)}
    (phone,) = phones_of(ways, facts, {"A": "A"})
    assert phone.advice == TWICE and not phone.usable


def test_phones_without_a_serial_are_said_to_be_and_never_used() -> None:
    listed = "????????????           device usb:1-2 transport_id:4\n????????????           no permissions (x)\n"
    transports = parse_transports(listed)
    (phone,) = phones_of(transports, {transports[0].key: Facts("", "Pixel")}, {})
    assert not phone.usable and phone.advice
    (alone,) = phones_of(transports[:1], {transports[0].key: Facts("", "Pixel")}, {})
    assert "no serial number" in alone.advice and not alone.usable


def test_serials_with_colons_brackets_names_and_numbers_are_read_whole() -> None:
    serials = ["10.0.0.7:5555", "[fe80::1%eth0]:5555", "adb-S1-a._adb-tls-connect._tcp",
               "adb-S1-a (2)._adb-tls-connect._tcp"]  # fmt: skip
    text = "".join(f"{serial} device product:x model:Y transport_id:{n}\n" for n, serial in enumerate(serials, 1))
    found = parse_transports(text)
    assert [way.serial for way in found] == serials
    assert all(way.is_network and way.state == "device" and way.number for way in found)
    tabbed = parse_transports("".join(f"{serial}\tunauthorized\n" for serial in serials))
    assert [(way.serial, way.state) for way in tabbed] == [(serial, "unauthorized") for serial in serials]


@given(st.text(max_size=300))
def test_no_list_and_no_answer_breaks_the_reading(text: str) -> None:
    transports = parse_transports(text)
    facts = {way.key: parse_facts(text) for way in transports}
    phones = phones_of(transports, facts, {})
    assert {serial for phone in phones for serial in phone.serials} == {way.serial for way in transports}
    assert len({phone.id for phone in phones}) == len(phones)


def test_a_phone_is_usable_when_it_has_told_who_it_is() -> None:
    (unknown,) = phones_of((Transport("A", "device"),), {}, {})
    assert not unknown.usable and unknown.advice == ""
    (known,) = phones_of((Transport("A", "device"),), {("A", 0): Facts("A")}, {})
    assert known.usable and known.name == "A"


def test_addresses_are_those_by_which_a_phone_may_be_reached() -> None:
    said = (
        "1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever\n"
        "2: rmnet_data0    inet 10.11.12.13/30 scope global\n"
        "30: wlan0    inet 192.168.1.7/24 brd 192.168.1.255 scope global wlan0\\       valid_lft forever\n"
        "30: wlan0    inet6 fe80::1/64 scope link\n"
        "30: wlan0    inet6 FD00:0::7/64 scope global\n"
        "31: p2p0    inet 192.168.49.1/24 scope global\n"
        "32: wlan1    inet 999.1.1.1/24 scope global\n"
        "33: rndis0    inet 192.168.42.129/24 scope global\n"
    )
    wanted = ("192.168.1.7", "192.168.42.129", "fd00::7")
    assert parse_addresses(said) == wanted
    assert parse_facts("S1\nPixel\n14\n\n\n\nMemTotal: 8 kB\n" + said).addresses == wanted
    assert parse_addresses("/system/bin/sh: ip: inaccessible or not found\n") == ()


def test_a_serial_cannot_steer_a_terminal_and_still_leads_to_its_phone() -> None:
    evil = "\x1b[2J\x9b31m;reboot'$(id)"
    transports = parse_transports(f"{evil} device model:Pix\x1b_7 transport_id:3\nS2 \x1bstate transport_id:4\n")
    (one, two) = phones_of(transports, {transports[0].key: Facts()}, {})
    assert one.usable and one.transport.serial == evil and one.serials == (evil,)
    assert one.id == "\\x1b[2J\\x9b31m;reboot'$(id)" and one.name == "Pix 7"
    assert all(word.isprintable() for word in (one.id, one.name, two.transport.state, two.advice))
    assert [phone.id for phone in phones_of(transports, {}, {one.id: evil})] == [one.id, "S2"]
