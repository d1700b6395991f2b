"""Runs the generations that one HTTP request asks for, several at a time, and ends them all when one fails.

No more of them are in the engine at once than it has slots: a long list must not fill the queue for others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from gpu_node.engine.sequence import Done, GenerationRequest, Token
from gpu_node.host import HostedEngine

Result = TypeVar("Result")
# Called with the number of the generation and one of its events.
Tell = Callable[[int, Token], Awaitable[None]]


async def generate_all(
    engine: HostedEngine, requests: Sequence[GenerationRequest], window: int, tell: Tell
) -> list[Done]:
    """One `Done` a request, in order. Raises the first error; the others are cancelled then."""

    async def one(number: int) -> Done:
        return await generate(engine, requests[number], lambda token: tell(number, token))

    if len(requests) == 1:
        return [await one(0)]
    return await in_window(one, len(requests), window)


async def generate(engine: HostedEngine, request: GenerationRequest, tell: Callable[[Token], Awaitable[None]]) -> Done:
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, Done):
                return event
            await tell(event)
    raise AssertionError("a generation ends with Done or an error")


async def in_window(work: Callable[[int], Coroutine[Any, Any, Result]], count: int, window: int) -> list[Result]:
    """The results of `work(0)`, `work(1)`, … in order, at most `window` at once; the first error ends the rest."""
    gate = asyncio.Semaphore(max(window, 1))

    async def gated(number: int) -> Result:
        async with gate:
            return await work(number)

    tasks = [asyncio.create_task(gated(number), name="one of many") for number in range(count)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
