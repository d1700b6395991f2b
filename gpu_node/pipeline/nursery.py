"""Where the workers of a node come from: copies of one template, which is started when the first is wanted.

Where there is no template to be had (another system than Linux, libraries that begin threads when they are imported, a
template that has died or does not answer) workers are started plainly, each importing everything itself; also those
that were asked for and not made yet. Invariants: `start` never waits; whoever was asked for comes to its end, with its
reason, whatever becomes of the template; `close` leaves no process, thread or socket. Must not know orders.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

from gpu_node.devices import Device
from gpu_node.pipeline.births import CODEC, MESSAGE_BYTES, Birth, Born, Ended, Failed, Ready, Unfit
from gpu_node.pipeline.nursed_worker import NursedWorker
from gpu_node.pipeline.process import (
    StartWorker,
    WorkerLog,
    WorkerProcess,
    WorkerWords,
    arguments_of,
    start_process,
    surroundings,
)
from wire.errors import BadPayload, OutOfBounds

COMMAND = (sys.executable, "-m", "gpu_node.pipeline.template")
# The template must have one thread, and numpy's products begin theirs when they are imported; no worker uses them.
CALM = {"OPENBLAS_NUM_THREADS": "1"}
# Read by libraries when they are loaded: where these have changed a copy would be another process than it should be.
READ_EARLY = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "LD_", "PYTHON", "ATEN_")
# Their libraries look for cards when they are first used, not when they are loaded; of other kinds that is not known.
COPIED = ("cpu", "cuda")
# Importing takes seconds, on a machine with much to do tens of them; a worker has not much longer than this to begin.
READY_SECONDS = 60.0
# A ready template answers within milliseconds, or never.
BORN_SECONDS = 5.0
LOOK_SECONDS = 1.0
# One that dies may have been somebody's mistake; several have a reason.
MOST_TEMPLATES = 3
# A template that is told to end gives its workers a moment; one that takes longer than this is sick.
CLOSE_SECONDS = 10.0
# A process that dies hangs up first.
DEATH_SECONDS = 0.2
log = logging.getLogger("gpu_node.pipeline")


def is_possible() -> bool:
    return sys.platform == "linux" and hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")


class Nursery:
    """One for a node; all its models share the template."""

    def __init__(
        self,
        command: Sequence[str] = COMMAND,
        plainly: StartWorker = start_process,
        possible: bool = is_possible(),
        patience_seconds: float = BORN_SECONDS,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        self._command, self._plainly = tuple(command), plainly
        self._patience, self._close_seconds = patience_seconds, close_seconds
        self._lock = threading.Lock()
        self._house: House | None = None
        self._closed, self._left = False, MOST_TEMPLATES if possible else 0

    @property
    def pid(self) -> int | None:
        """Of the template, where there is one."""
        with self._lock:
            return None if self._house is None or self._house.over else self._house.pid

    def start(self, words: WorkerWords) -> WorkerProcess:
        """At once; the process may begin later. Raises OSError where the system starts none."""
        if words.device.kind not in COPIED:
            return self._plainly(words)
        new = surroundings(words.device, os.environ, words.identity)
        with self._lock:
            house = self._open()
        worker = None if house is None or house.is_other(new) else house.bear(words, new)
        return self._plainly(words) if worker is None else worker

    def close(self) -> None:
        """What is left of its workers ends."""
        with self._lock:
            self._closed = True
            house, self._house = self._house, None
        if house is not None:
            house.close()

    def _open(self) -> House | None:
        if self._house is not None and self._house.unfit:
            self._left = 0
        if self._house is not None and not self._house.over:
            return self._house
        if self._house is not None:
            self._house.close()
            self._house = None
        if self._closed or not self._left:
            return None
        self._left -= 1
        try:
            self._house = House(self._command, self._plainly, self._patience, self._close_seconds)
        except OSError as error:
            log.warning("Workers are started plainly: %s", error)
        return self._house


class House:
    """A running template and those who came of it."""

    def __init__(
        self, command: Sequence[str], plainly: StartWorker, patience_seconds: float, close_seconds: float
    ) -> None:
        """Raises OSError."""
        self._plainly, self._patience, self._close_seconds = plainly, patience_seconds, close_seconds
        self._environ = dict(os.environ)
        self._its_environ = {**surroundings(Device("cpu:0", "cpu", 0), os.environ), **CALM}
        self._line, its_line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with its_line:
                self._process = subprocess.Popen(
                    command,
                    stdin=its_line.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env=self._its_environ,
                    start_new_session=True,
                )
        except OSError:
            self._line.close()
            raise
        assert self._process.stderr is not None, "it was asked for as a pipe"
        self._line.settimeout(min(LOOK_SECONDS, patience_seconds))
        self._log = WorkerLog("template of workers", self._process.stderr)
        self._lock = threading.Lock()
        self._workers: dict[int, NursedWorker] = {}
        self._asked: dict[int, float] = {}  # when; not born yet
        self._numbers = count()
        self._begun = time.monotonic()
        self._ready: float | None = None
        self.over, self.unfit, self._closing = False, False, False
        self._listener = threading.Thread(target=self._listen, name="births of workers", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_other(self, environ: Mapping[str, str]) -> bool:
        """Whether something has changed that a copy could not be told any more."""
        names = self._environ.keys() | environ.keys()
        changed = {name for name in names if self._environ.get(name) != environ.get(name)} - {"PYTHONPATH"}
        return any(name.startswith(READ_EARLY) for name in changed)

    def bear(self, words: WorkerWords, environ: Mapping[str, str]) -> NursedWorker | None:
        """None: not here, any more."""
        with self._lock:
            if self.over:
                return None
            worker = NursedWorker(words, self._plainly)
            number = next(self._numbers)
            self._workers[number], self._asked[number] = worker, time.monotonic()
        try:
            worker.ask(self._line, Birth.between(number, arguments_of(words), self._its_environ, environ))
        except (OSError, OutOfBounds) as error:
            log.warning("A worker is started plainly: %s", error)
            self._fail(number)
        return worker

    def close(self) -> None:
        """Its workers are gone when this returns."""
        self._closing = True
        with suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        self._listener.join()

    def _listen(self) -> None:
        try:
            while True:
                try:
                    data, handles, _, _ = socket.recv_fds(self._line, MESSAGE_BYTES, 1)
                except TimeoutError:
                    if self._is_overdue(time.monotonic()):
                        log.warning("The template of workers does not answer")
                        return
                    continue
                if not data:
                    return
                self._hear(CODEC.unpack(data), handles)
        except (OSError, BadPayload) as error:
            log.warning("The template of workers is given up: %s", error)
        finally:
            self._end()

    def _is_overdue(self, now: float) -> bool:
        if self._ready is None:
            return now - self._begun > READY_SECONDS
        with self._lock:
            oldest = min(self._asked.values(), default=now)
        return now - max(oldest, self._ready) > self._patience

    def _hear(self, said: Any, handles: Sequence[int]) -> None:
        if isinstance(said, Born) and len(handles) == 1:
            with self._lock:
                self._asked.pop(said.number, None)
                worker = self._workers.get(said.number)
            if worker is None:  # it was started plainly, and has no input
                os.close(handles[0])
            else:
                worker.born(said.pid, handles[0])
        elif isinstance(said, Ended):
            with self._lock:
                worker = self._workers.pop(said.number, None)
            if worker is not None:
                worker.ended(-said.signal or said.code)
        elif isinstance(said, Failed):
            log.warning("A worker is started plainly: %s", said.reason)
            self._fail(said.number)
        elif isinstance(said, Ready):
            self._ready = time.monotonic()
            log.info("The template of workers is ready after %.1f s of processor time", said.seconds)
        elif isinstance(said, Unfit):
            self.unfit = True
            log.warning("Workers are started plainly: their template cannot be copied, since %s", said.reason)

    def _fail(self, number: int) -> None:
        with self._lock:
            self._asked.pop(number, None)
            worker = self._workers.pop(number, None)
        if worker is not None:
            worker.start_plainly()

    def _end(self) -> None:
        with self._lock:
            self.over = True
            left = list(self._workers.values())
            self._workers.clear()
        self._line.close()
        try:
            self._process.wait(self._close_seconds if self._closing or self.unfit else DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not (self._closing or self.unfit):
            log.warning("The template of workers has ended: %s", self._log.ending(self._process.returncode))
        for worker in left:
            if not self._closing:
                worker.start_plainly()
            worker.abandoned()
            if self._closing:  # by the template, where it was well
                worker.kill()
        self._log.join()
