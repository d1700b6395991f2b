"""The adb server's host protocol over asyncio: one short connection for each question, one long one for the list.

A question is four hexadecimal figures of length and a text; the answer is OKAY, or FAIL and a sentence. Every question
has an end in time, since a phone that is listed and dead answers nothing. Must not know phones, forwards' owners or the
fleet. Protocol: adb's OVERVIEW.TXT and SERVICES.TXT; raises only `AdbError`s.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.adb.plan import Forward
from server.adb.states import Transport, parse_transports, shown
from server.errors import AdbError, AdbRefused, AdbServerGone

DEFAULT_SERVER = ("127.0.0.1", 5037)
ANSWER_SECONDS = 5.0
MOST_BYTES = 1 << 18  # of what a command on a phone prints: a dump has some thousand
MOST_HTTP = 4096
_LENGTH = re.compile(rb"[0-9A-Fa-f]{4}")
_VERSION = re.compile(rb'"version"\s*:\s*"([\w.+-]{1,60})"')


class ServerLink:
    """Questions to the server at `host`:`port`. Keeps nothing open but the list that `transports` follows."""

    def __init__(self, host: str = DEFAULT_SERVER[0], port: int = DEFAULT_SERVER[1], patience: float = ANSWER_SECONDS):
        self.host, self.port = host, port
        self._patience = patience

    async def version(self) -> int:
        """The server's protocol number, 41 for all of the last years."""
        async with self._asked("host:version") as line:
            told = await line.text()
        try:
            return int(told, 16)
        except ValueError:
            raise AdbServerGone(f"whoever listens there is no adb server: its version is {told!r}") from None

    async def transports(self) -> tuple[Transport, ...]:
        async with self._asked("host:devices-l") as line:
            return parse_transports(await line.text())

    async def follow(self) -> AsyncIterator[tuple[Transport, ...]]:
        """The list now and after every change, until the server goes, which is `AdbServerGone`. AdbRefused: an old one
        does not tell changes."""
        async with self._line() as line:
            try:
                async with self.limit():
                    await line.ask("host:track-devices-l")
            except TimeoutError as problem:
                raise AdbServerGone("the adb server does not tell its phones") from problem
            while True:
                yield parse_transports(await line.text())

    async def forwards(self) -> tuple[Forward, ...]:
        """All that lead from a TCP port to one; lines that are no such thing are passed over."""
        async with self._asked("host:list-forward") as line:
            return parse_forwards(await line.text())

    async def create(self, forward: Forward, number: int = 0) -> None:
        """`number`: of the connection, where the serial names several. Raises AdbRefused where the local port has an
        owner already."""
        ports = f"tcp:{forward.local_port};tcp:{forward.remote_port}"
        async with self._asked(f"{_whose(forward, number)}:forward:norebind:{ports}") as line:
            await line.okay()

    async def remove(self, forward: Forward, number: int = 0) -> None:
        async with self._asked(f"{_whose(forward, number)}:killforward:tcp:{forward.local_port}") as line:
            await line.okay()

    async def shell(self, transport: Transport, command: str) -> str:
        """What the command prints on the phone."""
        async with self._asked(_way_to(transport)) as line:
            await line.ask(f"shell:{command}")
            return (await line.rest(MOST_BYTES)).decode(errors="replace").replace("\r\n", "\n")

    async def serves(self, transport: Transport, port: int) -> str | None:
        """The version of Ollama that speaks HTTP at this port of the phone, "" where it tells none, None where nobody
        speaks."""
        said = b""
        try:
            async with self._asked(_way_to(transport)) as line:
                await line.ask(f"tcp:{port}")
                line.send(b"GET /api/version HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                while len(said) < MOST_HTTP and not _VERSION.search(said) and (piece := await line.some()):
                    said += piece
        except AdbServerGone:
            raise
        except AdbError:  # some never close the connection, and have said what they have to say
            pass
        version = _VERSION.search(said)
        return (version[1].decode() if version else "") if said.startswith(b"HTTP/1.") else None

    @asynccontextmanager
    async def service(self, transport: Transport, name: str) -> AsyncIterator[Line]:
        """A service of the phone for as long as it is used; each answer is to be waited for within `limit`."""
        try:
            async with self._line() as line:
                async with self.limit():
                    await line.ask(_way_to(transport))
                    await line.ask(name)
                yield line
        except TimeoutError:
            raise AdbError(
                f"no answer within {self._patience:g} s from the phone's {name.rstrip(':')} service"
            ) from None

    async def connect(self, place: str) -> str:
        """`adb connect`: the server's words, which tell success and failure alike."""
        async with self._asked(f"host:connect:{place}") as line:
            return await line.text()

    async def pair(self, place: str, code: str) -> str:
        """With the wireless debugging of a phone: the server's words, also where it failed."""
        try:
            async with self._asked(f"host:pair:{code}:{place}", "host:pair") as line:
                return await line.verdict()
        except AdbRefused as problem:
            return problem.message

    async def kill(self) -> None:
        async with self._asked("host:kill"):
            pass

    def limit(self) -> asyncio.Timeout:
        """As long as one answer may take."""
        return asyncio.timeout(self._patience)

    @asynccontextmanager
    async def _asked(self, request: str, called: str = "") -> AsyncIterator[Line]:
        """A line whose first question was taken; the rest must be over within the patience, too. `called`: instead of
        the question where it holds a secret."""
        try:
            async with self.limit(), self._line() as line:
                await line.ask(request)
                yield line
        except TimeoutError:
            question = (called or request).partition(":")[2]
            raise AdbError(f"no answer within {self._patience:g} s to {question!r}") from None

    @asynccontextmanager
    async def _line(self) -> AsyncIterator[Line]:
        try:
            async with self.limit():
                reader, writer = await asyncio.open_connection(self.host, self.port)
        except (OSError, TimeoutError) as problem:
            raise AdbServerGone(f"no adb server answers at {self.host}:{self.port}") from problem
        try:
            yield Line(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError) as problem:
            raise AdbServerGone("the adb server went away") from problem
        finally:
            writer.transport.abort()  # nothing that was sent matters any more, and nobody waits for its end


class Line:
    """One connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, request: str) -> None:
        content = request.encode()
        self._writer.write(b"%04x" % len(content) + content)
        await self.okay()

    async def okay(self) -> None:
        word = await self._reader.readexactly(4)
        if word == b"FAIL":
            raise AdbRefused(shown(await self.text()))
        if word != b"OKAY":
            raise AdbServerGone(f"whoever listens there is no adb server: it said {word!r}")

    async def verdict(self) -> str:
        """A text, with or without a word before it that says how it went. Raises AdbRefused."""
        head = await self._reader.readexactly(4)
        if head == b"FAIL":
            raise AdbRefused(shown(await self.text()))
        return await (self.text() if head == b"OKAY" else self._text(head))

    async def text(self) -> str:
        return await self._text(await self._reader.readexactly(4))

    async def _text(self, size: bytes) -> str:
        if not _LENGTH.fullmatch(size):  # int() would take a sign and space
            raise AdbServerGone(f"whoever listens there is no adb server: it said {size!r}")
        return (await self._reader.readexactly(int(size, 16))).decode(errors="replace")

    def send(self, content: bytes) -> None:
        self._writer.write(content)

    async def drain(self) -> None:
        await self._writer.drain()

    async def exactly(self, size: int) -> bytes:
        return await self._reader.readexactly(size)

    async def some(self) -> bytes:
        """What comes next, nothing at the end."""
        return await self._reader.read(MOST_HTTP)

    async def rest(self, most: int) -> bytes:
        """All that comes until the other side ends, or `most` bytes of it."""
        got = bytearray()
        while len(got) < most:
            piece = await self._reader.read(most - len(got))
            if not piece:
                break
            got += piece
        return bytes(got)


def parse_forwards(text: str) -> tuple[Forward, ...]:
    """`serial tcp:local tcp:remote` lines. A line without the serial was seen after phones came and went."""
    found = []
    for line in text.splitlines():
        match line.rsplit(maxsplit=2):  # a serial may have a space
            case [serial, local, remote]:
                ports = [_port(local), _port(remote)]
                if ports[0] and ports[1]:
                    found.append(Forward(serial, ports[0], ports[1]))
    return tuple(found)


def _port(end: str) -> int | None:
    kind, _, number = end.partition(":")
    return int(number) if kind == "tcp" and number.isdecimal() and len(number) <= 5 else None


def _whose(forward: Forward, number: int) -> str:
    return f"host-transport-id:{number}" if number else f"host-serial:{forward.serial}"


def _way_to(transport: Transport) -> str:
    if transport.number:
        return f"host:transport-id:{transport.number}"
    return f"host:transport:{transport.serial}"
