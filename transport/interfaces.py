"""The addresses of this machine, interface by interface, and where a broadcast on each of them goes.

Asked anew each time, since cables and Wi-Fi come and go. `ifaddr` knows them where it is installed; without it there
is the loopback interface and one that stands for all others, whose broadcast is the limited one (255.255.255.255), so
that discovery still works on machines with one network. Never raises. Must not know datagrams or what is in them.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "ALL_NODES",
    "ANY_V4",
    "ANY_V6",
    "LIMITED_BROADCAST",
    "MOST_INTERFACES",
    "Interface",
    "broadcasts",
    "fitting",
    "interfaces",
    "is_loopback",
    "source_towards",
]

ANY_V4, ANY_V6 = "0.0.0.0", "::"
LIMITED_BROADCAST = "255.255.255.255"
ALL_NODES = "ff02::1"  # IPv6 has no broadcast; every host of a link listens to this (RFC 4291, section 2.7.1)
# A host of containers has hundreds of bridges with nobody on them: a probe on each would be a storm of its own.
MOST_INTERFACES = 32
_LOOPBACK = "127.0.0.1"
_NO_NETWORK_BITS = 2  # networks of two addresses and of one have no broadcast (RFC 3021)


@dataclass(frozen=True, slots=True)
class Interface:
    """One address of one interface. `prefix` is the length of its network's part in bits."""

    name: str
    address: str
    prefix: int
    index: int = 0

    @property
    def is_v6(self) -> bool:
        return ":" in self.address

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.address)

    @property
    def is_link_local(self) -> bool:
        return ipaddress.ip_address(self.address).is_link_local

    @property
    def broadcast(self) -> str | None:
        """Where everybody on this network listens; None for networks that have no such address."""
        if self.is_v6:
            return None if self.is_loopback else f"{ALL_NODES}%{self.index}"
        if self.address == ANY_V4:
            return LIMITED_BROADCAST
        if self.prefix > 32 - _NO_NETWORK_BITS:
            return None
        return str(self.network.broadcast_address)

    @property
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        return ipaddress.ip_network(f"{self.address}/{self.prefix}", strict=False)

    def reaches(self, host: str) -> bool:
        """Whether `host` (an address, with its zone or without) is on this interface's own network."""
        bare, _, zone = host.partition("%")
        try:
            address = ipaddress.ip_address(bare)
        except ValueError:
            return False
        if address.version != self.network.version or address not in self.network:
            return False
        return not zone or zone in (self.name, str(self.index))


def is_loopback(host: str) -> bool:
    """Is this address, written in figures, the machine itself?"""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def interfaces() -> tuple[Interface, ...]:
    """All there are now, `MOST_INTERFACES` at most, loopback first and those with many addresses not before others."""
    try:
        import ifaddr
    except ImportError:
        return _UNKNOWN
    try:
        adapters = list(ifaddr.get_adapters())
    except OSError:
        return _UNKNOWN
    found = []
    for adapter in adapters:
        for ip in adapter.ips:
            address = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            found.append(Interface(adapter.name, address, ip.network_prefix, adapter.index or 0))
    found.sort(key=lambda one: (not one.is_loopback, one.is_v6))
    return tuple(found[:MOST_INTERFACES])


_UNKNOWN = (Interface("lo", _LOOPBACK, 8), Interface("any", ANY_V4, 0))


def broadcasts(found: Iterable[Interface]) -> tuple[str, ...]:
    """The addresses that reach everybody on these interfaces, each once, in their order."""
    return tuple(dict.fromkeys(one.broadcast for one in found if one.broadcast))


def fitting(found: Iterable[Interface], host: str) -> Interface | None:
    """The interface on whose network `host` is, the narrowest first; None for hosts behind a router."""
    near = [one for one in found if one.address != ANY_V4 and one.reaches(host)]
    return max(near, key=lambda one: one.prefix, default=None)


def source_towards(host: str) -> str | None:
    """The address of ours that packets to `host` carry, as the system's routes say. Sends nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(socket.getaddrinfo(host, 9, family, socket.SOCK_DGRAM, 0, socket.AI_NUMERICHOST)[0][4])
            return str(probe.getsockname()[0])
    except OSError:
        return None
