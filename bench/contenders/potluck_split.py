"""Our engine with a model that lies over several devices, each a budget of this machine's memory with a stated speed.

Beside loads it answers words: "status" tells what the pipeline says of itself, "kill" kills the process of a stage and
returns when an answer that was under way has gone on. Without devices the model is loaded as nobody splits it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.contenders.potluck_engine import GREEDY
from bench.contenders.protocol import Load, Outcome, serve
from gpu_node.devices import parse_devices
from gpu_node.engine.engine import Engine, EngineOptions
from gpu_node.engine.sequence import Bounds, Done, GenerationRequest, Token, TokenPrompt
from gpu_node.engine.step import ModelRunner
from gpu_node.load_wish import LoadWish
from gpu_node.model_folder import describe
from gpu_node.pipeline.split_model import SplitOptions
from gpu_node.pipeline_record import pipeline_record
from gpu_node.pipeline_status import PipelineStatus
from gpu_node.split import Goal, SplitWish, Strategy
from gpu_node.split_plan import PlannedDevice, Sizes
from gpu_node.splitting import Wanted, demand_of

CONTEXT = 2048
BLOCK_TOKENS = 16
BLOCKS = 320  # 5,120 tokens: 32 answers of the measurement, with room to spare
# Other work on the machine may keep a worker silent; one that is killed is noticed by its socket.
PATIENT = SplitOptions(silence_seconds=5.0)


@dataclass(frozen=True, slots=True)
class Spec:
    """`devices` as `--devices` has it, none: one without a budget. `profiled` plans with what the probe finds."""

    threads: int  # of all stages together
    devices: str = ""
    strategy: Strategy = "profiled"
    goal: Goal = "throughput"
    findings: str = ""  # the file in which all of them find what was probed once

    def words(self) -> str:
        return json.dumps(asdict(self))


class Subject:
    """The engine under measurement."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def run(self, load: Load) -> Outcome:
        begun = time.perf_counter()
        answers = await asyncio.gather(*(self._answer(load, at, begun) for at in range(len(load.prompts))))
        return Outcome(time.perf_counter() - begun, [ids for ids, _ in answers], [stamps for _, stamps in answers])

    async def _answer(self, load: Load, at: int, begun: float) -> tuple[list[int], list[float]]:
        request = GenerationRequest(
            prompt=TokenPrompt(tuple(load.prompts[at])),
            sampling=GREEDY,
            bounds=Bounds(context_tokens=CONTEXT, max_tokens=load.outputs[at], ignore_end=True),
        )
        ids: list[int] = []
        stamps: list[float] = []
        async for event in self.engine.generate(request):
            if isinstance(event, Token) and event.ids:
                ids += event.ids
                stamps += [time.perf_counter() - begun] * len(event.ids)
            if isinstance(event, Done):
                break
        return ids, stamps

    def status(self) -> dict[str, Any]:
        told = self._status
        return {} if told is None else dict(pipeline_record(told))

    @property
    def _status(self) -> PipelineStatus | None:
        assert self.engine.runner is not None
        return self.engine.runner.pipeline

    async def kill(self, load: Load, stage: int) -> dict[str, Any]:
        """In the middle of that load: how long nothing came, and whether the answers are those of a calm run."""
        calm = await self.run(load)
        running = asyncio.create_task(self.run(load))
        await asyncio.sleep(calm.seconds / 3)
        told = self._status
        pid = None if told is None else told.stages[stage].pid
        assert told is not None and pid is not None, "a stage in a process of its own"
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        outcome = await running
        after = self._status
        assert after is not None
        return {
            "same": outcome.tokens == calm.tokens,
            "silence_seconds": max(outcome.gaps_ms) / 1000,
            "recovery_seconds": after.last_recovery_seconds,
            "replans": after.replans - told.replans,
            "stages": [stage.layers for stage in after.stages],
            "seconds": time.perf_counter() - began,
        }


def load_split(path: Path, spec: Spec, at_end: ExitStack) -> ModelRunner:
    from gpu_node.device_fleet import DeviceFleet
    from gpu_node.engine.cache_size import CacheOptions
    from gpu_node.engine.loader import LoadOptions, load_runner
    from gpu_node.model_store import default_cache
    from gpu_node.probing import ProbeRun, Probing
    from gpu_node.splitting import SplitRules, Splitting

    cache = CacheOptions(block_tokens=BLOCK_TOKENS, block_count=BLOCKS, context=CONTEXT)
    kernels = default_cache({}) / "kernels"
    if not spec.devices:
        return load_runner(path, LoadOptions(device="cpu", threads=spec.threads, cache=cache, kernel_folder=kernels))
    probing = Probing(Path(spec.findings), ProbeRun(threads=1))
    wish = SplitWish(spec.strategy, spec.goal)
    splitting = Splitting(DeviceFleet(parse_devices(spec.devices)), SplitRules(wish, PATIENT), probing.findings)
    at_end.callback(splitting.close)
    options = LoadOptions(threads=spec.threads, cache=cache, kernel_folder=kernels)
    return splitting.load(wanted(path), path, options)


def wanted(path: Path) -> Wanted:
    return Wanted("default", describe(path), LoadWish(device="cpu", kv_blocks=BLOCKS, context=CONTEXT), CONTEXT)


def need_bytes(path: Path) -> int:
    """Of one device that holds all of it."""
    model = wanted(path)
    sizes = Sizes(model.shape, demand_of(model, model.shape, parse_devices("cpu:1GiB")))
    layers = sizes.layers
    return sizes.missing(PlannedDevice("", 0, stated=True), 0, layers, BLOCKS * BLOCK_TOKENS)


def main(path: str, words: str) -> None:
    spec, at_end = Spec(**json.loads(words)), ExitStack()
    engine = Engine(lambda: load_split(Path(path), spec, at_end), options=EngineOptions(max_drafts=0))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.load())
    subject = Subject(engine)

    def other(message: Mapping[str, Any]) -> Mapping[str, Any]:
        if message["word"] == "status":
            return subject.status()
        return loop.run_until_complete(subject.kill(Load(**message["load"]), message["stage"]))

    summary = engine.runner.summary if engine.runner else {}
    try:
        serve({"summary": summary}, lambda load: loop.run_until_complete(subject.run(load)), other)
    finally:
        loop.run_until_complete(engine.close())
        at_end.close()
        loop.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
