"""Loading once for all who wait, unloading, stopping and dying: ends that leave nothing running."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from gpu_node.engine.engine import Engine, EngineOptions
from gpu_node.engine.sequence import (
    EmbeddingRequest,
)
from gpu_node.engine.step import CacheChange, CacheShape, Step
from gpu_node.engine.worker import MOST_DEATHS
from gpu_node.errors import (
    DeviceOutOfMemory,
    GenerationFailed,
    ModelError,
    NodeStopping,
)
from tests.fakes.pipelined_runner import PipelinedRunner
from tests.fakes.scripted_runner import ScriptedRunner, mixed, written_out
from tests.gpu_node.engine.desk import greedy
from tests.gpu_node.engine.loaded_engine import (
    ENDLESS,
    Gate,
    collect,
    engine_of,
    loaded,
    settled,
    until,
)
from tests.gpu_node.serving import until_true


async def test_any_number_of_callers_share_one_load() -> None:
    gate, loads = threading.Event(), list[int]()

    def load() -> ScriptedRunner:
        loads.append(1)
        assert gate.wait(60)
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
    outcomes: list[object] = [
        ModelError("no room"), DeviceOutOfMemory("too large"), RuntimeError("odd"), ScriptedRunner(),
    ]  # fmt: skip

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
        with pytest.raises(DeviceOutOfMemory, match="too large"):
            await engine.load()
        assert (engine.state, engine.error) == ("failed", "too large")
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
    runners = [ScriptedRunner(), ScriptedRunner(written_out("again"))]
    async with engine_of(lambda: runners.pop(0)) as engine:
        await engine.load()
        first = engine.runner
        await collect(engine)
        await engine.unload()
        assert isinstance(first, ScriptedRunner) and first.closed == 1
        assert (engine.state, engine.runner) == ("empty", None)
        await engine.unload()
        with pytest.raises(ModelError, match="not loaded"):
            await collect(engine)
        await engine.load()
        assert (await collect(engine))[0] == "again"
        assert engine.stats().done == 2  # over both loads


async def test_unloading_waits_for_who_runs_and_refuses_who_comes() -> None:
    runner = ScriptedRunner()
    gate = Gate(runner, at_step=2)
    async with loaded(runner) as engine:
        running = asyncio.create_task(collect(engine))
        await until(gate.held)
        unloading = asyncio.create_task(engine.unload())
        await asyncio.sleep(0)
        with pytest.raises(ModelError):
            await collect(engine)
        assert not runner.closed and engine.state == "empty"
        gate.open()
        assert (await running)[1].output_tokens == 8
        await unloading
        assert runner.closed == 1


async def test_a_load_while_unloading_waits_takes_the_model_back() -> None:
    runner = ScriptedRunner()
    gate = Gate(runner, at_step=2)
    async with loaded(runner) as engine:
        running = asyncio.create_task(collect(engine))
        await until(gate.held)
        unloading = asyncio.create_task(engine.unload())
        await asyncio.sleep(0)
        await engine.load()
        await unloading
        assert engine.state == "ready" and not runner.closed
        gate.open()
        await running
        assert (await collect(engine))[1].output_tokens == 8


async def test_an_idle_engine_takes_no_turns() -> None:
    async with loaded(ScriptedRunner()) as engine:
        await collect(engine)
        await settled(engine)
        turns, take = list[int](), engine._core.turn

        def counted() -> float | None:
            turns.append(1)
            return take()

        def watch() -> None:
            setattr(engine._core, "turn", counted)  # noqa: B010  an object of ours, watched

        await asyncio.wrap_future(engine._worker.submit(watch))
        await until_true(lambda: bool(turns))
        await asyncio.sleep(0.05)
        assert turns == [1]  # after the command, and no other


async def test_a_restless_runner_wakes_an_idle_engine() -> None:
    runner = PipelinedRunner()
    async with loaded(runner) as engine:
        await collect(engine)
        await settled(engine)
        tended = threading.Event()
        tend = runner.tend

        def watched(shortage: int, urgent: bool = False) -> CacheChange | None:
            change = tend(shortage, urgent)
            tended.set()
            return change

        setattr(runner, "tend", watched)  # noqa: B010  an object of ours, watched
        runner.change = CacheChange(CacheShape(4, 20, 400, promised=10), reset=True)
        await asyncio.to_thread(runner.wake)  # from a thread that is not the engine's
        await until(tended)
        assert (await collect(engine))[1].output_tokens == 8
        await settled(engine)
        assert engine.stats().blocks_free + engine.stats().blocks_cached == 10
    runner.wake()  # too late, and no harm


async def test_an_engine_answers_with_several_steps_under_way() -> None:
    alone, together = ScriptedRunner(), PipelinedRunner(depth=3)
    async with loaded(alone) as one, loaded(together) as other:
        wanted = await collect(one)
        found = await asyncio.gather(*(collect(other) for _ in range(6)))
        assert [text for text, _ in found] == [wanted[0]] * 6 and max(together.flights) > 1


async def test_stopping_ends_running_and_waiting_requests_with_an_error() -> None:
    runner = ScriptedRunner()
    gate = Gate(runner, at_step=1)
    engine = Engine(lambda: runner, options=EngineOptions(max_running=1))
    await engine.load()
    tasks = [asyncio.create_task(collect(engine, ENDLESS)) for _ in range(3)]
    tasks.append(asyncio.create_task(engine.embed(EmbeddingRequest(("text",), 100))))
    await until(gate.held)
    preparing = asyncio.create_task(collect(engine, ENDLESS))
    await asyncio.sleep(0)
    engine.stop()
    results = await asyncio.gather(*tasks, preparing, return_exceptions=True)
    assert [type(result) for result in results] == [NodeStopping] * 5
    with pytest.raises(NodeStopping):
        await engine.load()
    with pytest.raises(NodeStopping):
        await collect(engine)
    gate.open()
    assert await engine.close()
    assert len(runner.steps) == 2 and runner.closed == 1
    assert not engine.alive


async def test_stopping_ends_those_who_wait_for_the_load() -> None:
    gate, loading = threading.Event(), threading.Event()
    runner = ScriptedRunner()

    def load() -> ScriptedRunner:
        loading.set()
        gate.wait(60)
        return runner

    engine = Engine(load)
    waiting = asyncio.create_task(engine.load())
    await until(loading)
    engine.stop()
    with pytest.raises(NodeStopping):
        await waiting
    assert not await engine.close(0.01)  # the load cannot be interrupted, and is said to go on
    gate.set()
    assert await engine.close()
    assert runner.closed == 1


async def test_a_thread_that_dies_is_replaced_and_the_answer_goes_on() -> None:
    runner = ScriptedRunner()
    runner.failures = [None, None, SystemExit("killed")]
    async with loaded(runner) as engine:
        text, done = await collect(engine)
        assert text.encode() == bytes(greedy(mixed, b"hi", 8)) and done.output_tokens == 8
        assert engine.stats().restarts == 1 and engine.alive and engine.state == "ready"
        assert len(runner.threads) == 2


async def test_too_many_deaths_fail_the_engine_until_it_is_loaded_again() -> None:
    runners = [ScriptedRunner(), ScriptedRunner()]

    def die(step: Step) -> None:
        raise SystemExit("again")

    runners[0].before_run = die
    broken = runners[0]
    async with engine_of(lambda: runners.pop(0), max_running=1) as engine:
        await engine.load()
        results = await asyncio.gather(*(collect(engine) for _ in range(4)), return_exceptions=True)
        assert all(isinstance(result, GenerationFailed) for result in results)
        assert engine.state == "failed" and "died" in engine.error
        assert engine.stats().restarts == MOST_DEATHS
        with pytest.raises(ModelError, match="died"):
            await collect(engine)
        await engine.load()
        assert broken.closed == 1
        assert (await collect(engine))[1].output_tokens == 8


async def test_the_options_follow_the_device_unless_they_are_set() -> None:
    cpu, cuda = ScriptedRunner(), ScriptedRunner()
    cuda.device = "cuda:0"
    assert EngineOptions().limits(cpu).mixed_step_tokens == 64
    assert EngineOptions().limits(cuda).mixed_step_tokens == 1024
    assert EngineOptions(step_tokens=7, mixed_step_tokens=3).limits(cuda).step_tokens == 7


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("gpu_node.engine.engine", ("torch", "transformers", "tokenizers", "numpy")),
        ("gpu_node.__main__, gpu_node.node, gpu_node.model_store", ("torch", "transformers", "tokenizers")),
    ],
)
def test_importing_the_node_does_not_import_torch(modules: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
