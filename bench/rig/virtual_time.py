"""An event loop whose clock jumps and whose loopback connections are memory: programs as they are, no waiting.

When nothing is ready and the next timer is still to come, the clock moves to that timer at once. A phone that reads 30
tokens/s, a user who thinks for half a minute and a limit of five seconds behave as they would, to the microsecond,
however busy the machine is, and the same seed gives the same run. Servers and clients must live on the same loop;
connections to a port that nobody serves here are refused. Flow control is left out: nobody here sends faster than the
other side reads.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
_THREAD_SECONDS = 0.002  # real time given to threads when there is no timer at all
_LOOK_EVERY = 64  # jumps between two looks at what threads have to say
_FIRST_PORT = 50_000  # of clients, for the looks of it


class _JumpingSelector(selectors.BaseSelector):
    """A selector that advances the loop's clock instead of waiting."""

    def __init__(self) -> None:
        self.now = 0.0
        self._jumps = 0
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return self._real.select(_THREAD_SECONDS)
        if timeout <= 0.0:
            return []
        self._jumps += 1
        ready = self._real.select(0) if self._jumps % _LOOK_EVERY == 0 else []
        if not ready:
            self.now += timeout
        return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class MemoryTransport(asyncio.Transport):
    """One end of a connection; what is written reaches the other end's protocol in the next turn of the loop."""

    def __init__(self, loop: VirtualLoop, protocol: asyncio.Protocol, names: tuple[Any, Any]) -> None:
        super().__init__({"sockname": names[0], "peername": names[1]})
        self._loop = loop
        self._protocol = protocol
        self._open = True
        self.peer: MemoryTransport | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._open and self.peer is not None and data:
            self._loop.call_soon(self.peer._receive, bytes(data))

    def close(self) -> None:
        """What was written before still arrives."""
        if not self._open:
            return
        self._open = False
        self._loop.call_soon(self._protocol.connection_lost, None)
        if self.peer is not None:
            self._loop.call_soon(self.peer._hear_end)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return not self._open

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def _receive(self, data: bytes) -> None:
        if self._open:
            self._protocol.data_received(data)

    def _hear_end(self) -> None:
        if self._open and not self._protocol.eof_received():
            self.close()


class MemoryServer:
    """Listens on a port of the loop; the socket it was given keeps the port's number taken."""

    def __init__(self, loop: VirtualLoop, factory: Callable[[], asyncio.Protocol], bound: socket.socket) -> None:
        self._loop = loop
        self._bound = bound
        self.factory = factory
        self.port: int = bound.getsockname()[1]
        loop.servers[self.port] = self

    def close(self) -> None:
        self._loop.servers.pop(self.port, None)
        self._bound.close()

    def is_serving(self) -> bool:
        return self.port in self._loop.servers

    async def wait_closed(self) -> None: ...


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop with a clock that starts at 0 and never waits."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        self.servers: dict[int, MemoryServer] = {}
        self._clients = 0
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    async def create_server(self, protocol_factory: Any, *_: Any, sock: Any = None, **__: Any) -> Any:
        return MemoryServer(self, protocol_factory, sock)

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        await asyncio.sleep(0)
        server = self.servers.get(int(port))
        if server is None:
            raise ConnectionRefusedError(111, f"nobody listens on {host}:{port}")
        self._clients += 1
        names = (str(host), int(port)), (str(host), _FIRST_PORT + self._clients % 10_000)
        near = MemoryTransport(self, protocol_factory(), (names[1], names[0]))
        far = MemoryTransport(self, server.factory(), names)
        near.peer, far.peer = far, near
        for end in (far, near):
            end.get_protocol().connection_made(end)
        return near, near.get_protocol()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run it to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
