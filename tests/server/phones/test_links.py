"""Which of the gateway's addresses a phone is shown."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvloop

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


def addresses(*listening: str, asked_at: tuple[str, int] = HERE, towards: str | None = None, found=ALL) -> list[str]:
    return [link.address for link in links_of(listening, asked_at, found, towards)]


@pytest.mark.parametrize("listening", [["127.0.0.1"], ["localhost"], ["::1"], ["127.0.0.2"], ["127.0.1.1", "::1"]])
def test_on_loopback_nobody_is_invited(listening: list[str]) -> None:
    with pytest.raises(LoopbackOnly, match="listens on this machine only") as refused:
        addresses(*listening)
    assert "--host 0.0.0.0" in refused.value.hint


def test_the_likeliest_first_and_none_that_phones_cannot_reach() -> None:
    assert addresses("0.0.0.0", towards="192.168.1.2") == ["192.168.1.2", "10.0.0.2", "172.17.0.1"]
    assert addresses("0.0.0.0", towards="10.0.0.2") == ["10.0.0.2", "192.168.1.2", "172.17.0.1"]
    assert addresses("0.0.0.0", asked_at=("192.168.1.2", 8000), towards="10.0.0.2")[0] == "192.168.1.2"


def test_both_families_are_shown_only_where_both_are_listened_to() -> None:
    assert addresses("::", towards="192.168.1.2") == ["fd00::2"], "servers bind it for IPv6 alone"
    assert addresses("", towards="192.168.1.2")[-2:] == ["fd00::2", "172.17.0.1"]
    assert addresses("", towards="192.168.1.2")[0] == "192.168.1.2"


@pytest.mark.parametrize("loop_of", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_servers_bind_it_for_one_family(loop_of) -> None:
    async def is_alone() -> int:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "::", 0)
        async with server:
            return server.sockets[0].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)

    if not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6 here")
    with asyncio.Runner(loop_factory=loop_of) as runner:
        assert runner.run(is_alone())


def test_where_interfaces_are_not_told_the_way_out_is_known() -> None:
    assert addresses("0.0.0.0", found=[LO], towards="192.168.1.2") == ["192.168.1.2"]
    assert addresses("0.0.0.0", found=[LO], asked_at=("10.0.0.2", 8000), towards="8.8.8.8") == ["10.0.0.2"]
    assert addresses("10.0.0.2", found=[LO], towards="192.168.1.2") == ["10.0.0.2"]
    assert addresses("", found=[WIFI], asked_at=("192.168.1.2", 8000), towards="192.168.1.2") == ["192.168.1.2"]


def test_what_a_phone_is_not_called_back_at_is_not_shown() -> None:
    odd = [
        Interface("x", address, 24) for address in ("192.0.2.2", "198.18.0.1", "100.64.0.1", "240.0.0.1", "2001:db8::1")
    ]
    assert addresses("", found=[*odd, WIFI]) == ["192.168.1.2"]


def test_an_address_that_nobody_gave_out_comes_last() -> None:
    direct = Interface("eth0", "169.254.7.7", 16)
    assert addresses("0.0.0.0", found=[direct], asked_at=("169.254.7.7", 8000)) == ["169.254.7.7"]
    assert addresses("0.0.0.0", found=[direct, WIFI], towards="169.254.7.7") == ["192.168.1.2", "169.254.7.7"]


@pytest.mark.parametrize("name", ["wg0", "tun0", "tailscale0", "docker0", "br-1f2e", "utun3", "ppp0", "cali1"])
def test_tunnels_and_bridges_come_after_networks(name: str) -> None:
    found = [Interface(name, "10.8.0.1", 24), WIFI]
    assert addresses("0.0.0.0", found=found, asked_at=("10.8.0.1", 8000), towards="10.8.0.1")[0] == "192.168.1.2"


def test_one_address_listens_alone() -> None:
    assert addresses("10.0.0.2") == ["10.0.0.2"]
    assert addresses("10.9.9.9") == ["10.9.9.9"]


def test_a_name_stands_for_all_its_addresses() -> None:
    assert addresses("127.0.1.1", "10.0.0.2", "192.168.1.2", towards="192.168.1.2") == ["192.168.1.2", "10.0.0.2"]


@pytest.mark.parametrize(("listening", "found"), [("0.0.0.0", (LO, LOCAL6)), ("8.8.8.8", ALL), ("0.0.0.0", (OWN6,))])
def test_without_an_address_for_phones_there_is_no_invitation(listening: str, found) -> None:
    with pytest.raises(LoopbackOnly, match="no address of a private network"):
        addresses(listening, found=found)


def test_who_listens_for_the_network_and_has_no_address_there_is_told_which_he_has() -> None:
    with pytest.raises(LoopbackOnly, match=r"\(this machine has 192\.0\.2\.2\)") as refused:
        addresses("0.0.0.0", found=(LO, Interface("eth0", "192.0.2.2", 24)))
    assert "connect this machine" in (refused.value.hint or "")


def test_links_are_written_as_they_are_typed() -> None:
    assert links_of(["0.0.0.0"], HERE, [WIFI], None) == (Link("http://192.168.1.2:8000", "192.168.1.2", "wlan0"),)
    (six,) = links_of(["::"], ("::", 8443), [OWN6], None, "https")
    assert six.with_token("abc") == "https://[fd00::2]:8443/join/abc"
    assert command_of("http://a/join/b") == "curl -sSL 'http://a/join/b' | bash"
