"""Whom the gateway may call back: private addresses that packets come from, and nobody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import RequestInvalid
from server.phones.reach import callable_host


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("192.168.1.20", "192.168.1.20"),
        ("10.0.0.1", "10.0.0.1"),
        ("172.31.255.254", "172.31.255.254"),
        ("169.254.7.7", "169.254.7.7"),
        ("::ffff:192.168.1.20", "192.168.1.20"),
        ("fd00:0:0::1", "fd00::1"),
        ("fe80::1%wlan0", "fe80::1%wlan0"),
        ("fe80::1%3", "fe80::1%3"),
    ],
)
def test_phones_of_the_network_are_called_back(peer: str, host: str) -> None:
    assert callable_host(peer) == host


@pytest.mark.parametrize(
    "peer",
    [
        *("127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1", "0.0.0.0", "::", "::ffff:0.0.0.0"),
        *("8.8.8.8", "::ffff:8.8.8.8", "2001:4860:4860::8888", "100.64.0.1", "172.32.0.1", "192.169.0.1", "11.0.0.1"),
        *("224.0.0.1", "255.255.255.255", "ff02::1%eth0", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
        *("fe80::1", "fe80::1%", "fe80::1%a b", "fe80::1%../../x", "fd00::1%eth0", "192.168.1.20%eth0"),
        *(
            "localhost",
            "phone.local",
            "",
            None,
            "192.168.1.20:80",
            "[fe80::1]",
            "0xc0a80114",
            "192.168.1.020",
            "3232235796",
        ),
    ],
)
def test_nobody_else_is(peer: str | None) -> None:
    with pytest.raises(RequestInvalid):
        callable_host(peer)


@given(st.ip_addresses(v=4))
def test_of_all_addresses_only_the_private_ones(address) -> None:
    private = address.is_private and not (address.is_loopback or address.is_unspecified or address.is_multicast)
    for peer in (str(address), f"::ffff:{address}"):
        try:
            host = callable_host(peer)
        except RequestInvalid:
            continue
        assert private and host == str(address)
