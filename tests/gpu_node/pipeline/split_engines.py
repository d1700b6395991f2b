"""A split model in an engine, for tests: asked by many, with too few blocks for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_node.engine.engine import Engine, EngineOptions
from gpu_node.engine.loader import load_runner
from gpu_node.pipeline.split_runner import SplitRunner
from tests.gpu_node.engine.test_chain_engine import REQUESTS, ids_of
from tests.gpu_node.pipeline.splits import EXACT, PATIENT, SECONDS, Threads, by_hand, fleet_of, model_of

TIGHT = replace(EXACT, cache=replace(EXACT.cache, block_count=20))
Answers = list[list[list[int]]]


@asynccontextmanager
async def engine_over(load: Callable[[], Any], **limits: Any) -> AsyncIterator[Engine]:
    engine = Engine(load, options=EngineOptions(**limits))
    await engine.load()
    try:
        yield engine
    finally:
        assert await engine.close()


def answers_alone(folder: Path) -> Answers:
    """Each request by itself on a single stage, with room for everything and without guesses."""

    async def answers() -> Answers:
        async with engine_over(lambda: load_runner(folder, EXACT), max_drafts=0) as engine:
            return [await ids_of(engine, replace(request, cache_salt=str(at))) for at, request in enumerate(REQUESTS)]

    return asyncio.run(answers())


class Scene:
    """A split model in an engine with too few blocks for everybody."""

    def __init__(self, folder: Path, *plans: tuple[int, ...], depth: int = 2) -> None:
        self.fleet, self.threads = fleet_of(len(plans[0])), Threads()
        self._options, self._model = replace(PATIENT, depth=depth), model_of(folder, TIGHT)
        self._plan = by_hand(folder, *plans)
        self.runner: SplitRunner | None = None

    def load(self) -> SplitRunner:
        self.runner = SplitRunner(self._model, self.fleet, self._plan, self._options, self.threads)
        return self.runner

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[Engine]:
        async with engine_over(self.load, step_tokens=16, mixed_step_tokens=9) as engine:
            yield engine

    async def after_steps(self, count: int) -> None:
        """Until the model has computed so many."""
        assert self.runner is not None
        for _ in range(int(SECONDS / 0.005)):
            if self.runner.steps >= count:
                return
            await asyncio.sleep(0.005)
        raise AssertionError("the model computes nothing")
