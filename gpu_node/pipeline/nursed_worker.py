"""A worker that a template makes, or that is started plainly after all; who asked for it sees no difference.

It is asked for, born, and ends. Invariants: its token is written once it is born, to its own input; who is killed
before that is ended as soon as it is born; its process is known by a handle, which means no other one ever, and serves
also when the template is gone that could tell how it ended. Must not know orders, nor where templates come from.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
import time
from contextlib import suppress

from gpu_node.pipeline.births import CODEC, Birth
from gpu_node.pipeline.process import KILLED_SECONDS, StartWorker, WorkerLog, WorkerProcess, WorkerWords

# What a process said last is read within this, however busy the machine; a child of it may hold its stderr for longer.
LINES_SECONDS = 1.0
# Between the end of a process and the word of the template how it ended, the last lines among it.
WORD_SECONDS = 3.0
log = logging.getLogger("gpu_node.pipeline")


class NursedWorker:
    """From any thread."""

    def __init__(self, words: WorkerWords, plainly: StartWorker) -> None:
        self._words, self._plainly = words, plainly
        self._changed = threading.Condition()
        self._plain: WorkerProcess | None = None
        self._pid: int | None = None
        self._handle: int | None = None  # of its process, for whoever is not its parent
        self._ending, self._over, self._killed, self._orphan = "", False, False, False
        lines, self._stderr = os.pipe()
        self._stdin, self._input = os.pipe()
        self._log = WorkerLog(words.device.name, os.fdopen(lines, "rb"))

    # For the nursery

    def ask(self, line: socket.socket, birth: Birth) -> None:
        """Raises OSError and `OutOfBounds`; it is to be started plainly then."""
        try:
            socket.send_fds(line, [CODEC.pack(birth)], [self._stdin, self._stderr])
        finally:  # the copy has its own by then
            os.close(self._stdin)
            os.close(self._stderr)

    def born(self, pid: int, handle: int) -> None:
        with self._changed:
            self._pid, self._handle = pid, handle
            if self._killed:
                self._strike()
            if self._over:  # nobody waits for it any more
                os.close(handle)
            elif not self._killed:
                with suppress(OSError):  # it died at once; its end is told where it is waited for
                    os.write(self._input, self._words.token.encode() + b"\n")
            self._close_input()
            self._changed.notify_all()

    def start_plainly(self) -> None:
        with self._changed:
            if self._over or self._handle is not None:
                return
            self._close_input()
            try:
                self._plain = self._plainly(self._words)
            except OSError as error:
                self._end(f"its process cannot be started: {error.strerror or error}")
            self._changed.notify_all()

    def ended(self, code: int) -> None:
        """`code`: negative for a signal."""
        self._log.join(LINES_SECONDS)
        with self._changed:
            self._end(self._log.ending(code))

    def abandoned(self) -> None:
        """Nobody tells any more how it ends."""
        with self._changed:
            self._orphan = True
            if self._plain is None and self._handle is None:
                self._end("its process was never started")
            self._changed.notify_all()

    # For whoever asked for it

    @property
    def pid(self) -> int | None:
        plain = self._plain
        return self._pid if plain is None else plain.pid

    @property
    def ending(self) -> str:
        if self._plain is not None:
            return self._plain.ending
        with self._changed:
            if self._orphan and not self._over and self._handle is not None and _is_gone(self._handle, 0.0):
                self._end("its process ended")
            return self._ending

    def kill(self) -> None:
        with self._changed:
            self._killed = True
            plain, pending = self._plain, self._handle is None
            if plain is None and not self._over:
                if pending:  # it is ended as soon as it begins
                    self._close_input()
                    self._end(self._log.ending(-signal.SIGKILL))
                else:
                    self._strike()
        if plain is not None:
            plain.kill()
        elif not self.wait(KILLED_SECONDS):
            log.error("The worker of %s (process %s) does not even die", self._words.device.name, self._pid)

    def wait(self, within_seconds: float) -> bool:
        deadline = time.monotonic() + within_seconds
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._plain or self._handle is not None, within_seconds)
            plain = self._plain
            handle = None if self._over or self._handle is None else os.dup(self._handle)
        left = max(deadline - time.monotonic(), 0.0)
        if plain is not None:
            return plain.wait(left)
        if handle is not None:
            gone = _is_gone(handle, left)
            os.close(handle)
            if gone:
                self._await_word()
        return self._over

    def _await_word(self) -> None:
        """The process is gone; how, only the template knows, and it may be gone itself."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._orphan, WORD_SECONDS)
            self._end("its process ended")  # unless more is known

    def _strike(self) -> None:
        assert self._handle is not None, "only who is born is struck"
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def _end(self, ending: str) -> None:
        if self._over:
            return
        self._over, self._ending = True, ending
        self._close_input()
        if self._handle is not None:
            os.close(self._handle)
        self._changed.notify_all()

    def _close_input(self) -> None:
        if self._input >= 0:
            os.close(self._input)
            self._input = -1


def _is_gone(handle: int, within_seconds: float) -> bool:
    end = select.poll()
    end.register(handle, select.POLLIN)
    return bool(end.poll(within_seconds * 1000))
