"""The next part, loaded beside the one that computes: one thread, one order after the other, each may be called off.

Invariant: every order is answered once, also one that is called off. Must not know links or steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

import torch

from gpu_node.errors import NodeError
from gpu_node.pipeline.orders import Load, Progress
from gpu_node.pipeline.part_loading import PartLoader
from gpu_node.pipeline.parts import Parts
from gpu_node.pipeline.shortage import give_back

PROGRESS_SECONDS = 0.1


class CalledOff(NodeError):
    """Nobody wants this part any more."""

    def __init__(self) -> None:
        super().__init__("it was called off")


class Answering(Protocol):
    """What of a worker is needed here."""

    def say(self, answer: object) -> None: ...

    def fail(self, number: int, error: BaseException) -> None: ...

    def stand_still(self, reason: str) -> None:
        """Returns once nobody computes."""
        ...


class Preparing:
    def __init__(self, worker: Answering, parts: Parts, clock: Callable[[], float] = time.monotonic) -> None:
        self._worker, self._parts, self._clock = worker, parts, clock
        self._loader = PartLoader()
        self._orders: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._latest: _Job | None = None

    def begin(self, order: Load) -> None:
        """An earlier one that is not ready is called off, one that is ready and was not taken is forgotten."""
        self.call_off()
        self._latest = _Job(order)
        self._orders.put(self._latest)

    def call_off(self) -> None:
        with self._lock:
            if self._latest is not None:
                self._latest.is_off = True

    def run(self) -> None:
        """In a thread of its own, until `end`."""
        while (job := self._orders.get()) is not None:
            self._prepare(job)

    def end(self) -> None:
        self.call_off()
        self._orders.put(None)

    def close(self) -> None:
        """After the thread has ended, and all parts are closed."""
        self._loader.close()

    def _prepare(self, job: _Job) -> None:
        order, worker, parts = job.order, self._worker, self._parts
        try:
            job.check()
            parts.forget_next()
            if order.drop_current:
                worker.stand_still("the part is let go")
                parts.shrink(order)
                give_back(torch.device(order.load.device))
            told = _Told(job, worker, self._clock)
            loaded = self._loader.load(order, parts.earlier, told, lambda more: _allow(job, parts, more))
            with self._lock:
                if not job.is_off:
                    parts.ready(loaded)
            if job.is_off:
                loaded.part.close()
                raise CalledOff
            worker.say(loaded.answer)
        except Exception as error:  # whatever it is, the head is told
            worker.fail(order.number, error)
            give_back(torch.device("cpu"))


class _Job:
    def __init__(self, order: Load) -> None:
        self.order = order
        self.is_off = False

    def check(self) -> None:
        if self.is_off:
            raise CalledOff


def _allow(job: _Job, parts: Parts, more_bytes: int) -> None:
    job.check()
    parts.check_load(job.order, more_bytes)


class _Told:
    """Tells the head how far it is, not at every weight."""

    def __init__(self, job: _Job, worker: Answering, clock: Callable[[], float]) -> None:
        self._job, self._worker, self._clock = job, worker, clock
        self._due = clock()

    def __call__(self, done: int, total: int) -> None:
        self._job.check()
        now = self._clock()
        if now >= self._due or done == total:
            self._due = now + PROGRESS_SECONDS
            self._worker.say(Progress(self._job.order.number, done, total))
