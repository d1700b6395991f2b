"""The addresses of the gateway that phones can reach, and the line that a phone is given. Pure.

Which addresses there are, where the gateway listens and where the invitation was asked for are arguments.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from server.errors import LoopbackOnly
from transport.interfaces import Interface

ANY = ("0.0.0.0", "::", "")
MOST_LINKS = 4
# Bridges of containers and virtual machines: real networks, but no phone is on them.
_VIRTUAL = re.compile(
    r"(docker|br-|veth|virbr|vmnet|vboxnet|cni|flannel|lxc|lxd|podman|tun|utun|zt|kube)", re.IGNORECASE
)
_NO_WAY = "the gateway listens on this machine only, so no phone can reach it"
_START = "start it for the network: potluck serve --host 0.0.0.0 (or scripts/run --host 0.0.0.0)"


@dataclass(frozen=True, slots=True)
class Link:
    """`url` is the gateway's address, without a token."""

    url: str
    address: str
    interface: str

    def with_token(self, token: str) -> str:
        return f"{self.url}/join/{token}"


def command_of(url: str) -> str:
    """What is typed into Termux."""
    return f"curl -fsSL '{url}' | bash"


def links_of(
    listening: str, asked_at: tuple[str, int], found: Iterable[Interface], towards: str | None, scheme: str = "http"
) -> tuple[Link, ...]:
    """The gateway's addresses for phones, the likeliest first; at least one. Raises LoopbackOnly.

    `listening` is the host that the gateway was told to listen at, `asked_at` the place where this call came in,
    `towards` our address on the way to everywhere else.
    """
    host, port = asked_at
    addresses = [one for one in found if _is_private(one.address)]
    if listening not in ANY:
        if listening == "localhost" or _is_loopback(listening):
            raise LoopbackOnly(_NO_WAY, hint=_START)
        addresses = [one for one in addresses if one.address == listening]
        if not addresses and _is_private(listening):
            addresses = [Interface("", listening, 32)]
    elif listening == ANY[0]:
        addresses = [one for one in addresses if not one.is_v6]
    if not addresses:
        raise LoopbackOnly("the gateway has no address in a private network that phones could reach", hint=_START)
    addresses.sort(key=lambda one: _rank(one, host, towards))
    return tuple(Link(_url(scheme, one.address, port), one.address, one.name) for one in addresses[:MOST_LINKS])


def _rank(one: Interface, asked_at: str, towards: str | None) -> tuple[bool, bool, bool, bool]:
    """Where the page was opened from another machine comes first: phones are likely there, too."""
    return bool(_VIRTUAL.match(one.name)), one.is_v6, one.address != asked_at, one.address != towards


def _url(scheme: str, address: str, port: int) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"{scheme}://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _is_private(host: str) -> bool:
    """Private, and written down without a zone: a phone does not know the names of our interfaces."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    usable = not (address.is_loopback or address.is_link_local or address.is_unspecified)
    return usable and address.is_private
