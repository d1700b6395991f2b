"""Loading once for all who wait, one terminal event a generation, and ends that leave nothing running."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from gpu_node.engine.engine import Engine
from gpu_node.engine.sequence import (
    Bounds,
    ChatPrompt,
    Done,
    EmbeddingRequest,
    GenerationRequest,
    Message,
    RawPrompt,
    SamplingOptions,
    Token,
)
from gpu_node.errors import ContextExceeded, GenerationFailed, ModelError, NodeStopping
from tests.gpu_node.scripted import ScriptedRunner

REQUEST = GenerationRequest(RawPrompt("hi"), SamplingOptions(), Bounds(100))


@asynccontextmanager
async def engine_of(load: Callable[[], ScriptedRunner]) -> AsyncIterator[Engine]:
    engine = Engine(load)
    try:
        yield engine
    finally:
        assert await engine.close()


async def collect(engine: Engine, request: GenerationRequest = REQUEST) -> tuple[str, Done]:
    text = ""
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, Done):
                return text, event
            text += event.text
    raise AssertionError("no end")


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 5)


async def test_tokens_come_then_one_done() -> None:
    runner = ScriptedRunner()
    async with engine_of(lambda: runner) as engine:
        await engine.load()
        assert engine.state == "ready"
        text, done = await collect(engine)
    assert text == "one two three"
    assert (done.reason, done.output_tokens) == ("stop", 3)


async def test_any_number_of_callers_share_one_load() -> None:
    gate, loads = threading.Event(), list[int]()

    def load() -> ScriptedRunner:
        loads.append(1)
        assert gate.wait(5)
        return ScriptedRunner()

    async with engine_of(load) as engine:
        waiting = [asyncio.create_task(engine.load()) for _ in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # one who leaves does not end it for the others
        assert engine.state == "loading"
        gate.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == [None] * 4
        await engine.load()
    assert loads == [1]


async def test_a_failed_load_is_told_to_all_and_tried_again_by_the_next() -> None:
    outcomes: list[object] = [ModelError("no room"), RuntimeError("odd"), ScriptedRunner()]

    def load() -> ScriptedRunner:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, ScriptedRunner)
        return outcome

    async with engine_of(load) as engine:
        with pytest.raises(ModelError, match="no room"):
            await engine.load()
        assert (engine.state, engine.error) == ("failed", "no room")
        with pytest.raises(ModelError, match="no room"):
            await collect(engine)
        with pytest.raises(ModelError, match="odd"):
            await engine.load()
        await engine.load()
        assert (engine.state, engine.error) == ("ready", "")


async def test_what_must_be_prepared_comes_before_the_load() -> None:
    order: list[str] = []

    async def prepare() -> None:
        order.append("prepare")

    def load() -> ScriptedRunner:
        order.append("load")
        return ScriptedRunner()

    engine = Engine(load, prepare)
    await engine.load()
    assert await engine.close()
    assert order == ["prepare", "load"]


async def test_unload_gives_the_model_back_and_a_load_brings_it_again() -> None:
    runners = [ScriptedRunner(), ScriptedRunner(["again"])]
    async with engine_of(lambda: runners.pop(0)) as engine:
        await engine.load()
        first = engine.runner
        await engine.unload()
        assert isinstance(first, ScriptedRunner) and first.closed == 1
        assert (engine.state, engine.runner) == ("empty", None)
        await engine.unload()
        await engine.load()
        assert (await collect(engine))[0] == "again"


async def test_leaving_early_stops_the_work_within_one_token() -> None:
    runner = ScriptedRunner([f"{n} " for n in range(1000)], hold_at=2)
    async with engine_of(lambda: runner) as engine:
        await engine.load()
        async with aclosing(engine.generate(REQUEST)) as events:
            async for event in events:
                assert isinstance(event, Token)
                await until(runner.held)
                break
        await until(runner.ended)
    assert runner.told == 2


async def test_a_generation_that_waits_behind_another_and_is_left_never_begins() -> None:
    runner = ScriptedRunner(hold_at=0)
    async with engine_of(lambda: runner) as engine:
        await engine.load()
        first = asyncio.create_task(collect(engine))
        await until(runner.held)
        second = asyncio.create_task(collect(engine))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        runner.go_on.set()
        await first
    assert len(runner.requests) == 1


async def test_a_request_that_fails_leaves_the_engine_alive() -> None:
    runner = ScriptedRunner()
    async with engine_of(lambda: runner) as engine:
        await engine.load()
        runner.fail_at = 1
        with pytest.raises(GenerationFailed, match="the script says so"):
            await collect(engine)
        runner.fail_at = None
        assert (await collect(engine))[0] == "one two three"


async def test_a_clients_mistake_comes_as_it_is() -> None:
    async with engine_of(ScriptedRunner) as engine:
        await engine.load()
        long = GenerationRequest(RawPrompt("x" * 50), SamplingOptions(), Bounds(10, truncate=False))
        with pytest.raises(ContextExceeded):
            await collect(engine, long)
        with pytest.raises(ContextExceeded):
            await engine.embed(EmbeddingRequest(("x" * 50,), 10, truncate=False))


async def test_rendering_does_not_wait_for_the_generation_under_way() -> None:
    runner = ScriptedRunner(hold_at=0)
    async with engine_of(lambda: runner) as engine:
        await engine.load()
        running = asyncio.create_task(collect(engine))
        await until(runner.held)
        text = await engine.render(ChatPrompt((Message("user", "q"),)), Bounds(100))
        assert text == "<user>q\n<assistant>"
        runner.go_on.set()
        await running


async def test_stopping_ends_a_running_generation_with_an_error() -> None:
    runner = ScriptedRunner(hold_at=1)
    engine = Engine(lambda: runner)
    await engine.load()
    running = asyncio.create_task(collect(engine))
    await until(runner.held)
    engine.stop()
    with pytest.raises(NodeStopping):
        await running
    with pytest.raises(NodeStopping):
        await engine.load()
    assert await engine.close()
    assert runner.ended.is_set()


async def test_stopping_ends_those_who_wait_for_the_load() -> None:
    gate = threading.Event()

    def load() -> ScriptedRunner:
        gate.wait(5)
        return ScriptedRunner()

    engine = Engine(load)
    waiting = asyncio.create_task(engine.load())
    await asyncio.sleep(0.01)
    engine.stop()
    with pytest.raises(NodeStopping):
        await waiting
    assert not await engine.close(0.01)  # the load cannot be interrupted, and is said to go on
    gate.set()
    await asyncio.to_thread(engine._worker._thread.join, 5)


def test_importing_the_node_does_not_import_torch() -> None:
    code = (
        "import sys, gpu_node.__main__, gpu_node.node, gpu_node.settings, gpu_node.model_store, gpu_node.engine.engine;"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
