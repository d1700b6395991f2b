"""Our engine through the face that the node's API uses: prompts in, events out, text and all."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

from bench.contenders.protocol import Load, Outcome, serve
from gpu_node.engine.engine import Engine, EngineOptions
from gpu_node.engine.sequence import Bounds, Done, GenerationRequest, SamplingOptions, Token, TokenPrompt
from gpu_node.engine.step import ModelRunner

CONTEXT = 1024
GREEDY = SamplingOptions(temperature=0.0, repeat_penalty=1.0)


def main(
    path: str, dtype: str, threads: str, weights: str = "full", kernels: str = "auto", speculation: str = "off"
) -> None:
    from gpu_node.engine.cache_size import CacheOptions
    from gpu_node.engine.loader import LoadOptions, load_runner

    options = LoadOptions(
        device="cpu",
        dtype=cast(Any, dtype),
        threads=int(threads),
        weights=cast(Any, weights),
        kernels=cast(Any, kernels),
        cache=CacheOptions(context=CONTEXT),
    )

    def load() -> ModelRunner:
        return load_runner(Path(path), options)

    drafts = EngineOptions().max_drafts if speculation == "auto" else 0
    engine = Engine(load, options=EngineOptions(max_drafts=drafts))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.load())
    summary = engine.runner.summary if engine.runner else {}
    try:
        serve({"summary": summary}, lambda load: loop.run_until_complete(run(engine, load)))
    finally:
        loop.run_until_complete(engine.close())
        loop.close()


async def run(engine: Engine, load: Load) -> Outcome:
    begun = time.perf_counter()
    answers = await asyncio.gather(*(_answer(engine, load, at, begun) for at in range(len(load.prompts))))
    return Outcome(time.perf_counter() - begun, [ids for ids, _ in answers], [stamps for _, stamps in answers])


async def _answer(engine: Engine, load: Load, at: int, begun: float) -> tuple[list[int], list[float]]:
    """A stamp a token; tokens that came together share one."""
    request = GenerationRequest(
        prompt=TokenPrompt(tuple(load.prompts[at])),
        sampling=GREEDY,
        bounds=Bounds(context_tokens=CONTEXT, max_tokens=load.outputs[at], ignore_end=True),
    )
    ids: list[int] = []
    stamps: list[float] = []
    await asyncio.sleep(load.delay(at))
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, Done):
                break
            if isinstance(event, Token) and event.ids:
                ids += event.ids
                stamps += [time.perf_counter() - begun] * len(event.ids)
    return ids, stamps


if __name__ == "__main__":
    main(*sys.argv[1:7])
