"""The loop whose clock jumps: timers keep their order, and no test waits."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.fakes.clock_loop import ClockLoop, JumpingSelector, on_clock_loop


@on_clock_loop
async def test_hours_pass_at_once_and_in_order() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, ClockLoop)
    started, begin = time.monotonic(), loop.time()
    heard: list[float] = []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        heard.append(round(loop.time() - begin, 3))

    await asyncio.gather(*(sleeper(seconds) for seconds in (7200.0, 0.5, 60.0, 0.0)))
    assert heard == [0.0, 0.5, 60.0, 7200.0]
    assert time.monotonic() - started < 60


@on_clock_loop
async def test_time_stands_still_while_there_is_work() -> None:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    for _ in range(100):
        await asyncio.sleep(0)
    assert loop.time() == begin


@on_clock_loop
async def test_timeouts_end() -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.get_running_loop().create_future(), 3600)


def test_what_is_left_behind_fails_the_test() -> None:
    kept: list[asyncio.Task[None]] = []

    @on_clock_loop
    async def leaks() -> None:
        kept.append(asyncio.create_task(asyncio.sleep(10)))

    @on_clock_loop
    async def unheard() -> None:
        asyncio.get_running_loop().create_future().set_exception(ValueError("unheard"))

    with pytest.raises(AssertionError, match="tasks left running"):
        leaks()
    with pytest.raises(AssertionError, match="unheard"):
        unheard()


def test_a_loop_that_would_wait_for_ever_says_so() -> None:
    with pytest.raises(RuntimeError, match="wait for ever"):
        JumpingSelector().select(None, outside_seconds=0.01)
