"""Debian's own adb daemon as a phone: the real one, in a network and process namespace, with fake Android commands.

    async with RealAdbd(folder, "REAL1", ollama_port) as adbd:   # the phone's 11434 leads to this port here
        await link.connect(adbd.address)
        adbd.pause(); adbd.go_on()                # a dead link that nobody tells of
        await adbd.die(); await adbd.start()      # pulled out, plugged in

It always listens at 5555, so that each needs a network of its own. A listening socket belongs to the network in which
it was made, and a Unix socket to none: so what is run inside the namespaces (this file as a program) takes connections
from here and leads others out, without root. `why_not` says what is missing; `.ci/run` unpacks the package to `.cache`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNPACKED = ROOT / ".cache" / "adbd"  # where .ci/run puts the package's files
PROGRAM = Path("usr/lib/android-sdk/platform-tools/adbd")
ADBD_PORT, OLLAMA_PORT = 5555, 11434
START_SECONDS = 20.0
NAMESPACES = ["--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"]


def adbd_program() -> Path | None:
    """The unpacked one or the installed one; None where there is neither."""
    places = (UNPACKED / PROGRAM, Path("/") / PROGRAM)
    return next((place for place in places if os.access(place, os.X_OK)), None)


@cache
def why_not() -> str:
    """Why Debian's daemon cannot be run here; empty when it can."""
    program = adbd_program()
    if program is None:
        return "Debian's adbd is not here (package adbd; .ci/run unpacks it)"
    try:
        tried = subprocess.run(
            ["unshare", *NAMESPACES, str(program), "--version"],
            env=_environ(program), capture_output=True, text=True, timeout=START_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"a program cannot be given namespaces of its own here: {problem}"
    if "Android Debug Bridge" in tried.stdout + tried.stderr:
        return ""
    return f"Debian's adbd does not run here: {(tried.stderr or tried.stdout).strip()[-200:] or tried.returncode}"


class RealAdbd:
    """`properties` and `dumps` are what its `getprop` and `dumpsys` print, and may be changed at any time."""

    def __init__(self, folder: Path, serialno: str, ollama_port: int) -> None:
        self.folder, self.serialno, self._ollama_port = folder, serialno, ollama_port
        self.port = 0
        self._process: asyncio.subprocess.Process | None = None
        self._way_out: asyncio.Server | None = None
        for name in ("bin", "properties", "dumps"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._command("getprop", "properties")
        self._command("dumpsys", "dumps")
        self.tell({"ro.serialno": serialno, "ro.product.model": "Pixel 6", "ro.build.version.release": "13"})

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def tell(self, properties: Mapping[str, str]) -> None:
        for name, value in properties.items():
            (self.folder / "properties" / name).write_text(f"{value}\n")

    def dump(self, service: str, text: str) -> None:
        (self.folder / "dumps" / service).write_text(text)

    async def __aenter__(self) -> RealAdbd:
        way = self._way(self._ollama_port)
        self._way_out = await asyncio.start_unix_server(way, self._out)
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()
        if self._way_out is not None:
            self._way_out.close()

    async def start(self) -> None:
        """At the port that it had before."""
        program = adbd_program()
        assert program is not None and self._process is None
        with socket.socket() as listener, (self.folder / "adbd.log").open("ab") as log:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            listener.listen()
            self.port = listener.getsockname()[1]
            path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
            self._process = await asyncio.create_subprocess_exec(
                "unshare", *NAMESPACES,
                sys.executable, "-m", "tests.fakes.adbd_of_debian", str(program), str(listener.fileno()), self._out,
                pass_fds=[listener.fileno()], stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=log, cwd=ROOT, env={**_environ(program), "PATH": path},
            )  # fmt: skip
        assert self._process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            said = await self._process.stdout.readline()
        assert said == b"ready\n", (self.folder / "adbd.log").read_text()

    async def die(self) -> None:
        """With everything in its namespaces, at once."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    @property
    def _out(self) -> str:
        return os.path.relpath(self.folder / "out", ROOT)  # a Unix socket's name must be short

    def _signal(self, number: int) -> None:
        """To the first process in there, which carries all bytes."""
        assert self._process is not None
        inside = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        os.kill(int(inside[0]), number)

    def _command(self, name: str, folder: str) -> None:
        command = self.folder / "bin" / name
        command.write_text(
            f'#!/bin/sh\ncat "{self.folder / folder}/$1" 2>/dev/null || echo\n'
            if name == "getprop"
            else f'#!/bin/sh\ncat "{self.folder / folder}/$1" 2>/dev/null || echo "Can\'t find service: $1"\n'
        )
        command.chmod(0o755)

    def _way(self, port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await join(reader, writer, lambda: asyncio.open_connection("127.0.0.1", port))

        return lead


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, other: Callable[[], Awaitable[Streams]]
) -> None:
    """Carry bytes both ways until one side ends."""
    try:
        there, back = await other()
    except OSError:
        writer.transport.abort()
        return
    pours = [asyncio.create_task(_pour(reader, back)), asyncio.create_task(_pour(there, writer))]
    try:
        await asyncio.wait(pours, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for end in (writer, back):  # before anything is waited for: the wait may be cancelled, too
            end.close()
        for pour in pours:
            pour.cancel()
        await asyncio.gather(*pours, return_exceptions=True)


async def _pour(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await source.read(65536):
            sink.write(piece)
            await sink.drain()


def _environ(program: Path) -> dict[str, str]:
    triplet = f"{os.uname().machine}-linux-gnu"
    libraries = [
        program.parents[2] / triplet,
        program.parents[2] / triplet / "android",
        program.parents[4] / "lib" / triplet,
    ]
    found = os.pathsep.join(map(str, libraries))
    return {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": found, "HOME": "/"}


async def _inside(program: str, listener: int, out: str) -> None:
    """Within the namespaces: the daemon, the way in to it and the way out from its 11434."""
    ip = shutil.which("ip") or "/usr/sbin/ip"
    subprocess.run([ip, "link", "set", "lo", "up"], check=True)  # noqa: ASYNC221  # nothing else runs yet
    daemon = await asyncio.create_subprocess_exec(program, stdout=sys.stderr)
    async with asyncio.timeout(START_SECONDS):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", ADBD_PORT)
                writer.transport.abort()
                break
            await asyncio.sleep(0.02)

    async def way_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await join(reader, writer, lambda: asyncio.open_connection("127.0.0.1", ADBD_PORT))

    async def way_out(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await join(reader, writer, lambda: asyncio.open_unix_connection(out))

    await asyncio.start_server(way_in, sock=socket.socket(fileno=listener))
    await asyncio.start_server(way_out, "127.0.0.1", OLLAMA_PORT)
    print("ready", flush=True)
    await daemon.wait()


if __name__ == "__main__":
    asyncio.run(_inside(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
