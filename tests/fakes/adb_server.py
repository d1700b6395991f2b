"""A real adb server, the one that the adbutils wheel brings, with a port, a home and a list of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from server.adb.binary import adb_binary
from server.adb.server_link import ServerLink
from server.errors import AdbError
from tests.fakes.ports import free_port

START_SECONDS = 60.0
ANSWER_SECONDS = 60.0  # of what a test itself asks, on a busy machine


class RealAdbServer:
    """Killed and started anew on the same port as a test likes. `link` asks it."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self.link = ServerLink(port=self.port, patience=ANSWER_SECONDS)
        self._home = home
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        if self._process is not None:  # it was told to end by others, and may not have let go of its port
            await self._process.wait()
        await self._launch()
        async with asyncio.timeout(START_SECONDS):
            while not await self._answers():
                if self._process is None or self._process.returncode is not None:
                    await self._launch()
                await asyncio.sleep(0.02)

    async def _launch(self) -> None:
        program = adb_binary()
        assert program is not None
        apart = {
            "ADB_USB": "0",
            "ADB_EMU": "0",
            "ADB_MDNS": "0",
            "ADB_MDNS_OPENSCREEN": "0",
            "ADB_MDNS_AUTO_CONNECT": "0",
        }
        environ = {"PATH": os.environ["PATH"], "HOME": str(self._home), "TMPDIR": str(self._home), **apart}
        log = (self._home / "adb.log").open("ab")
        with log:
            self._process = await asyncio.create_subprocess_exec(
                str(program), "-P", str(self.port), "server", "nodaemon",
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=environ,
            )  # fmt: skip

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._process = None

    async def _answers(self) -> bool:
        try:
            return await self.link.version() > 0
        except AdbError:
            return False


@asynccontextmanager
async def real_adb_server(home: Path) -> AsyncIterator[RealAdbServer]:
    server = RealAdbServer(home)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()
