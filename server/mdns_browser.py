"""Reads who says over mDNS to be a node (`_potluck._tcp`), as places to ask by a probe, and as nothing more.

Anybody on the network may publish anything there, so no node joins the fleet by it: it has to answer for itself. Needs
zeroconf; without it, or where its port cannot be had, one warning tells so and discovery goes on by broadcast. Must not
know the registry.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transport.beacons import DISCOVERY_PORT
from transport.interfaces import Interface

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

log = logging.getLogger(__name__)

SERVICE_TYPE = "_potluck._tcp.local."
ASK_MS = 3000
MOST_QUESTIONS = 32  # under way at once; a network that is full of inventions must not fill us
MOST_PLACES = 8
FAREWELL_SECONDS = 1.5

Place = tuple[str, int]
Hint = Callable[[tuple[Place, ...]], None]
OpenZeroconf = Callable[[Sequence[str]], "AsyncZeroconf"]


def places_of(addresses: Sequence[str], texts: dict[bytes, bytes | None], port: int) -> tuple[Place, ...]:
    """Where to ask a node that tells these: its own UDP port, and the shared one. Pure.

    Only addresses of local networks are asked, or mDNS could make us send datagrams to anybody.
    """
    own = (texts.get(b"udp") or b"").decode("ascii", "replace")
    ports = [port]
    if own.isdecimal() and 0 < int(own[:6]) <= 65535:
        ports.insert(0, int(own))
    local = [address for address in addresses if _is_local(address)]
    return tuple((address, each) for address in local for each in dict.fromkeys(ports))[:MOST_PLACES]


def _is_local(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return parsed.is_private and not parsed.is_unspecified and not parsed.is_multicast and not parsed.is_loopback


def open_zeroconf(addresses: Sequence[str]) -> AsyncZeroconf:
    """On the interfaces of these addresses. Raises OSError, ImportError."""
    from zeroconf import IPVersion
    from zeroconf.asyncio import AsyncZeroconf

    has_v6 = any(":" in address for address in addresses)
    return AsyncZeroconf(interfaces=list(addresses), ip_version=IPVersion.All if has_v6 else IPVersion.V4Only)


class MdnsBrowser:
    """`look` at the interfaces there are now, again and again; `close` it at the end. Never raises for mDNS's sake."""

    def __init__(self, on_hint: Hint, port: int = DISCOVERY_PORT, opened: OpenZeroconf = open_zeroconf) -> None:
        self._on_hint, self._port, self._open = on_hint, port, opened
        self._addresses: tuple[str, ...] = ()
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._questions: set[asyncio.Task[None]] = set()
        self._warned = False

    async def look(self, found: Sequence[Interface]) -> None:
        """New interfaces take new sockets."""
        addresses = tuple(one.address for one in found if not one.is_loopback and not one.is_link_local)
        if addresses == self._addresses:
            return
        await self.close()
        if not addresses:
            return
        try:
            self._begin(addresses)
        except Exception as error:  # zeroconf raises what the system and its own checks raise: none of it ends us
            level = logging.DEBUG if self._warned else logging.WARNING
            log.log(level, "nodes are not looked for over mDNS (%s); discovery by broadcast goes on", error)
            self._warned = True
            await self.close()
        self._addresses = addresses

    async def close(self) -> None:
        for task in self._questions:
            task.cancel()
        await asyncio.gather(*self._questions, return_exceptions=True)
        browser, self._browser = self._browser, None
        zeroconf, self._zeroconf = self._zeroconf, None
        self._addresses = ()
        ends = [browser.async_cancel()] if browser is not None else []
        ends += [asyncio.wait_for(zeroconf.async_close(), FAREWELL_SECONDS)] if zeroconf is not None else []
        for end in ends:
            try:
                await end
            except Exception as error:  # as where it begins: discovery goes on by broadcast
                log.debug("mDNS did not end well: %r", error)

    def _begin(self, addresses: Sequence[str]) -> None:
        from zeroconf.asyncio import AsyncServiceBrowser

        self._zeroconf = self._open(addresses)
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._changed])

    def _changed(self, zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        from zeroconf import ServiceStateChange

        if state_change is ServiceStateChange.Removed or len(self._questions) >= MOST_QUESTIONS:
            return
        task = asyncio.get_running_loop().create_task(self._ask(zeroconf, service_type, name))
        self._questions.add(task)
        task.add_done_callback(self._questions.discard)

    async def _ask(self, zeroconf: Any, service_type: str, name: str) -> None:
        from zeroconf import IPVersion
        from zeroconf.asyncio import AsyncServiceInfo

        try:
            service = AsyncServiceInfo(service_type, name)
            if not await service.async_request(zeroconf, ASK_MS):
                return
            places = places_of(service.parsed_scoped_addresses(IPVersion.All), service.properties, self._port)
        except Exception as error:  # a stranger's record: whatever is wrong with it is of no interest
            log.debug("mDNS tells of %r what cannot be read: %r", name, error)
            return
        if places:
            self._on_hint(places)
