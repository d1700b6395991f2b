"""May the gateway call a phone back? Only where its own packets come from, in a private network. Pure.

The address is the peer's of the very connection that asks, never a word of a body or a header. Without these rules an
invitation would let its holder make the gateway call whom he likes (CWE-918, server-side request forgery).
"""

from __future__ import annotations

import ipaddress
import re

from server.errors import RequestInvalid

# Termux may listen nowhere below; neither may what is called be a system's service.
LOWEST_PORT, HIGHEST_PORT = 1024, 65535
# RFC 1918, RFC 3927, RFC 4193, RFC 4291. Not 100.64.0.0/10, where a provider's customers meet.
_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10")
)
_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,15}")  # the name or number of an interface, as Linux allows it
_HINT = "connect the phone to the network of the gateway, and use the gateway's address there"


def is_private(host: str) -> bool:
    """Is this, without a zone, an address of a network where phones may be?"""
    try:
        return _is_private(ipaddress.ip_address(host))
    except ValueError:
        return False


def callable_host(peer: str | None) -> str:
    """The address to call back, in its shortest writing. Raises RequestInvalid where it must not be called."""
    if not peer:
        raise RequestInvalid("the phone's address is not known", hint=_HINT)
    bare, percent, zone = peer.partition("%")
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        raise RequestInvalid("the phone's address is not known", hint=_HINT) from None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address, percent, zone = address.ipv4_mapped, "", ""
    if address.is_loopback:
        raise RequestInvalid("a phone cannot join from this machine itself", hint=_HINT)
    if not _is_private(address):
        raise RequestInvalid("a phone can only join from a private network", hint=_HINT)
    if address.version == 6 and address.is_link_local:
        if not _ZONE.fullmatch(zone):
            raise RequestInvalid("the phone's link-local address does not say on which network it is", hint=_HINT)
        return f"{address}%{zone}"
    if percent:
        raise RequestInvalid("the phone's address is not known", hint=_HINT)
    return str(address)


def _is_private(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(address in network for network in _PRIVATE if network.version == address.version)
