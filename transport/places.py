"""Where a node listens and how it is spoken to, and the way to a connected socket.

Invariants: a host name with several addresses is tried at all of them, each a moment after the one before (RFC 8305),
and the first that answers wins; the others are closed. A token never shows in a representation. Knows nothing of the
protocol: what goes over the socket is `link.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transport.errors import ConnectFailed

__all__ = ["RELAY_PORT", "Access", "Place", "reach"]

RELAY_PORT = 8765
# RFC 8305, section 5: long enough for an address that works, short enough that one that does not is hardly felt.
STAGGER_SECONDS = 0.25
# A name with more addresses than that is no node's.
ADDRESSES_MOST = 16


@dataclass(frozen=True, slots=True)
class Place:
    """An address or a name, and the port of the relay."""

    host: str
    port: int = RELAY_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Access:
    """What one must have to be let in: the shared token, and TLS where the node speaks it."""

    token: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    server_name: str | None = None  # the name in the node's certificate, where it is not the place's host


async def reach(place: Place, stagger_seconds: float = STAGGER_SECONDS) -> socket.socket:
    """A connected, non-blocking socket. Raises ConnectFailed; ends by itself only when all addresses have failed."""
    addresses = await _addresses(place)
    attempts: set[asyncio.Task[socket.socket]] = set()
    failures: list[OSError] = []
    try:
        while addresses or attempts:
            if addresses:
                attempts.add(asyncio.ensure_future(_connected(addresses.pop(0))))
            wait = stagger_seconds if addresses else None
            done, attempts = await asyncio.wait(attempts, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if won := _winner(done, failures):
                return won
        raise ConnectFailed(str(place), _reason(failures[-1])) from failures[-1]
    finally:
        await _end(attempts)


async def _addresses(place: Place) -> list[tuple[int, Any]]:
    """Names are looked up in a thread; figures need none."""
    kind, figures = socket.SOCK_STREAM, socket.AI_NUMERICHOST
    with contextlib.suppress(OSError, UnicodeError):
        return [(each[0], each[4]) for each in socket.getaddrinfo(place.host, place.port, type=kind, flags=figures)]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(place.host, place.port, type=kind)
    except OSError as error:
        raise ConnectFailed(str(place), _reason(error)) from error
    except UnicodeError as error:
        raise ConnectFailed(str(place), "that is no name of a host") from error
    return _interleaved([(family, address) for family, _, _, _, address in found])[:ADDRESSES_MOST]


def _interleaved(addresses: Sequence[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """The families in turns, beginning with the first one's: often only one of them works."""
    families = list(dict.fromkeys(family for family, _ in addresses))
    columns = [[each for each in addresses if each[0] == family] for family in families]
    longest = max(map(len, columns), default=0)
    return [column[place] for place in range(longest) for column in columns if place < len(column)]


async def _connected(address: tuple[int, Any]) -> socket.socket:
    family, where = address
    new = socket.socket(family, socket.SOCK_STREAM)
    try:
        new.setblocking(False)
        new.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(new, where)
    except BaseException:
        new.close()
        raise
    return new


def _winner(done: set[asyncio.Task[socket.socket]], failures: list[OSError]) -> socket.socket | None:
    won: socket.socket | None = None
    for attempt in done:
        error = attempt.exception()
        if isinstance(error, OSError):
            failures.append(error)
        elif error is not None:
            raise error
        elif won is None:
            won = attempt.result()
        else:
            attempt.result().close()
    return won


async def _end(attempts: set[asyncio.Task[socket.socket]]) -> None:
    for attempt in attempts:
        attempt.cancel()
    for result in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(result, socket.socket):
            result.close()


def _reason(error: OSError) -> str:
    """In words; asyncio puts the address where the system's own words would be."""
    plain = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    return (plain or str(error) or type(error).__name__).lower()
