"""The addresses of the gateway that phones can reach, and the line that a phone is given. Pure.

Which addresses there are, where the gateway listens and where the invitation was asked for are arguments.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from server.errors import LoopbackOnly
from server.phones.reach import is_private
from transport.interfaces import Interface, is_loopback

ANY_V4, ANY_V6, ANY = "0.0.0.0", "::", ""  # servers bind `::` for IPv6 alone, and no host at all for both
MOST_LINKS = 4
# Bridges of containers, virtual machines and tunnels: real networks, but no phone is on them.
_VIRTUAL = re.compile(
    r"(docker|br-|veth|virbr|vmnet|vboxnet|cni|cali|flannel|lxc|lxd|podman|dummy|tun|utun|wg|ppp|tailscale|zt|kube)",
    re.IGNORECASE,
)
_NO_WAY = "the gateway listens on this machine only, so no phone can reach it"
_NOT_PRIVATE = "the gateway listens at no address of a private network, where phones could be called back"
_CONNECT = "connect this machine to the phones' Wi-Fi or router, or start the gateway for that network: --host 0.0.0.0"
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
    """What is typed into Termux. Without curl's -f: a refusal is a script too, and says why; -f would hide it."""
    return f"curl -sSL '{url}' | bash"


def links_of(
    listening: Collection[str],
    asked_at: tuple[str, int],
    found: Iterable[Interface],
    towards: str | None,
    scheme: str = "http",
) -> tuple[Link, ...]:
    """The gateway's addresses for phones, the likeliest first; at least one. Raises LoopbackOnly.

    `listening` is where the gateway was told to listen, names resolved; `asked_at` the place where this call came in,
    `towards` our address on the way to everywhere else.
    """
    host, port = asked_at
    if all(_is_own_loopback(one) for one in listening):
        raise LoopbackOnly(_NO_WAY, hint=_START)
    named = {one.address: one for one in found}
    for one in (*listening, host, towards or ""):  # a machine with many bridges does not tell all that it has
        named.setdefault(one, Interface("", one, 32))
    addresses = [one for one in named.values() if _is_for_phones(one.address) and _listens(listening, one)]
    if not addresses:
        raise LoopbackOnly(_NOT_PRIVATE + _has(named.values()), hint=_CONNECT)
    addresses.sort(key=lambda one: _rank(one, host, towards))
    return tuple(Link(_url(scheme, one.address, port), one.address, one.name) for one in addresses[:MOST_LINKS])


def _listens(listening: Collection[str], one: Interface) -> bool:
    return ANY in listening or one.address in listening or (ANY_V6 if one.is_v6 else ANY_V4) in listening


def _has(found: Iterable[Interface]) -> str:
    """The addresses of this machine, none of which will do, in words."""
    own = sorted({one.address for one in found} - {ANY, ANY_V4, ANY_V6})
    told = [address for address in own if not is_loopback(address)][:MOST_LINKS]
    return f" (this machine has {', '.join(told)})" if told else ""


def _rank(one: Interface, asked_at: str, towards: str | None) -> tuple[bool, ...]:
    """Where the page was opened from another machine comes first: phones are likely there, too."""
    virtual, unassigned = bool(_VIRTUAL.match(one.name)), one.is_link_local
    return virtual, unassigned, one.is_v6, one.address != asked_at, one.address != towards


def _url(scheme: str, address: str, port: int) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"{scheme}://{host}:{port}"


def _is_own_loopback(host: str) -> bool:
    return host != ANY and is_loopback(host)


def _is_for_phones(host: str) -> bool:
    """Private, and written down without a zone: a phone does not know the names of our interfaces."""
    return is_private(host) and not host.lower().startswith(("fe8", "fe9", "fea", "feb"))
