"""The whole gateway over fake phones, served by a real uvicorn on loopback; in this process, or as one of its own."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from server.main import Gateway, running
from server.nodes import NodeStatus
from server.settings import Settings
from tests.fakes.phone import FakePhone
from tests.server.api.gateway import served, until

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Live:
    """A running gateway, where it listens, and what it has logged."""

    gateway: Gateway
    address: str
    log_text: io.StringIO

    @property
    def log(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.log_text.getvalue().splitlines()]


def write_phones(path: Path, phones: Sequence[FakePhone]) -> Path:
    entries = [
        {"host": phone.host, "port": phone.port, "name": f"phone-{index}", "kind": getattr(phone, "kind", "ollama")}
        for index, phone in enumerate(phones)
    ]
    path.write_text(json.dumps(entries))
    return path


@asynccontextmanager
async def live_gateway(folder: Path, *phones: FakePhone, **settings: Any) -> AsyncIterator[Live]:
    """The phones are listening already; the gateway is ready when all of them are."""
    path = write_phones(folder / "phones.json", phones)
    log_text = io.StringIO()
    values = Settings(**{"phones_file": path, "embedded_node": "off", "discovery": "off", "adb": "off", **settings})
    async with running(values, {}, log_text) as gateway:
        nodes = gateway.services.registry
        await until(lambda: all(node.status is NodeStatus.READY for node in nodes.fleet.nodes.values()))
        async with served(gateway.app) as address:
            yield Live(gateway, address, log_text)


class Program:
    """`uvicorn server:app` as a child process. Its output is read to the end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.port = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def read_until(self, words: str) -> str:
        """The next line that holds the words; what came before it is kept too."""
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            self.lines.append(line.rstrip())
            if words in line:
                return line
        raise AssertionError("\n".join([f"no {words!r} in the output:", *self.lines]))

    async def end(self, timeout_seconds: float = 120.0) -> int:
        """Read what is left and wait for the end."""
        assert self.process.stderr is not None
        async with asyncio.timeout(timeout_seconds):
            rest = await self.process.stderr.read()
            self.lines += rest.decode().splitlines()
            return await self.process.wait()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@asynccontextmanager
async def program(
    folder: Path, *phones: FakePhone, arguments: Sequence[str] = (), **environment: str
) -> AsyncIterator[Program]:
    """Started in `folder`, on a free port, without an embedded node; killed when the test leaves it running."""
    write_phones(folder / "phones.json", phones)
    variables = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")},
        "PYTHONPATH": str(ROOT),
        "POTLUCK_EMBEDDED_NODE": "off",
        **environment,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "server:app", "--port", "0", *arguments),
        cwd=folder,
        env=variables,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def started(made: Program) -> None:
    """Wait until the program listens, and learn where."""
    line = await made.read_until("Uvicorn running on")
    made.port = int(line.partition("http://")[2].split()[0].rpartition(":")[2])
