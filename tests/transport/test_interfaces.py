"""Addresses of this machine: which networks they stand for, and where everybody on them listens."""

from __future__ import annotations

import pytest

from transport.interfaces import (
    ANY_V4,
    MOST_INTERFACES,
    Interface,
    broadcasts,
    fitting,
    interfaces,
    is_loopback,
    source_towards,
)

HOME = Interface("wlan0", "192.168.1.20", 24, 3)
LAB = Interface("eth0", "10.1.2.3", 8, 2)
LOOP = Interface("lo", "127.0.0.1", 8, 1)
LINK = Interface("wlan0", "fe80::1", 64, 3)


@pytest.mark.parametrize(
    ("interface", "broadcast"),
    [
        (HOME, "192.168.1.255"),
        (LAB, "10.255.255.255"),
        (LOOP, "127.255.255.255"),
        (LINK, "ff02::1%3"),
        (Interface("lo", "::1", 128, 1), None),
        (Interface("tun0", "10.8.0.6", 32, 5), None),
        (Interface("ppp0", "10.8.0.6", 31, 5), None),
        (Interface("any", ANY_V4, 0), "255.255.255.255"),
    ],
)
def test_where_everybody_listens(interface: Interface, broadcast: str | None) -> None:
    assert interface.broadcast == broadcast


def test_every_network_is_asked_once() -> None:
    twice = Interface("wlan0", "192.168.1.21", 24, 3)
    assert broadcasts([LOOP, HOME, twice, LINK, LAB]) == (
        "127.255.255.255",
        "192.168.1.255",
        "ff02::1%3",
        "10.255.255.255",
    )


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("192.168.1.77", HOME),
        ("10.200.0.1", LAB),
        ("127.0.0.5", LOOP),
        ("fe80::9%wlan0", LINK),
        ("fe80::9%3", LINK),
        ("fe80::9%eth1", None),
        ("192.168.2.77", None),
        ("tower.local", None),
    ],
)
def test_on_whose_network_a_host_is(host: str, found: Interface | None) -> None:
    assert fitting([LOOP, HOME, LAB, LINK], host) == found


def test_the_narrower_network_fits_better() -> None:
    container = Interface("docker0", "10.1.0.1", 16, 9)
    assert fitting([LAB, container], "10.1.0.9") == container


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
                           ("192.168.1.1", False), ("0.0.0.0", False), ("tower", False), ("fe80::1%lo", False)],
)  # fmt: skip
def test_what_is_the_machine_itself(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_this_machine_has_its_loopback_first() -> None:
    found = interfaces()
    assert found[0].is_loopback
    assert found[0].address == "127.0.0.1"
    assert len(found) <= MOST_INTERFACES
    assert found[0].broadcast == "127.255.255.255"


def test_the_routes_say_by_which_address_we_are_seen() -> None:
    assert source_towards("127.0.0.1") == "127.0.0.1"
    assert source_towards("no address") is None
