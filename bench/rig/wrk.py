"""Load by wrk, a load generator in C: fast enough to share a core with what answers it.

Every answer is compared with what the mock says, whole or streamed; one that is cut, empty or of another status counts
as an error and not as a request served.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.rig.servers import on_core

SCRIPT = Path(__file__).with_name("wrk.lua")
ANSWER_TIMEOUT = "30s"  # a slow gateway is slow, not broken: its answers count when they come

Dialect = Literal["ollama", "ask", "openai"]
PATHS: dict[Dialect, str] = {"ollama": "/api/chat", "ask": "/ask", "openai": "/v1/chat/completions"}


class WrkFailed(RuntimeError):
    """wrk ended without a result; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Load:
    """One cell of the table: how many connections ask for what, and for how long."""

    name: str
    connections: int
    seconds: float
    stream: bool = False
    tokens: int = 16
    burst: int = 16  # tokens in one write of the mock

    def path(self, dialect: Dialect) -> str:
        return "/ask_stream" if dialect == "ask" and self.stream else PATHS[dialect]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one load came to."""

    per_second: float
    median_ms: float
    p99_ms: float
    errors: int
    sample: str = ""
    seconds: float = 0.0


def is_installed() -> bool:
    return shutil.which("wrk") is not None


def run(load: Load, url: str, dialect: Dialect, key: str = "", core: int | None = None) -> Measured:
    """Ask for that long; returns when the last second is over. Raises WrkFailed."""
    seconds = max(1, round(load.seconds))
    command = ["wrk", "-t1", f"-c{load.connections}", f"-d{seconds}s", "--timeout", ANSWER_TIMEOUT, "-s", str(SCRIPT)]
    arguments = [dialect, "stream" if load.stream else "whole", str(load.tokens), secrets.token_hex(4), key]
    done = subprocess.run(
        on_core(core, [*command, url + load.path(dialect), "--", *arguments]),
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    return measured_from(done.stdout, done.stderr)


def measured_from(output: str, errors: str = "") -> Measured:
    """Read the line that the script wrote."""
    line = next((line for line in output.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise WrkFailed((errors or output).strip()[-500:])
    told = json.loads(line.removeprefix("RESULT "))
    broken = sum(told[name] for name in ("connect", "read", "write", "timeout"))
    served = told["requests"] - told["wrong"]
    errors_seen = int(told["wrong"] + broken)
    seconds = told["seconds"]
    return Measured(served / seconds, told["p50_ms"], told["p99_ms"], errors_seen, told["sample"], seconds)
