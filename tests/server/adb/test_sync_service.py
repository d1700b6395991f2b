"""Files onto a phone: through a real adb server to a fake daemon, and past a server that says what none should."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.adb.server_link import ServerLink
from server.adb.states import Transport
from server.adb.sync_service import PIECE, push, size_of
from server.errors import AdbError, AdbRefused
from tests.fakes.adb_server import RealAdbServer
from tests.fakes.adbd import FakeAdbd

HERE = Transport("S1", "device", number=7)
THERE = "/sdcard/a,b c.gguf"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_bytes(bytes(range(256)) * 1000)
    return made


async def test_a_file_arrives_whole_and_its_size_is_told(server: RealAdbServer, tmp_path: Path, file: Path) -> None:
    async with FakeAdbd("S1") as adbd:
        await server.link.connect(adbd.address)
        phone, counted = Transport(adbd.address, "device"), list[int]()
        assert await size_of(server.link, phone, THERE) is None
        await push(server.link, phone, file, THERE, counted.append)
        assert adbd.services.files[THERE] == bytes(range(256)) * 1000
        assert await size_of(server.link, phone, THERE) == sum(counted) == 256_000 and max(counted) == PIECE
        assert await size_of(server.link, phone, "/sdcard") is None  # a folder
        (tmp_path / "empty").touch()
        await push(server.link, phone, tmp_path / "empty", "/sdcard/empty", counted.append)
        assert await size_of(server.link, phone, "/sdcard/empty") == 0


async def test_a_phone_that_is_not_there_is_the_servers_own_sentence(server: RealAdbServer, file: Path) -> None:
    with pytest.raises(AdbRefused, match="device 'S9' not found"):
        await push(server.link, Transport("S9", "device"), file, THERE, lambda _: None)


@asynccontextmanager
async def saying(
    *pieces: bytes, read: int = 0, hold: bool = False, patience: float = 60.0
) -> AsyncIterator[ServerLink]:
    """A server that grants the sync service, reads so many bytes of it, says these and ends or holds on."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for _ in range(2):
                await reader.readexactly(int(await reader.readexactly(4), 16))
                writer.write(b"OKAY")
            await reader.readexactly(read)
            writer.writelines(pieces)
            await writer.drain()
            if hold:
                await ended.wait()
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield ServerLink(port=server.sockets[0].getsockname()[1], patience=patience)
        ended.set()
        await asyncio.sleep(0.01)


def failed(words: bytes) -> bytes:
    return b"FAIL" + struct.pack("<I", len(words)) + words


async def test_a_refusal_in_mid_file_ends_it_with_the_phones_words(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(32 << 20))
    counted: list[int] = []
    async with saying(failed(b"No space left on device"), read=100_000, hold=True) as link:
        with pytest.raises(AdbRefused, match="No space left on device"):
            await push(link, HERE, large, THERE, counted.append)
    assert sum(counted) < 32 << 20


@pytest.mark.parametrize(
    ("said", "words"),
    [(b"", "broke off"), (b"OK", "broke off"), (b"NOPE\0\0\0\0", "NOPE"), (failed(b"xyz")[:-2], "broke off")],
)
async def test_what_no_phone_says_is_an_error(said: bytes, words: str, file: Path) -> None:
    async with saying(said, read=256_000) as link:
        with pytest.raises(AdbError, match=words):
            await push(link, HERE, file, THERE, lambda _: None)


async def test_a_phone_that_takes_nothing_more_is_found(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(32 << 20))
    async with saying(hold=True, patience=0.3) as link:
        with pytest.raises(AdbError, match="no answer within"):
            await push(link, HERE, large, THERE, lambda _: None)
        with pytest.raises(AdbError, match="no answer within"):
            await size_of(link, HERE, THERE)


async def test_a_wrong_answer_to_a_size_is_an_error() -> None:
    async with saying(b"HTTP" + bytes(12), read=8) as link:
        with pytest.raises(AdbError, match="sync service said"):
            await size_of(link, HERE, THERE)
