"""The node in mDNS, as `_potluck._tcp`, for networks where multicast passes and broadcast does not, and for people.

What stands there is a hint: nobody proves anything over mDNS, so who reads it asks the node by a signed probe. Needs
zeroconf; without it, or where its port cannot be had, one warning tells so and the node goes on. Records live for two
minutes, so that a node that died without a word is soon forgotten. Must not know the datagrams of discovery.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zeroconf import ServiceInfo
    from zeroconf.asyncio import AsyncZeroconf

log = logging.getLogger("gpu_node")

SERVICE_TYPE = "_potluck._tcp.local."
LIFE_SECONDS = 120
FAREWELL_SECONDS = 1.5  # saying goodbye must not hold up a node that stops
MOST_TEXT_BYTES = 250  # of one entry; 255 with its key and length is what the format holds (RFC 6763, section 6.1)


@dataclass(frozen=True, slots=True)
class MdnsRecord:
    """What is published. `addresses` in figures, those that the relay is reached at and no others."""

    label: str
    port: int
    addresses: tuple[str, ...]
    texts: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return f"{self.label}.{SERVICE_TYPE}"


def service_label(name: str, node_id: bytes) -> str:
    """One label of DNS, and no other node's: a dot would begin another label, and 63 bytes are the most."""
    plain = "".join(letter if letter.isprintable() and letter not in ".\\" else "-" for letter in name)
    return f"{plain.encode()[:48].decode(errors='ignore')} {node_id.hex()[:8]}"


def joined_models(models: Sequence[str]) -> str:
    """As many names as one entry holds, separated by commas."""
    text = ""
    for name in models:
        if name.encode(errors="replace").decode() != name:
            continue  # a file's name may hold bytes that are no text
        longer = f"{text},{name}" if text else name
        if len(longer.encode()) <= MOST_TEXT_BYTES - len("models="):
            text = longer
    return text


OpenZeroconf = Callable[[Sequence[str]], "AsyncZeroconf"]


def open_zeroconf(addresses: Sequence[str]) -> AsyncZeroconf:
    """On the interfaces of these addresses alone. Raises OSError, ImportError."""
    from zeroconf import IPVersion
    from zeroconf.asyncio import AsyncZeroconf

    has_v6 = any(":" in address for address in addresses)
    has_v4 = any(":" not in address for address in addresses)
    version = IPVersion.All if has_v4 and has_v6 else IPVersion.V6Only if has_v6 else IPVersion.V4Only
    return AsyncZeroconf(interfaces=list(addresses), ip_version=version)


class MdnsRegistration:
    """`update` it whenever the record may have changed; `close` it at the end. Neither ever raises for mDNS's sake."""

    def __init__(self, opened: OpenZeroconf = open_zeroconf) -> None:
        self._open = opened
        self._zeroconf: AsyncZeroconf | None = None
        self._record: MdnsRecord | None = None
        self._warned = False

    async def update(self, record: MdnsRecord) -> None:
        """Publish this instead of what was. New addresses may mean new interfaces, which take new sockets."""
        before = self._record
        if record == before:
            return
        try:
            if self._zeroconf is not None and before is not None and _places(before) == _places(record):
                await (await self._zeroconf.async_update_service(_service_of(record)))
            else:
                await self._leave()
                await self._publish(record)
        except Exception as error:  # zeroconf raises what the system and its own checks raise: none of it ends a node
            self._warn(error)
            await self._leave()
            return
        self._record = record

    async def close(self) -> None:
        await self._leave()

    async def _publish(self, record: MdnsRecord) -> None:
        if not record.addresses:
            return
        self._zeroconf = self._open(record.addresses)
        registering = await self._zeroconf.async_register_service(_service_of(record), allow_name_change=True)
        await registering

    async def _leave(self) -> None:
        """Its farewells go out here; what is not said in time is not said."""
        zeroconf, self._zeroconf, self._record = self._zeroconf, None, None
        if zeroconf is None:
            return
        try:
            await asyncio.wait_for(zeroconf.async_close(), FAREWELL_SECONDS)
        except Exception as error:  # as in `update`; a node that stops has more to do after this
            log.debug("mDNS did not end well: %r", error)

    def _warn(self, error: Exception) -> None:
        level = logging.DEBUG if self._warned else logging.WARNING
        log.log(level, "this node is not told of over mDNS (%s); discovery by broadcast goes on", error or repr(error))
        self._warned = True


def _places(record: MdnsRecord) -> tuple[str, int, tuple[str, ...]]:
    return record.label, record.port, record.addresses


def _service_of(record: MdnsRecord) -> ServiceInfo:
    from zeroconf import ServiceInfo

    packed = [socket.inet_pton(socket.AF_INET6 if ":" in each else socket.AF_INET, each) for each in record.addresses]
    host = f"potluck-{record.label.rpartition(' ')[2]}.local."
    return ServiceInfo(
        SERVICE_TYPE,
        record.name,
        port=record.port,
        addresses=packed,
        properties=dict(record.texts),
        server=host,
        host_ttl=LIFE_SECONDS,
        other_ttl=LIFE_SECONDS,
    )
