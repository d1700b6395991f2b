"""The one adb program that is used, and how a server is started with it.

Two programs of different release share a server silently though they behave differently, so that one is pinned: the
one that adbutils brings. Where its wheel brings none (Linux on ARM), the system's `adb` serves.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
from pathlib import Path

from server.errors import AdbError

START_SECONDS = 15.0  # the first start makes a key and looks at every USB device
NO_BINARY = (
    "there is no adb program here: install adb (Debian: apt install adb) or use a machine that adbutils has one for"
)


def adb_binary() -> Path | None:
    """The program; None where there is none."""
    package = importlib.util.find_spec("adbutils")  # not imported: that takes Pillow and requests in
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        bundled = Path(folder) / "binaries" / ("adb.exe" if os.name == "nt" else "adb")
        if os.access(bundled, os.X_OK):
            return bundled
    found = shutil.which("adb")
    return Path(found) if found else None


async def start_server(port: int, program: Path | None = None) -> None:
    """Start a server that outlives us, as every adb server does. Raises AdbError with what the program said."""
    program = program or adb_binary()
    if program is None:
        raise AdbError(NO_BINARY)
    # The server keeps what it inherits open for ever, so it gets nothing of ours to hold.
    null = asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            str(program), "-P", str(port), "start-server", stdin=null, stdout=null, stderr=null
        )
    except OSError as problem:  # made for another processor, or gone since it was found
        raise AdbError(f"{program} does not run: {problem.strerror or problem}") from problem
    try:
        async with asyncio.timeout(START_SECONDS):
            status = await process.wait()
    except TimeoutError:
        raise AdbError(f"{program} did not start a server within {START_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status != 0:
        raise AdbError(f"{program} could not start a server at port {port} (status {status})")
