"""The engine's thread: commands from outside, then turns of work, and a new thread when one dies.

A daemon: the process can always end, even while a forward or a load is under way that nothing can interrupt.
Invariants: commands and turns never run at the same time, and all in one thread; a thread that dies of anything that
its turn raises is replaced, and the first thing the new one does is to revive; too many deaths in short time are final.
Must not know what the turns do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

log = logging.getLogger("gpu_node.engine")

Result = TypeVar("Result")

# One more within the window is final: what kills the thread that often will not stop doing so.
MOST_DEATHS = 5
DEATH_WINDOW_SECONDS = 60.0
# Queues refuse to wait for centuries; a turn too many an hour costs nothing.
LONGEST_WAIT_SECONDS = 3600.0


class Work(Protocol):
    """All of it is called in the worker's thread."""

    def turn(self) -> float | None:
        """Do a piece of work. Seconds to wait for commands before the next turn; 0: none; None: until one comes."""
        ...

    def revive(self, death: BaseException) -> None:
        """The last thread died in the middle of a turn: put things in order."""
        ...

    def give_up(self, death: BaseException) -> None:
        """It has died too often; there will be no more turns until a command comes."""
        ...


class Worker:
    def __init__(self, name: str, work: Work, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._work, self._clock = name, work, clock
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._deaths: deque[float] = deque(maxlen=MOST_DEATHS + 1)
        self._lock = threading.Lock()
        self._closing = self._resting = False  # resting: no thread until somebody asks
        with self._lock:
            self._thread = self._start(None)

    @property
    def alive(self) -> bool:
        with self._lock:  # a dying thread puts the next one in its place under it: one of the two is seen alive
            return self._thread.is_alive()

    def post(self, command: Callable[[], None]) -> None:
        """From any thread. Commands run in order, before the next turn; they must not raise."""
        self._commands.put(command)
        if self._resting:
            self._wake()

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Like `post`, for whoever wants to know what came of it."""
        future: Future[Result] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(job())
            except BaseException as error:  # the error belongs to whoever waits for the job
                future.set_exception(error)

        self.post(work)
        return future

    def close(self, timeout_seconds: float) -> bool:
        """End after the commands that wait; False when the thread is still busy after that time."""
        with self._lock:
            self._closing = True
        self._commands.put(None)
        until = time.monotonic() + timeout_seconds
        while self.alive:  # one that dies meanwhile leaves another
            self._thread.join(max(until - time.monotonic(), 0.0))
            if time.monotonic() >= until:
                break
        return not self.alive

    def _wake(self) -> None:
        with self._lock:
            if self._resting and not self._closing:
                self._resting = False
                self._thread = self._start(None)

    def _start(self, death: BaseException | None) -> threading.Thread:
        thread = threading.Thread(target=self._run, args=(death,), name=self._name, daemon=True)
        thread.start()
        return thread

    def _run(self, death: BaseException | None) -> None:
        try:
            if death is not None:
                self._work.revive(death)
            wait: float | None = 0.0
            while self._obey(wait):
                wait = self._work.turn()
        except BaseException as error:  # top of the thread
            self._die(error)

    def _obey(self, wait: float | None) -> bool:
        """Run the commands that are there, or the first that comes in time. False when it is time to end."""
        commands = self._commands
        if wait == 0.0 and commands.empty():
            return True
        try:
            command = commands.get(timeout=None if wait is None else min(wait, LONGEST_WAIT_SECONDS))
            while command is not None:
                command()
                command = commands.get_nowait()
        except Empty:
            return True
        return False

    def _die(self, error: BaseException) -> None:
        now = self._clock()
        self._deaths.append(now)
        final = len(self._deaths) > MOST_DEATHS and now - self._deaths[0] <= DEATH_WINDOW_SECONDS
        log.critical("the engine's thread died%s", " too often" if final else "", exc_info=error)
        if not final:
            with self._lock:
                self._thread = self._start(error)
            return
        self._deaths.clear()
        try:
            self._work.give_up(error)
        except BaseException:  # nothing is left that could handle it
            log.exception("giving up failed")
        self._resting = True
        if not self._commands.empty():  # somebody asked while it was dying
            self._wake()
