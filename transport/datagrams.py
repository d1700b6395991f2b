"""UDP sockets in an event loop: send a datagram, be told of each that comes. Works under asyncio and uvloop.

Several programs of one machine share the port of discovery. A datagram to a broadcast address reaches all sockets that
are bound to it, one to a single address only one of them; so who answers probes binds plain addresses too, and who
only listens binds nothing but the broadcast addresses, where it takes nothing away from anybody. Invariants: a burst of
datagrams never holds the loop; what cannot be sent is dropped, as the network would. Must not know what is in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from wire.beacon import DATAGRAM_MOST

__all__ = ["DatagramSocket", "Deliver", "Source", "bind_socket", "close_all", "numeric"]

_READS_AT_ONCE = 32  # then other work of the loop has its turn
_RECEIVE_BYTES = 1 << 18  # a hundred nodes may answer one broadcast within a millisecond


@dataclass(frozen=True, slots=True)
class Source:
    """Who sent a datagram: `host` in figures, with its zone where it needs one, and the socket that heard it."""

    host: str
    port: int
    heard_by: DatagramSocket

    def answer(self, datagram: bytes) -> None:
        """Send to where it came from, from where it was sent to."""
        self.heard_by.send(datagram, self.host, self.port)


Deliver = Callable[[bytes, Source], None]


def numeric(host: str, port: int) -> tuple[Any, ...] | None:
    """The socket address of an address in figures; None for anything else. Resolves no names."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM, 0, socket.AI_NUMERICHOST)[0][4]
    except (OSError, UnicodeError):
        return None


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket that may share its port and may broadcast. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = numeric(host, port)
    if place is None:
        raise OSError(f"{host} is no address")
    bound = socket.socket(family, socket.SOCK_DGRAM)
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        if port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sys.platform != "linux":  # there it would spread the datagrams over the sockets, by chance
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
        bound.bind(place)
    except BaseException:
        bound.close()
        raise
    return bound


class DatagramSocket:
    def __init__(self, host: str, port: int, deliver: Deliver) -> None:
        """Raises OSError when the place cannot be had."""
        self._socket = bind_socket(host, port)
        self._deliver, self.host = deliver, host
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._read)

    @property
    def is_v6(self) -> bool:
        return ":" in self.host

    def send(self, datagram: bytes, host: str, port: int) -> None:
        """Now or never: a datagram that finds no way or no room is lost, like any other."""
        place = numeric(host, port) if self.is_v6 == (":" in host) else None
        if place is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(datagram, place)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _read(self) -> None:
        for _ in range(_READS_AT_ONCE):
            try:
                datagram, place = self._socket.recvfrom(DATAGRAM_MOST + 1)  # one more, so that too long ones show
            except OSError:  # nothing left, or what a send of ours met with
                return
            self._deliver(datagram, Source(_host_of(place), place[1], self))
            if self._socket.fileno() < 0:  # closed by what it delivered to
                return


def _host_of(place: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """IPv6 addresses of a link are nothing without their zone."""
    host = place[0]
    zone = place[3] if len(place) == 4 else 0
    return f"{host}%{zone}" if zone and "%" not in host else host


def close_all(sockets: Iterable[DatagramSocket]) -> None:
    for one in sockets:
        one.close()
