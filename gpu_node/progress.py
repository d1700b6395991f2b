"""Progress of long work, for people: one line rewritten on a terminal, a line now and then elsewhere. Always stderr."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

# A log file is not a terminal: often enough to see that it lives, seldom enough to stay readable.
LOG_INTERVAL_SECONDS = 5.0
TERMINAL_INTERVAL_SECONDS = 0.2


class Progress:
    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._terminal = stream.isatty()
        self._interval = TERMINAL_INTERVAL_SECONDS if self._terminal else LOG_INTERVAL_SECONDS
        self._next = 0.0
        self._open = 0  # characters of the line that is still being rewritten

    def say(self, text: str) -> None:
        self._end_line()
        print(text, file=self._stream, flush=True)

    def bytes(self, what: str, done: int, total: int) -> None:
        """`done` may pass `total` a little: the total is the manifest's, the count the disk's."""
        share = min(done / total, 1.0) if total else 1.0
        self._update(f"{what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB ({share:.0%})")

    @contextmanager
    def elapsed(self, what: str) -> Iterator[None]:
        """Tells how long the work inside has taken so far."""
        begun, ended = self._clock(), threading.Event()

        def tell() -> None:
            while not ended.wait(self._interval):
                self._update(f"{what}: {self._clock() - begun:.0f} s")

        self.say(f"{what} …")
        teller = threading.Thread(target=tell, name="progress", daemon=True)
        teller.start()
        try:
            yield
        finally:
            ended.set()
            teller.join()
            self._end_line()

    def _update(self, line: str) -> None:
        now = self._clock()
        if now < self._next:
            return
        self._next = now + self._interval
        if not self._terminal:
            print(line, file=self._stream, flush=True)
            return
        print("\r" + line.ljust(self._open), end="", file=self._stream, flush=True)
        self._open = len(line)

    def _end_line(self) -> None:
        if self._open:
            print(file=self._stream, flush=True)
        self._open, self._next = 0, 0.0
