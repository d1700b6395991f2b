"""Which of the addresses in an announcement are believed, by where it came from and whether a token signed it."""

from __future__ import annotations

import dataclasses

import pytest

from transport.found import Found, believed_addresses
from wire.beacon import Address, Announcement

NODE = Announcement(bytes(range(16)), 5, 9, 0, "tower", (Address("192.168.1.20", 8765),))


def _hosts(hosts: list[str], source: str, signed: bool) -> list[str]:
    announced = dataclasses.replace(NODE, addresses=tuple(Address(host, 8765) for host in hosts))
    return [each.host for each in believed_addresses(announced, source, signed)]


@pytest.mark.parametrize(
    ("announced", "source", "signed", "believed"),
    [
        (["192.168.1.20"], "192.168.1.20", False, ["192.168.1.20"]),
        (["10.0.0.1"], "192.168.1.20", False, ["192.168.1.20"]),  # whoever sent it is at least there
        (["10.0.0.1"], "192.168.1.20", True, ["10.0.0.1"]),
        (["10.0.0.1", "192.168.1.20"], "192.168.1.20", True, ["192.168.1.20", "10.0.0.1"]),
        (["fd00::2"], "fe80::9%3", True, ["fd00::2"]),
        (["fe80::9", "fd00::2"], "fe80::9%3", True, ["fe80::9", "fd00::2", "fe80::9%3"]),
        (["127.0.0.1"], "127.0.0.1", False, ["127.0.0.1"]),
        (["127.0.0.1"], "192.168.1.66", True, []),  # sent on by somebody else
        (["tower.example", "0.0.0.0", "224.0.0.1", "255.255.255.255"], "192.168.1.20", True, []),
    ],
)
def test_which_addresses_are_believed(announced: list[str], source: str, signed: bool, believed: list[str]) -> None:
    assert _hosts(announced, source, signed) == believed


def test_an_open_announcement_keeps_its_port_and_loses_its_address() -> None:
    open_one = dataclasses.replace(NODE, addresses=(Address("10.0.0.1", 9999), Address("10.0.0.2", 1)))
    assert believed_addresses(open_one, "192.168.1.20", False) == (Address("192.168.1.20", 9999),)


@pytest.mark.parametrize(("name", "shown"), [("tower", "tower"), ("", "node-00010203"), ("a\x1b[2J", "node-00010203")])
def test_a_name_can_always_be_shown(name: str, shown: str) -> None:
    assert Found(dataclasses.replace(NODE, name=name), "192.168.1.20", 8766, False).name == shown
