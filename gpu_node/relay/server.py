"""The relay's TCP server: takes connections in, bounds them, and ends in order.

Invariants: no more connections than the bound, and fewer that have not greeted yet, the oldest of which makes place; a
client that is slow or silent holds up nobody else; after `close` no task, socket or session is left. Must not know
what requests mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpu_node.relay.connection import ClientConnection, Reception
from gpu_node.relay.counters import RelayFigures
from gpu_node.relay.sessions import Sessions
from transport.errors import ConnectFailed
from transport.tls import Tls, line_over

log = logging.getLogger("gpu_node.relay")

# When the process has no descriptor left, asking at once again would only burn the processor.
PAUSE_SECONDS = 0.5
# A peer that vanished without a word is noticed after half a minute where nothing is being sent, else after one and a
# half (milliseconds): so long a program may also be held before it reads on.
KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 90_000}


@dataclass(frozen=True, slots=True)
class ServerLimits:
    connections: int = 1024
    greeting: int = 512  # of them, those that nobody knows yet: all of a fleet may come at once after a restart
    backlog: int = 256  # that the system holds until they are taken in: all of a fleet after a restart
    drain_seconds: float = 30.0  # for answers under way when the node stops


class RelayServer:
    def __init__(self, reception: Reception, limits: ServerLimits, tls: ssl.SSLContext | None = None) -> None:
        self._reception, self._limits = reception, limits
        self._tls = Tls(tls, server_side=True, handshake_seconds=reception.greeting_seconds) if tls else None
        self._connections: dict[ClientConnection, None] = {}  # in the order of their coming
        self._arrivals: dict[asyncio.Task[None], None] = {}  # whose TLS is not agreed on yet, likewise
        self._acceptors: list[asyncio.Task[None]] = []
        self._endings: dict[asyncio.Task[None], ClientConnection] = {}  # over, their last words under way

    def start(self, listeners: Sequence[socket.socket]) -> None:
        """Listen from now on. The sockets are bound; they are the server's, and closed with it."""
        loop = asyncio.get_running_loop()
        for listener in listeners:
            listener.setblocking(False)
            listener.listen(self._limits.backlog)
        self._acceptors += [loop.create_task(self._accept(one), name="relay listener") for one in listeners]

    @property
    def sessions(self) -> Sessions:
        return self._reception.sessions

    @property
    def figures(self) -> RelayFigures:
        counters, sessions = self._reception.counters, self._reception.sessions
        drivers = [connection.driver for connection in self._connections]
        return RelayFigures(
            connections=len(self._connections) + len(self._arrivals),
            sessions=len(sessions),
            cut_sessions=len(sessions.cut()),
            streams=sum(len(driver.streams) for driver in drivers),
            jobs=sum(len(session.jobs) for session in sessions.all),
            accepted=counters.accepted,
            turned_away=counters.turned_away,
            resumed=counters.resumed,
            requests=dict(counters.requests),
            sent_bytes=counters.sent_bytes + sum(driver.sent_bytes for driver in drivers),
            received_bytes=counters.received_bytes + sum(driver.received_bytes for driver in drivers),
            faults=dict(counters.faults),
            failures=dict(counters.failures),
        )

    async def drain(self) -> None:
        """Take nobody in and no requests; return when all answers are told or the time for it is over."""
        await self._stop_accepting()
        for connection in list(self._connections):
            connection.drain()
        # Not asyncio.timeout: in a task that was cancelled it tells no end of time in Python 3.11.2.
        told = asyncio.ensure_future(self._all_told())
        try:
            await asyncio.wait({told}, timeout=self._limits.drain_seconds)
        finally:
            told.cancel()
            await asyncio.wait({told})

    async def _all_told(self) -> None:
        while tasks := [task for session in self._reception.sessions.all for task in session.tasks]:
            await asyncio.wait(tasks)
        for connection in list(self._connections):
            with contextlib.suppress(Exception):  # that one is gone, which is what this waits for
                await connection.driver.drain()

    async def close(self) -> None:
        """End everything; what has to be told and can be is still written."""
        await self._stop_accepting()
        await self._reception.sessions.close()
        for connection in (*self._connections, *self._endings.values()):
            connection.close()
        await asyncio.gather(*self._endings)

    async def _stop_accepting(self) -> None:
        tasks = [*self._acceptors, *self._arrivals]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._acceptors.clear()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    connected, address = await loop.sock_accept(listener)
                except OSError as error:
                    log.warning("a client cannot be taken in: %s", error)
                    await asyncio.sleep(PAUSE_SECONDS)
                    continue
                try:
                    self.take_in(connected, told(address))
                except Exception:  # top of the task: whatever one client does, the next is still taken in
                    log.exception("%s cannot be taken in", told(address))
                    connected.close()

    def take_in(self, connected: socket.socket, peer: str) -> None:
        """A client, however it has come; the socket is the server's."""
        counters = self._reception.counters
        counters.accepted += 1
        if len(self._connections) + len(self._arrivals) >= self._limits.connections:
            counters.turned_away += 1
            log.warning("%s is turned away: %d connections are open", peer, self._limits.connections)
            connected.close()
            return
        self._make_place()
        watch(connected)
        task = asyncio.get_running_loop().create_task(self._begin(connected, peer), name=f"greet {peer}")
        self._arrivals[task] = None
        task.add_done_callback(lambda done: self._arrived(done, connected))

    def _make_place(self) -> None:
        """The oldest of those that have not greeted goes: somebody honest is done within a moment."""
        waiting = [connection for connection in self._connections if not connection.greeted]
        if len(waiting) + len(self._arrivals) < self._limits.greeting:
            return
        self._reception.counters.turned_away += 1
        if waiting:
            waiting[0].close()
        else:
            next(iter(self._arrivals)).cancel()

    async def _begin(self, connected: socket.socket, peer: str) -> None:
        try:
            line = await line_over(connected, self._tls)
        except ConnectFailed as error:
            log.info("%s: %s", peer, error.reason)
            self._reception.counters.turned_away += 1
            return
        connection = ClientConnection(self._reception, peer, self._over)
        self._connections[connection] = None
        connection.begin(line)

    def _arrived(self, task: asyncio.Task[None], connected: socket.socket) -> None:
        self._arrivals.pop(task, None)
        if task.cancelled():
            connected.close()  # also when it was cancelled before its first step
        elif task.exception() is not None:
            log.error("a client could not be greeted", exc_info=task.exception())
            connected.close()

    def _over(self, connection: ClientConnection) -> None:
        if connection in self._connections:
            del self._connections[connection]
            self._reception.counters.sent_bytes += connection.driver.sent_bytes
            self._reception.counters.received_bytes += connection.driver.received_bytes
            task = asyncio.get_running_loop().create_task(connection.driver.wait_closed(), name="a last word")
            self._endings[task] = connection
            task.add_done_callback(self._endings.pop)


def watch(connected: socket.socket) -> None:
    """Have the system find out when the peer is gone."""
    with contextlib.suppress(OSError):  # a socket that is not TCP
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def told(address: Any) -> str:
    """Where a client is, for logs."""
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return str(address) or "a local socket"
