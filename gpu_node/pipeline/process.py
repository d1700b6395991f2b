"""One worker process: started with its token on stdin and its device alone in sight, watched, and never left behind.

Its own session, so that Ctrl-C reaches the head alone, which ends its workers; a head that dies closes the control
link, and with it the worker ends by itself. What it writes to stderr goes to the log line by line, the last line is
kept for the sentence why it died. `StartWorker` is the seam: tests run workers in threads. Must not know orders.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from gpu_node.devices import Device
from gpu_node.pipeline.orders import AnyPlace, place_text

# A process that was killed is gone within this, or hangs in the kernel and nobody can help it.
KILLED_SECONDS = 5.0
# The child must find this package from whatever folder the node was started in.
PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
# How each kind is told that it shall see one card only, which it then counts as its first.
SIGHT = {"cuda": "CUDA_VISIBLE_DEVICES", "rocm": "HIP_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
# As torch calls them.
TORCH_KINDS = {"rocm": "cuda"}
LONGEST_LINE = 2000
log = logging.getLogger("gpu_node.pipeline")


@dataclass(frozen=True, slots=True)
class WorkerWords:
    """What a worker is started with. `place`: the head's control gate; `number` names its link there."""

    place: AnyPlace
    number: int
    device: Device
    token: str = field(repr=False)
    identity: str | None = None  # what the driver calls its card, wherever that lies among others; None: not known


class WorkerProcess(Protocol):
    """From any thread."""

    @property
    def pid(self) -> int | None:
        """None: it is a thread of this process, or has not begun yet."""
        ...

    @property
    def ending(self) -> str:
        """In words; empty while it runs."""
        ...

    def kill(self) -> None:
        """At once, and wait for it. Idempotent."""
        ...

    def wait(self, within_seconds: float) -> bool:
        """For its own end; False: it runs on."""
        ...


StartWorker = Callable[[WorkerWords], WorkerProcess]


def torch_device(device: Device) -> str:
    """In a process that sees this device only."""
    if device.kind in ("cpu", "mps"):
        return device.kind
    return f"{TORCH_KINDS.get(device.kind, device.kind)}:0"


def start_process(words: WorkerWords) -> WorkerProcess:
    """Raises OSError where the system starts none."""
    return ChildWorker(words)


def surroundings(device: Device, environ: Mapping[str, str], identity: str | None = None) -> dict[str, str]:
    """Environment of a worker. Cards without an identity are numbered among those that the head itself sees; drivers
    and libraries may count differently, and all count anew when a card is pulled out."""
    path = os.pathsep.join(filter(None, [PACKAGE_ROOT, environ.get("PYTHONPATH")]))
    found = {**environ, "PYTHONPATH": path}
    if device.kind in SIGHT and identity:
        found[SIGHT[device.kind]] = identity
    elif device.kind in SIGHT:
        seen = [card.strip() for card in environ.get(SIGHT[device.kind], "").split(",") if card.strip()]
        found[SIGHT[device.kind]] = seen[device.number] if device.number < len(seen) else str(device.number)
    return found


def arguments_of(words: WorkerWords) -> tuple[str, ...]:
    """As `worker.main` takes them."""
    return place_text(words.place), str(words.number), words.device.name


class WorkerLog:
    """What a worker writes to stderr, line by line into the log, in a thread that ends with the last writer."""

    def __init__(self, name: str, lines: IO[bytes]) -> None:
        self._name, self._lines, self._last = name, lines, ""
        self._reader = threading.Thread(target=self._pass_on, name=f"log of {name}", daemon=True)
        self._reader.start()

    def join(self, within_seconds: float = 1.0) -> None:
        self._reader.join(within_seconds)

    def ending(self, code: int) -> str:
        """In words. `code`: negative for a signal."""
        said = f": {self._last}" if self._last and code > 0 else ""
        return f"its process was killed by signal {-code}" if code < 0 else f"its process ended with code {code}{said}"

    def _pass_on(self) -> None:
        with self._lines as lines:
            while line := lines.readline(LONGEST_LINE):
                text = line.decode(errors="replace").rstrip()
                self._last = text or self._last
                log.info("%s: %s", self._name, text)


class ChildWorker:
    command: tuple[str, ...] = (sys.executable, "-m", "gpu_node.pipeline.worker")

    def __init__(self, words: WorkerWords) -> None:
        self._name = words.device.name
        self._child = subprocess.Popen(
            [*self.command, *arguments_of(words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=surroundings(words.device, os.environ, words.identity),
            start_new_session=True,
        )
        assert self._child.stdin is not None and self._child.stderr is not None, "they were asked for as pipes"
        self._log = WorkerLog(self._name, self._child.stderr)
        try:
            self._child.stdin.write(words.token.encode() + b"\n")
            self._child.stdin.close()
        except OSError:  # it died at once; its end is told where it is waited for
            pass

    @property
    def pid(self) -> int | None:
        return self._child.pid

    @property
    def ending(self) -> str:
        code = self._child.poll()
        if code is None:
            return ""
        self._log.join()  # its last words come with its end, and are read a moment later
        return self._log.ending(code)

    def kill(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
        if not self.wait(KILLED_SECONDS):
            log.error("The worker of %s (process %d) does not even die", self._name, self._child.pid)

    def wait(self, within_seconds: float) -> bool:
        try:
            self._child.wait(within_seconds)
        except subprocess.TimeoutExpired:
            return False
        self._log.join()
        return True
