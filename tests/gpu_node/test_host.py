"""When the model is in memory, and until when. Time is a number here; nothing waits for real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gpu_node.durations import FOREVER
from gpu_node.engine.engine import Engine
from gpu_node.errors import ModelError
from gpu_node.host import LARGEST_DEFAULT_CONTEXT, UNSTATED_CONTEXT, ModelHost
from gpu_node.model_folder import ModelDescription
from tests.gpu_node.scripted import ScriptedRunner


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def host_of(keep_alive: float = 300.0, context: int = 0) -> AsyncIterator[tuple[ModelHost, Clock]]:
    clock = Clock()
    host = ModelHost(Engine(ScriptedRunner), ("tiny", "default"), keep_alive, 4, context, clock)
    try:
        yield host, clock
    finally:
        assert await host.close()


async def use(host: ModelHost, keep_alive: float | None = None) -> None:
    async with host.turn(keep_alive):
        assert host.engine.state == "ready"


async def test_a_turn_loads_and_the_model_stays_for_its_time() -> None:
    async with host_of() as (host, clock):
        await use(host)
        assert host.loaded_once
        assert host.seconds_left == 300
        clock.now += 299
        await host.expire()
        assert host.engine.state == "ready"
        clock.now += 1
        await host.expire()
        assert host.engine.state == "empty"
        await use(host)
        assert host.seconds_left == 300


async def test_a_request_may_ask_for_another_time() -> None:
    async with host_of() as (host, _):
        await use(host, FOREVER)
        assert host.seconds_left == FOREVER
        await use(host, 10)
        assert host.seconds_left == 10
        await use(host)
        assert host.seconds_left == 300


async def test_the_timer_itself_unloads() -> None:
    async with host_of(keep_alive=0.0) as (host, _):
        await use(host)
        for _ in range(200):
            if host.engine.state == "empty":
                break
            await asyncio.sleep(0.005)
        assert host.engine.state == "empty"


async def test_an_expiry_behind_a_running_turn_sees_the_new_time() -> None:
    async with host_of() as (host, clock):
        await use(host)
        clock.now += 300
        async with host.turn():
            expiry = asyncio.create_task(host.expire())
            await asyncio.sleep(0)
        await expiry
        assert host.engine.state == "ready"


async def test_unload_is_at_once_when_free_and_after_the_turn_when_not() -> None:
    async with host_of() as (host, _):
        await use(host)
        await host.unload()
        assert host.engine.state == "empty"
        async with host.turn(0.0):
            await host.unload()
            assert host.engine.state == "ready"
        for _ in range(200):
            if host.engine.state == "empty":
                break
            await asyncio.sleep(0.005)
        assert host.engine.state == "empty"


async def test_start_loads_without_taking_the_slot() -> None:
    async with host_of() as (host, _):
        await asyncio.gather(host.start(), use(host))
        assert host.loaded_once
        assert host.seconds_left == 300


async def test_a_failed_load_frees_the_slot() -> None:
    def fail() -> ScriptedRunner:
        raise ModelError("no")

    host = ModelHost(Engine(fail), ("tiny",), 300, 4)
    for _ in range(2):
        with pytest.raises(ModelError):
            await use(host)
    assert not host.slot.busy
    assert await host.close()


def description(context: int) -> ModelDescription:
    return ModelDescription("llama", "d", 1, "F32", context, 8, 0.0, "", {}, {})


async def test_the_context_is_the_models_own_within_bounds() -> None:
    async with host_of() as (host, _):
        assert host.context_tokens == UNSTATED_CONTEXT
        host.description = description(256)
        assert host.context_tokens == 256
        host.description = description(10**6)
        assert host.context_tokens == LARGEST_DEFAULT_CONTEXT
    async with host_of(context=20_000) as (host, _):
        host.description = description(10**6)
        assert host.context_tokens == 20_000
        host.description = description(512)
        assert host.context_tokens == 512


async def test_names() -> None:
    async with host_of() as (host, _):
        assert host.name == "tiny"
        assert host.serves("TINY:latest") and host.serves("default")
        assert not host.serves("other")
