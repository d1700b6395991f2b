"""An engine over the scripted runner, for tests: loaded, asked, held in the middle of a step, and closed in the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from gpu_node.engine.engine import Engine, EngineOptions
from gpu_node.engine.sequence import (
    Bounds,
    Done,
    GenerationRequest,
    RawPrompt,
    SamplingOptions,
)
from gpu_node.engine.step import Step
from tests.fakes.scripted_runner import ScriptedRunner

PATIENCE_SECONDS = 60.0  # of a test on a busy machine
GREEDY = SamplingOptions(temperature=0)
REQUEST = GenerationRequest(RawPrompt("hi"), GREEDY, Bounds(100, max_tokens=8))
ENDLESS = replace(REQUEST, bounds=Bounds(100))


class Gate:
    """Holds the runner before its next step; opened for good by `open`."""

    def __init__(self, runner: ScriptedRunner, at_step: int = 0) -> None:
        self.held, self._go_on, self._left = threading.Event(), threading.Event(), at_step
        runner.before_run = self._pass

    def _pass(self, step: Step) -> None:
        if self._left > 0:
            self._left -= 1
            return
        self.held.set()
        assert self._go_on.wait(PATIENCE_SECONDS)

    def open(self) -> None:
        self._go_on.set()


@asynccontextmanager
async def engine_of(load: Callable[[], ScriptedRunner], **options: object) -> AsyncIterator[Engine]:
    engine = Engine(load, options=EngineOptions(**options))
    try:
        yield engine
    finally:
        assert await engine.close(PATIENCE_SECONDS)


@asynccontextmanager
async def loaded(runner: ScriptedRunner, **options: object) -> AsyncIterator[Engine]:
    async with engine_of(lambda: runner, **options) as engine:
        await engine.load()
        yield engine


async def collect(engine: Engine, request: GenerationRequest = REQUEST) -> tuple[str, Done]:
    text = ""
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, Done):
                return text, event
            text += event.text
    raise AssertionError("no end")


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE_SECONDS)


async def settled(engine: Engine) -> None:
    """Nobody is left in the core, once the thread has heard of everything."""
    end = time.monotonic() + PATIENCE_SECONDS
    while (stats := engine.stats()).running + stats.waiting and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    assert not engine.busy
