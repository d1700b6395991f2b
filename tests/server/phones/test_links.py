"""Which of the gateway's addresses a phone is shown."""

from __future__ import annotations

import pytest

from server.errors import LoopbackOnly
from server.phones.links import Link, command_of, links_of
from transport.interfaces import Interface

LO = Interface("lo", "127.0.0.1", 8)
WIFI = Interface("wlan0", "192.168.1.2", 24)
CABLE = Interface("eth0", "10.0.0.2", 24)
DOCKER = Interface("docker0", "172.17.0.1", 16)
LOCAL6 = Interface("wlan0", "fe80::2", 64)
OWN6 = Interface("wlan0", "fd00::2", 64)
ALL = (LO, DOCKER, CABLE, WIFI, Interface("eth1", "8.8.8.8", 24), LOCAL6, OWN6)
HERE = ("127.0.0.1", 8000)


def addresses(listening: str, asked_at: tuple[str, int] = HERE, towards: str | None = None, found=ALL) -> list[str]:
    return [link.address for link in links_of(listening, asked_at, found, towards)]


@pytest.mark.parametrize("listening", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_on_loopback_nobody_is_invited(listening: str) -> None:
    with pytest.raises(LoopbackOnly, match="listens on this machine only") as refused:
        addresses(listening)
    assert "--host 0.0.0.0" in refused.value.hint


def test_the_likeliest_first_and_none_that_phones_cannot_reach() -> None:
    assert addresses("0.0.0.0", towards="192.168.1.2") == ["192.168.1.2", "10.0.0.2", "172.17.0.1"]
    assert addresses("0.0.0.0", towards="10.0.0.2") == ["10.0.0.2", "192.168.1.2", "172.17.0.1"]
    assert addresses("0.0.0.0", ("192.168.1.2", 8000), "10.0.0.2")[0] == "192.168.1.2"
    assert addresses("::", towards="192.168.1.2")[-2:] == ["fd00::2", "172.17.0.1"]


def test_one_address_listens_alone() -> None:
    assert addresses("10.0.0.2") == ["10.0.0.2"]
    assert addresses("10.9.9.9") == ["10.9.9.9"]


@pytest.mark.parametrize(("listening", "found"), [("0.0.0.0", (LO, LOCAL6)), ("8.8.8.8", ALL), ("0.0.0.0", (OWN6,))])
def test_without_an_address_for_phones_there_is_no_invitation(listening: str, found) -> None:
    with pytest.raises(LoopbackOnly, match="no address in a private network"):
        addresses(listening, found=found)


def test_links_are_written_as_they_are_typed() -> None:
    assert links_of("0.0.0.0", HERE, [WIFI], None) == (Link("http://192.168.1.2:8000", "192.168.1.2", "wlan0"),)
    (six,) = links_of("::", ("::", 8443), [OWN6], None, "https")
    assert six.with_token("abc") == "https://[fd00::2]:8443/join/abc"
    assert command_of("http://a/join/b") == "curl -fsSL 'http://a/join/b' | bash"
