"""An event loop that never waits: when nothing is left to do, its clock jumps to the next timer.

For code that lives by `loop.time()` and `loop.call_at`. `on_clock_loop` makes a coroutine function a test that runs on
a loop of its own, from time 0, and that fails when tasks or unheard errors are left behind. Only for tests without
real input: a loop that waits for nothing but the outside world says so instead of hanging.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")
OUTSIDE_SECONDS = 60.0  # what a thread of the loop's own executor may take


class JumpingSelector(selectors.DefaultSelector):
    """Looks what is there, and lets the time pass that it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None, outside_seconds: float = OUTSIDE_SECONDS) -> list[Any]:
        if timeout is None:
            events = super().select(outside_seconds)
            if not events:
                raise RuntimeError("the loop has nothing to do and no timer: it would wait for ever")
            return events
        events = super().select(0)
        if not events and timeout > 0:
            self.now += timeout
        return events


class ClockLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def on_clock_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=ClockLoop) as runner:
            runner.run(_watched(test(*args, **kwargs)))

    return run


async def _watched(test: Coroutine[Any, Any, None]) -> None:
    loop = asyncio.get_running_loop()
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    await test
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    left = [task.get_coro() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, f"tasks left running: {left}"
    gc.collect()  # an exception that nobody heard is reported when its future goes
    assert not reported, f"the event loop reported: {reported}"
