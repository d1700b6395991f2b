"""The node as a process, for tests: how it is started, and what it says when it listens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

# Long enough for importing torch on a machine that is busy with something else.
PATIENCE_SECONDS = 200.0


def environment(cache: Path, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "POTLUCK_NODE_CACHE": str(cache), "HF_HUB_OFFLINE": "1", **more}


def command(model: Path | str, *flags: str) -> list[str]:
    fixed = ["--dtype", "float32", "--relay-port", "0", "--announce", "off", "--announce-port"]
    device = [] if "--devices" in flags else ["--device", "cpu"]
    return [sys.executable, "-m", "gpu_node", "--model", str(model), "--port", "0", *device, *fixed, *flags]


@contextmanager
def running(
    model: Path | str, cache: Path, *flags: str, **more: str
) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    process = subprocess.Popen(
        command(model, *flags),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(cache, **more),
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def client_of(event: dict[str, object]) -> httpx.Client:
    return httpx.Client(base_url=f"http://{event['host']}:{event['port']}", timeout=PATIENCE_SECONDS)
