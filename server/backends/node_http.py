"""HTTP to all nodes: kept connections, opening new ones, and requests that want one whole answer.

A request goes out on a kept connection where there is one. A node that restarted meanwhile has closed it, and the news
may not have come yet: when such a connection dies before the first byte of an answer, the same request goes out once
more on a new connection, so that no restart of a phone costs a request. Nothing else is ever repeated here.
Nothing that a client sent is put into a header: the head of a request is made from the node's own entry alone.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from server.backends.base import Patience
from server.backends.connection import Connection
from server.backends.resolver import Resolver
from server.errors import NodeStalled, NodeUnreachable
from server.nodes import NodeSpec

USER_AGENT = "potluck"
IDLE_SECONDS = 60.0  # probes come every few seconds, so one connection per node stays warm
MAX_IDLE_PER_NODE = 32
END_OF_BODY_SECONDS = 1.0  # how long after its last record a node may take to end the body before we hang up
SWEEP_SECONDS = 30.0
HEAD_START_SECONDS = 0.25  # of one address of a name before the next is tried beside it, as browsers do
# A phone that drops out of the network says nothing. The kernel finds out by asking (keep-alive) or by what is never
# acknowledged (user timeout), long before the patience for a first token is over.
KERNEL_WATCH = (
    ("TCP_KEEPIDLE", 15),
    ("TCP_KEEPINTVL", 5),
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", 15_000),  # milliseconds, unlike the others
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: what `fetch` returns, whatever the status."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """What one node is sent. `key` goes out as a bearer token."""

    spec: NodeSpec
    method: str
    path: str
    body: bytes = b""
    key: str | None = field(default=None, repr=False)

    def encoded(self) -> bytes:
        host = self.spec.address
        if "%" in host:  # the zone of a link-local address is our own business
            host = f"[{self.spec.host.partition('%')[0]}]:{self.spec.port}"
        head = (
            f"{self.method} {self.path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {USER_AGENT}\r\n"
            f"Content-Length: {len(self.body)}\r\n"
        )
        if self.body:
            head += "Content-Type: application/json\r\n"
        if self.key is not None:
            head += f"Authorization: Bearer {self.key}\r\n"
        return b"%b\r\n%b" % (head.encode("latin-1"), self.body)


class NodeHttp:
    """All connections to all nodes. Lives on one event loop; shared by the backends; `aclose` closes everything."""

    def __init__(self, resolver: Resolver | None = None, head_start_seconds: float = HEAD_START_SECONDS) -> None:
        self._resolver = resolver or Resolver()
        self._head_start_seconds = head_start_seconds
        self._idle: dict[tuple[str, int], list[Connection]] = {}
        self._all: dict[Connection, tuple[str, int]] = {}
        self._ending: dict[Connection, asyncio.TimerHandle] = {}
        self._swept_at = 0.0
        self._all_lost: asyncio.Event | None = None

    async def open(self, request: Request, patience: Patience, end: float) -> Connection:
        """Send the request and wait for the answer's head. The caller hands the connection back with `close`.

        `end` is when the whole exchange must be over (loop clock).
        """
        encoded = request.encoded()
        kept = self._take_idle(request.spec)
        if kept is not None:
            try:
                return await _ask(kept, encoded, patience, end)
            except NodeUnreachable:
                if kept.answered:
                    raise
        left = max(0.0, end - asyncio.get_running_loop().time())
        connection = await self._connect(request.spec, min(patience.connect, left))
        return await _ask(connection, encoded, patience, end)

    async def fetch(self, request: Request, patience: Patience, limit_bytes: int) -> Answer:
        """One whole answer, whatever its status."""
        end = asyncio.get_running_loop().time() + patience.total
        connection = await self.open(request, patience, end)
        try:
            connection.expect("between_tokens", patience.between_tokens, end)
            body = await connection.read_all(limit_bytes)
            return Answer(connection.status, connection.headers, body)
        finally:
            self.close(connection)

    async def fetch_soon(self, request: Request, timeout_seconds: float, limit_bytes: int, phase: str) -> Answer:
        """One whole answer to a short question, which has one limit and a phase of its own."""
        patience = Patience(timeout_seconds, timeout_seconds, timeout_seconds, timeout_seconds)
        try:
            return await self.fetch(request, patience, limit_bytes)
        except NodeStalled as stall:
            if stall.phase == "connect":
                raise
            message = f"{request.spec.address} did not answer {request.path} within {timeout_seconds:g} s"
            raise NodeStalled(message, phase) from stall

    def close(self, connection: Connection, *, answered: bool = False) -> None:
        """End an exchange. A body that was read to its end leaves a connection for later, else the node is hung up on.

        `answered`: the answer's last record has come, only the end of the body may still be on its way.
        """
        connection.rest()
        if connection.complete:
            self._keep(connection)
        elif answered and connection.usable:
            hang_up = asyncio.get_running_loop().call_later(END_OF_BODY_SECONDS, connection.abort)
            self._ending[connection] = hang_up
        else:
            connection.abort()

    async def aclose(self) -> None:
        """Close every connection and see it closed."""
        self._idle.clear()
        for connection in list(self._all):
            connection.abort()
        if self._all:
            self._all_lost = asyncio.Event()
            await self._all_lost.wait()

    # -- one connection ----------------------------------------------------------------------------------------------

    async def _connect(self, spec: NodeSpec, timeout_seconds: float) -> Connection:
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._connect_to_any(spec)
        except TimeoutError as problem:
            raise NodeStalled(f"{spec.address} did not take the connection in time", "connect") from problem

    async def _connect_to_any(self, spec: NodeSpec) -> Connection:
        try:
            addresses = await self._resolver.resolve(spec.host)
        except OSError as problem:
            raise NodeUnreachable(f"the name {spec.host} has no address: {problem}") from problem
        try:
            return await self._connect_to_first(addresses, spec)
        except OSError as problem:
            reason = problem.strerror or str(problem)
            raise NodeUnreachable(f"cannot connect to {spec.address}: {reason}") from problem

    async def _connect_to_first(self, addresses: Sequence[str], spec: NodeSpec) -> Connection:
        """The first of the addresses that takes a connection. Raises OSError where none does."""
        waiting = list(addresses)
        attempts: set[asyncio.Task[Connection]] = set()
        failure = OSError("the name has no address")
        try:
            while waiting or attempts:
                if waiting:
                    attempts.add(asyncio.create_task(self._connect_to(waiting.pop(0), spec)))
                limit = self._head_start_seconds if waiting else None
                done, _ = await asyncio.wait(attempts, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
                for attempt in done:
                    attempts.discard(attempt)
                    try:
                        return attempt.result()
                    except OSError as problem:
                        failure = problem
            raise failure
        finally:
            await _give_up(attempts)

    async def _connect_to(self, address: str, spec: NodeSpec) -> Connection:
        loop = asyncio.get_running_loop()
        made: list[Connection] = []
        try:
            transport, connection = await loop.create_connection(lambda: self._made(spec, made), address, spec.port)
        except BaseException:
            for connection in made:  # uvloop makes the protocol before it connects, and then never says that it is lost
                self._all.pop(connection, None)
            raise
        _set_socket_options(transport.get_extra_info("socket"))
        return connection

    def _made(self, spec: NodeSpec, made: list[Connection]) -> Connection:
        connection = Connection(spec.address, self._completed, self._lost)
        self._all[connection] = (spec.host, spec.port)
        made.append(connection)
        return connection

    # -- kept connections --------------------------------------------------------------------------------------------

    def _take_idle(self, spec: NodeSpec) -> Connection | None:
        """The connection used last: it is the one most surely alive."""
        idle = self._idle.get((spec.host, spec.port))
        while idle:
            connection = idle.pop()
            if connection.usable:
                return connection
        return None

    def _keep(self, connection: Connection) -> None:
        now = asyncio.get_running_loop().time()
        key = self._all.get(connection)
        idle = self._idle.setdefault(key, []) if key is not None else []
        if not connection.reusable or key is None or len(idle) >= MAX_IDLE_PER_NODE:
            connection.abort()
        else:
            connection.idle_since = now
            idle.append(connection)
        if now > self._swept_at + SWEEP_SECONDS:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Let go of what nobody used for long: bursts, and nodes that left the fleet."""
        self._swept_at = now
        for key, idle in list(self._idle.items()):
            for connection in idle:
                if now > connection.idle_since + IDLE_SECONDS:
                    connection.abort()
            self._idle[key] = [connection for connection in idle if connection.usable]
            if not self._idle[key]:
                del self._idle[key]

    def _completed(self, connection: Connection) -> None:
        """The end of a body that nobody waited for any more has come."""
        hang_up = self._ending.pop(connection, None)
        if hang_up is not None:
            hang_up.cancel()
            self._keep(connection)

    def _lost(self, connection: Connection) -> None:
        key = self._all.pop(connection, None)
        hang_up = self._ending.pop(connection, None)
        if hang_up is not None:
            hang_up.cancel()
        idle = self._idle.get(key) if key is not None else None
        if idle and connection in idle:
            idle.remove(connection)
        if self._all_lost is not None and not self._all:
            self._all_lost.set()


async def _ask(connection: Connection, encoded: bytes, patience: Patience, end: float) -> Connection:
    connection.expect("first_token", patience.first_token, end)
    connection.begin(encoded)
    try:
        await connection.wait_for_head()
    except BaseException:
        connection.abort()
        raise
    return connection


async def _give_up(attempts: Collection[asyncio.Task[Connection]]) -> None:
    """Nobody wants these connections any more, neither those still being made nor those made at the same moment."""
    for attempt in attempts:
        attempt.cancel()
    for made in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(made, Connection):
            made.abort()


def _set_socket_options(kernel_socket: socket.socket | None) -> None:
    """Let the kernel find out about a peer that vanished. Options that this system lacks are left out."""
    if kernel_socket is None:
        return
    kernel_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KERNEL_WATCH:
        option = getattr(socket, name, None)
        if option is not None:
            kernel_socket.setsockopt(socket.IPPROTO_TCP, option, value)
