"""How long one attempt at a relay node may stay silent: a timer that interrupts whoever waits for too long.

Time counts only while somebody waits. A token moves the deadline, which costs no timer: the one that is set looks, when
it fires, whether the deadline has moved on meanwhile (as the connections over HTTP do it).
"""

from __future__ import annotations

import asyncio
from asyncio import current_task
from types import TracebackType

from server.backends.relay_answer import stalled
from server.patience import Patience

LOOSE_TIMER_SECONDS = 0.01  # event loops fire timers up to their clock's resolution too early


class Watch:
    """`expect` says what is waited for now; `with watch:` goes around each wait, and raises NodeStalled. Close it."""

    __slots__ = ("_address", "_cancelling", "_deadline", "_end", "_expired", "_loop", "_phase", "_task", "_timer",
                 "_timer_at")  # fmt: skip

    def __init__(self, address: str, patience: Patience) -> None:
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._end = self._deadline = self._loop.time() + patience.total
        self._phase = "total"
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._expired = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def expect(self, phase: str, seconds: float) -> None:
        deadline = self._loop.time() + seconds
        self._deadline, self._phase = (deadline, phase) if deadline <= self._end else (self._end, "total")

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __enter__(self) -> None:
        task = self._task = current_task()
        assert task is not None
        self._cancelling = task.cancelling()
        if self._timer is None or self._deadline < self._timer_at:
            self._set_timer()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if not self._expired:
            return
        self._expired = False
        assert task is not None
        if task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise stalled(self._address, self._phase) from error

    def _set_timer(self) -> None:
        self.close()
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._fire)

    def _fire(self) -> None:
        self._timer = None
        if self._task is None:
            return
        if self._loop.time() + LOOSE_TIMER_SECONDS < self._deadline:
            self._set_timer()
            return
        self._expired = True
        self._task.cancel()
