"""The heartbeats of a process: one thread says on every link that this side lives, and listens where nobody receives.

A link that is only sent on has no one to notice that the other side is frozen or gone; here it is noticed, the link is
ended, and a send that hangs in it wakes up. Invariant: nothing here blocks, so one sick link delays no other. A process
whose interpreter stands still (a long call that keeps the lock) is as silent as a frozen one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from gpu_node.pipeline.errors import LinkSilent
from gpu_node.pipeline.links import Link

BEAT_SECONDS = 0.1


class Heart:
    def __init__(self, beat_seconds: float = BEAT_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._beat_seconds, self._clock = beat_seconds, clock
        self._heard: dict[Link, float] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, link: Link) -> None:
        with self._lock:
            self._heard[link] = self._clock()

    def remove(self, link: Link) -> None:
        """Also one that is not there."""
        with self._lock:
            self._heard.pop(link, None)

    def tick(self) -> tuple[Link, ...]:
        """One round over all links; those that are over by now, which are not looked after any more."""
        with self._lock:
            links = dict(self._heard)
        now, over = self._clock(), []
        for link, heard in links.items():
            link.beat()
            if link.listen():
                heard = now
            elif now - heard > link.settings.silence_seconds:
                link.fail(LinkSilent(f"the other side has said nothing for {now - heard:.1f} s"))
            if link.end is not None:
                over.append(link)
                self.remove(link)
            else:
                self._note(link, heard)
        return tuple(over)

    def start(self, on_end: Callable[[Link], None] = lambda _: None) -> None:
        """`on_end` is called in this thread, once for each link that is over; it must not block."""
        self._thread = threading.Thread(target=self._run, args=(on_end,), name="heart", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Heart:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, on_end: Callable[[Link], None]) -> None:
        while not self._stopped.wait(self._beat_seconds):
            for link in self.tick():
                on_end(link)

    def _note(self, link: Link, heard: float) -> None:
        with self._lock:
            if link in self._heard:
                self._heard[link] = heard
