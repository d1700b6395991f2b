"""The pinned adb program, and a server that it starts."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import adbutils
import pytest

from server.adb.binary import adb_binary, start_server
from server.adb.server_link import ServerLink
from server.errors import AdbError


def test_the_program_is_the_one_that_adbutils_brings() -> None:
    program = adb_binary()
    assert program is not None
    if (bundled := Path(adbutils.__file__).parent / "binaries" / "adb").exists():
        assert program == bundled
    said = subprocess.run([program, "version"], capture_output=True, text=True, check=True).stdout
    assert "Android Debug Bridge version 1.0.41" in said


async def test_a_server_is_started_and_outlives_its_starter(
    unused_tcp_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "ADB_USB": "0", "ADB_MDNS": "0"}.items():
        monkeypatch.setenv(name, value)
    await start_server(unused_tcp_port)
    link = ServerLink(port=unused_tcp_port)
    assert await link.version() == 41
    await link.kill()


async def test_a_port_that_is_taken_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "ADB_USB": "0", "ADB_MDNS": "0"}.items():
        monkeypatch.setenv(name, value)
    async with await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0) as other:
        with pytest.raises(AdbError, match="could not start a server"):
            await start_server(other.sockets[0].getsockname()[1])


async def test_a_program_for_another_processor_is_a_sentence(tmp_path: Path, unused_tcp_port: int) -> None:
    program = tmp_path / "adb"
    program.write_bytes(b"\x7fELF no program at all")
    program.chmod(0o755)
    with pytest.raises(AdbError, match=r"adb does not run: Exec format error"):
        await start_server(unused_tcp_port, program)
    with pytest.raises(AdbError, match=r"gone does not run: No such file"):
        await start_server(unused_tcp_port, tmp_path / "gone")
