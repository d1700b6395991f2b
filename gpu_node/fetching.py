"""Runs `python -m gpu_node.model_store fetch` as a child: a conversion takes the memory and the CPU of its own process,
the node answers meanwhile, and stopping the node stops it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from gpu_node.errors import ModelError

# Its last line is the sentence that says why; lines before it are progress and go on to our own stderr.
MAX_LINE_BYTES = 1 << 16
# It ends pip and removes what is half done; longer than this it does not get.
STOP_SECONDS = 3.0
# The child must find this package from whatever folder the node was started in.
PACKAGE_ROOT = str(Path(__file__).resolve().parent.parent)


async def fetch_in_child(model: str, cache: Path) -> None:
    """Raises `ModelError` with the child's sentence. Cancelling ends the child."""
    path = os.pathsep.join(filter(None, [PACKAGE_ROOT, os.environ.get("PYTHONPATH")]))
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gpu_node.model_store", "fetch", model, "--cache", str(cache)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        limit=MAX_LINE_BYTES,
    )
    try:
        last = await _pass_on(child)
        code = await child.wait()
    finally:
        if child.returncode is None:
            await _end(child)
    if code != 0:
        raise ModelError(last or f"fetching {model} failed with exit code {code}")


async def _end(child: asyncio.subprocess.Process) -> None:
    child.terminate()
    try:
        await asyncio.wait_for(child.wait(), STOP_SECONDS)
    except TimeoutError:  # in the middle of a long computation
        child.kill()
        await child.wait()


async def _pass_on(child: asyncio.subprocess.Process) -> str:
    assert child.stderr is not None, "it was asked for as a pipe"
    last = ""
    async for line in child.stderr:
        text = line.decode(errors="replace").rstrip()
        print(text, file=sys.stderr, flush=True)
        last = text or last
    return last
