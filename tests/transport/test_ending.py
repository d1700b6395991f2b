"""The last steps: last words first, then the peer's end, and never longer than the time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from transport.ending import CLOSING_SECONDS, Ending


class FakeLine:
    def __init__(self) -> None:
        self.told: list[str] = []

    def end(self) -> None:
        self.told.append("end")

    def close(self) -> None:
        self.told.append("close")


class FakeLoop:
    """Keeps what is to be called later."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, object]] = []
        self.cancelled = 0

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def call_later(self, seconds: float, what):
        self.timers.append((seconds, what))
        return self

    def cancel(self) -> None:
        self.cancelled += 1


@pytest.fixture
async def parts() -> tuple[Any, FakeLine, FakeLoop, list[str]]:
    late: list[str] = []
    loop, line = FakeLoop(), FakeLine()
    ending: Any = Ending(loop, lambda: late.append("late"))
    ending.line = line
    return ending, line, loop, late


async def test_it_waits_for_the_peer(parts) -> None:
    ending, line, loop, late = parts
    ending.limit()
    ending.all_written()
    ending.all_written()
    assert line.told == ["end"] and ending.is_ending and not ending.is_closed
    ending.peer_ended()
    await ending.wait_closed()
    ending.shut()
    assert line.told == ["end", "close"] and ending.is_closed
    assert loop.cancelled == 1 and late == []


async def test_a_peer_that_has_ended_is_not_waited_for(parts) -> None:
    ending, line, _, _ = parts
    ending.peer_ended()
    assert not ending.is_closed
    ending.all_written()
    assert line.told == ["close"] and ending.is_closed


async def test_it_takes_no_longer_than_the_time(parts) -> None:
    ending, line, loop, late = parts
    ending.limit()
    ending.limit()
    [(seconds, run_out)] = loop.timers
    assert seconds == CLOSING_SECONDS
    run_out()
    assert late == ["late"] and line.told == ["close"]
    ending.limit()
    assert len(loop.timers) == 1


async def test_without_a_line_it_is_closed_at_once() -> None:
    ending = Ending(FakeLoop(), lambda: None)
    ending.shut()
    await ending.wait_closed()
