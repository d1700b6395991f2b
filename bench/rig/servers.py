"""Child processes under measurement: started on a named core, waited for, and ended by their own process id.

Each has a log file in the run's temporary folder; when one does not come up, the end of its log is the error message.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.rig.machine import CpuSeconds, cpu_seconds, peak_rss_mib, tree_of, tree_rss_mib

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 90.0  # LiteLLM needs half of it on a small machine
STOP_SECONDS = 10.0
_PORTS = (22000, 31000)


class ServerFailed(RuntimeError):
    """A program under measurement did not start; the message ends with its last words."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to start: its command, the core it may use (None: any) and the path that answers 200 when it is ready."""

    name: str
    command: Sequence[str]
    port: int
    ready_path: str
    core: int | None = None
    environment: Mapping[str, str] | None = None
    ready_headers: Mapping[str, str] | None = None


class Server:
    """A running program. Use as a context manager."""

    def __init__(self, program: Program, folder: Path) -> None:
        self.program = program
        self.log = folder / f"{program.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.program.port}"

    @property
    def rss_mib(self) -> float:
        return round(tree_rss_mib(self.pid), 1)

    @property
    def peak_rss_mib(self) -> float:
        return peak_rss_mib(self.pid)

    @property
    def cpu(self) -> CpuSeconds:
        spent = [cpu_seconds(pid) for pid in tree_of(self.pid)]
        return CpuSeconds(sum(one.user for one in spent), sum(one.system for one in spent))

    def __enter__(self) -> Server:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                on_core(self.program.core, self.program.command),
                cwd=ROOT,
                env={**clean_environment(), **(self.program.environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def pause(self) -> None:
        """Stand still, with all children: an idle program must not take time from the one that is measured."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in tree_of(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        self.resume()
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def last_words(self, lines: int = 12) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerFailed(f"{self.program.name} ended at once:\n{self.last_words()}")
            if self._is_ready():
                return
            time.sleep(0.1)
        raise ServerFailed(f"{self.program.name} was not ready in {START_SECONDS:.0f} s:\n{self.last_words()}")

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.program.port, timeout=5)
        try:
            connection.request("GET", self.program.ready_path, headers=dict(self.program.ready_headers or {}))
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def on_core(core: int | None, command: Sequence[str]) -> list[str]:
    """The command, bound to one core where the system can do that."""
    if core is None or shutil.which("taskset") is None:
        return list(command)
    return ["taskset", "-c", str(core), *command]


def clean_environment() -> dict[str, str]:
    """Ours without settings of the gateway: a value from the developer's shell would change what is measured."""
    known = ("POTLUCK_", "VRM_", "UVICORN_")
    bare = {"ENABLE_LRU_CACHE", "HOST", "PORT"}
    return {name: value for name, value in os.environ.items() if not name.startswith(known) and name not in bare}


def free_ports(count: int) -> list[int]:
    """Consecutive ports that nobody listens on, below those that the kernel gives to outgoing connections."""
    for _ in range(1000):
        first = random.randrange(*_PORTS) // count * count
        if all(_is_free(port) for port in range(first, first + count)):
            return list(range(first, first + count))
    raise ServerFailed(f"no {count} free ports in a row")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
