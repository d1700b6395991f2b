"""What a verified announcement says about where a node is: which of the addresses in it to believe. Pure.

Anybody on a network can send a datagram, and without a token nothing in it is proven: then only the address that it
came from is used, since whoever sent it can at least be there. A token's signature makes the announced ones good too.
Addresses are figures; names are never looked up for a stranger. Must not know sockets.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from transport.interfaces import is_loopback
from wire.beacon import Address, Announcement

__all__ = ["Found", "believed_addresses"]


@dataclass(frozen=True, slots=True)
class Found:
    """A node that was heard.

    `source` and `source_port`: the UDP place that it spoke from and answers probes at. `signed`: by our token.
    `seconds`: how long the answer to our probe took; None for what nobody asked for.
    """

    announcement: Announcement
    source: str
    source_port: int
    signed: bool
    seconds: float | None = None

    @property
    def node_id(self) -> str:
        return self.announcement.node_id.hex()

    @property
    def name(self) -> str:
        """Its name, or the start of its id where it has none that can be shown."""
        name = " ".join(self.announcement.name.split())
        return name if name and name.isprintable() else f"node-{self.node_id[:8]}"

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where to connect, the best first; empty when a signed one names none that can be meant."""
        return believed_addresses(self.announcement, self.source, self.signed)

    @property
    def is_here(self) -> bool:
        """Does it speak from this very machine?"""
        return is_loopback(self.source)


def believed_addresses(announcement: Announcement, source: str, signed: bool) -> tuple[Address, ...]:
    """Those at `source` first, then, if signed, the others that can be meant."""
    announced = announcement.addresses
    own = [Address(source, each.port) for each in announced if _bare(each.host) == _bare(source)]
    if not signed:
        return tuple(dict.fromkeys(own or [Address(source, announced[0].port)]))
    others = [each for each in announced if _can_be_meant(each.host, source)]
    if _is_scoped(source):  # an address of one link only; the node's others are good everywhere
        own, others = others, own
    return tuple(dict.fromkeys([*own, *others]))  # never the source alone: a signed datagram may be sent on by anybody


def _bare(host: str) -> str:
    return host.partition("%")[0]


def _is_scoped(host: str) -> bool:
    return "%" in host


def _can_be_meant(host: str, source: str) -> bool:
    """Is it an address of one host, and not of the machine itself unless the announcement came from it?"""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if address.is_unspecified or address.is_multicast or address.is_reserved:
        return False
    return not address.is_loopback or is_loopback(source)
