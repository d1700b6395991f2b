"""A phone's adb daemon: speaks adb's transport protocol to a real adb server, and fails when told to.

    async with FakeAdbd("SERIAL1", ports={11434: phone.port}) as adbd:   # a device port leads to a real one here
        await link.connect(adbd.address)
        adbd.log; adbd.files; adbd.properties; adbd.dumps; adbd.settings  # what it was told, has and answers
        adbd.silence(); adbd.heal()      # the link is dead and nobody says so
        await adbd.die(); await adbd.start()                              # the daemon ends, comes back on its port

`FakeAdbd(..., trust=False)` never lets the computer in (`unauthorized`), `FakeAdbd(..., mute=True)` takes the
connection and says nothing (`offline` or `connecting`). Services: `shell:`, `shell,v2:`, `exec:`, `tcp:`, `sync:`.
Protocol: adb's OVERVIEW.TXT, SYNC.TXT and protocol.txt.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Mapping

from tests.fakes.adbd_services import Services, Stream

CNXN, AUTH, OPEN, OKAY, WRTE, CLSE = (int.from_bytes(name, "little") for name in (
    b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"WRTE", b"CLSE"))  # fmt: skip
VERSION = 0x01000001
MAX_PAYLOAD = 256 * 1024
HEADER = struct.Struct("<6I")
TOKEN = 1
FEATURES = "shell_v2,cmd"


class FakeAdbd:
    def __init__(
        self,
        serialno: str,
        *,
        model: str = "Pixel 7",
        ports: Mapping[int, int] | None = None,
        trust: bool = True,
        mute: bool = False,
        host: str = "127.0.0.1",
    ) -> None:
        self.services = Services(serialno, model, dict(ports or {}))
        self.serialno, self.model = serialno, model
        self.trust, self.mute = trust, mute
        self.host, self.port = host, 0
        self.connections = 0  # made so far
        self._server: asyncio.Server | None = None
        self._placeholder: socket.socket | None = None  # the port stays ours while the daemon is dead
        self._sessions: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()  # not to be cancelled a second time
        self._heard = asyncio.Event()
        self._heard.set()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def log(self) -> list[str]:
        """Every command that a shell was asked to run."""
        return self.services.log

    async def __aenter__(self) -> FakeAdbd:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()
        if self._placeholder is not None:
            self._placeholder.close()
            self._placeholder = None

    async def start(self) -> None:
        bound, self._placeholder = self._placeholder or self._bound_socket(), None
        self.port = bound.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, sock=bound)

    async def die(self) -> None:
        """The daemon ends: every connection is closed and nobody listens."""
        if self._server is not None:
            self._server.close()
            self._server = None
            while self._placeholder is None:
                await asyncio.sleep(0)  # the loop closes the listening socket in its own time
                with contextlib.suppress(OSError):
                    self._placeholder = self._bound_socket()
        await self.unplug()

    def _bound_socket(self) -> socket.socket:
        """Who calls it while nobody listens is refused."""
        made = socket.socket()
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((self.host, self.port))
        except OSError:
            made.close()
            raise
        made.setblocking(False)
        return made

    async def unplug(self) -> None:
        """Every connection is cut; a new one is taken."""
        for session in self._sessions:
            session.cancel()
        await asyncio.gather(*self._sessions, *self._ending, return_exceptions=True)

    def silence(self) -> None:
        """Nothing is read or said any more, and nothing closed."""
        self._heard.clear()

    def heal(self) -> None:
        self._heard.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._server is None:  # it was taken just before the end
            writer.transport.abort()
            return
        self._sessions.add(task)
        task.add_done_callback(self._ending.discard)
        self.connections += 1
        session = _Session(self, writer, self._heard)
        try:
            while True:
                command, first, second, size, _, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
                payload = await reader.readexactly(size)
                await self._heard.wait()
                session.take(command, first, second, payload)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the server left, or `unplug` was called: either way nothing is owed to anybody
        finally:
            self._sessions.discard(task)
            self._ending.add(task)
            writer.transport.abort()
            await session.end()


class _Session:
    """One connection of a server: its handshake and its streams."""

    def __init__(self, adbd: FakeAdbd, writer: asyncio.StreamWriter, heard: asyncio.Event) -> None:
        self._adbd, self._writer, self._heard = adbd, writer, heard
        self._streams: dict[int, Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._last = 0

    def take(self, command: int, first: int, second: int, payload: bytes) -> None:
        if command == CNXN and not self._adbd.mute:
            self._greet()
        elif command == AUTH:
            if first != 3:  # a signature that we know nothing of: ask for another; at last it sends its public key
                self._send(AUTH, TOKEN, 0, bytes(20))
        elif command == OPEN:
            self._open(first, payload.rstrip(b"\0").decode())
        elif command == WRTE and second in self._streams:
            self._streams[second].feed(payload)
            self._send(OKAY, second, first)
        elif command == OKAY and second in self._streams:
            self._streams[second].ready.set()
        elif command == CLSE and second in self._streams:
            self._streams.pop(second).close()

    async def end(self) -> None:
        for stream in self._streams.values():
            stream.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _greet(self) -> None:
        if not self._adbd.trust:
            self._send(AUTH, TOKEN, 0, bytes(20))
            return
        model = self._adbd.model.replace(" ", "_")
        banner = f"device::ro.product.name=fake;ro.product.model={model};ro.product.device=fake;features={FEATURES}"
        self._send(CNXN, VERSION, MAX_PAYLOAD, banner.encode())

    def _open(self, theirs: int, service: str) -> None:
        self._last += 1
        ours = self._last
        stream = self._streams[ours] = Stream(lambda piece: self._write(ours, theirs, piece), MAX_PAYLOAD)
        task = asyncio.create_task(self._run(stream, ours, theirs, service))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, stream: Stream, ours: int, theirs: int, service: str) -> None:
        accepted = False

        def accept() -> None:
            nonlocal accepted
            accepted = True
            self._send(OKAY, ours, theirs)

        try:
            await self._adbd.services.run(service, stream, accept)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            stream.close()
            self._streams.pop(ours, None)
        await self._heard.wait()  # a link that is dead for a moment loses nothing
        self._send(CLSE, ours if accepted else 0, theirs)  # a stream that was refused has no number here

    async def _write(self, ours: int, theirs: int, piece: bytes) -> None:
        await self._heard.wait()
        self._send(WRTE, ours, theirs, piece)

    def _send(self, command: int, first: int, second: int, payload: bytes = b"") -> None:
        if not self._writer.transport.is_closing():
            total = sum(payload) & 0xFFFFFFFF
            self._writer.write(HEADER.pack(command, first, second, len(payload), total, command ^ 0xFFFFFFFF) + payload)
