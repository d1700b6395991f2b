"""Names of nodes to addresses, so that a name server that hangs stalls nobody but the name it hangs on.

The event loop's own look-ups share a handful of threads, and a few dead names would block them all. Here each look-up
has a short-lived thread of its own; callers that ask for the same name meanwhile share it, and a found answer is kept
for a short while. Addresses are taken as they are.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable

KEPT_SECONDS = 15.0  # a phone that gets a new address is found again within this time
MAX_LOOKUPS = 256  # threads at once; beyond it a look-up fails instead of piling up

Lookup = Callable[[str], list[str]]


def system_lookup(host: str) -> list[str]:
    """What the system's resolver says (blocking), without repeats and in its order."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


class Resolver:
    """Lives on one event loop. `resolve` raises OSError where the name has no address."""

    def __init__(self, lookup: Lookup = system_lookup) -> None:
        self._lookup = lookup
        self._kept: dict[str, tuple[float, list[str]]] = {}
        self._running: dict[str, asyncio.Future[list[str]]] = {}

    async def resolve(self, host: str) -> list[str]:
        if is_address(host):
            return [host]
        loop = asyncio.get_running_loop()
        until, addresses = self._kept.get(host, (0.0, []))
        if loop.time() < until:
            return addresses
        running = self._running.get(host) or self._start(loop, host)
        return await asyncio.shield(running)

    def _start(self, loop: asyncio.AbstractEventLoop, host: str) -> asyncio.Future[list[str]]:
        if len(self._running) >= MAX_LOOKUPS:
            raise OSError(f"{MAX_LOOKUPS} names are being looked up already")
        future: asyncio.Future[list[str]] = loop.create_future()
        future.add_done_callback(lambda done: self._finish(host, done))
        self._running[host] = future
        thread = threading.Thread(target=self._run, args=(loop, host, future), name=f"resolve {host}", daemon=True)
        thread.start()
        return future

    def _run(self, loop: asyncio.AbstractEventLoop, host: str, future: asyncio.Future[list[str]]) -> None:
        addresses: list[str] = []
        problem: OSError | None = None
        try:
            addresses = self._lookup(host)
        except OSError as error:
            problem = error
        except UnicodeError as error:  # a name that cannot be a name
            problem = OSError(str(error))
        try:
            loop.call_soon_threadsafe(_settle, future, addresses, problem)
        except RuntimeError:  # the loop was closed while the name server thought about it
            return

    def _finish(self, host: str, future: asyncio.Future[list[str]]) -> None:
        self._running.pop(host, None)
        if not future.cancelled() and future.exception() is None:
            self._kept[host] = (future.get_loop().time() + KEPT_SECONDS, future.result())


def _settle(future: asyncio.Future[list[str]], addresses: list[str], problem: OSError | None) -> None:
    if future.done():
        return
    if problem is not None:
        future.set_exception(problem)
    else:
        future.set_result(addresses)
