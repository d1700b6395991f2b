"""Loading once for all who wait, one terminal event a request, and ends that leave nothing running."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from gpu_node.engine.engine import Engine, EngineOptions
from gpu_node.engine.sequence import (
    Bounds,
    ChatPrompt,
    Done,
    EmbeddingRequest,
    GenerationRequest,
    InferenceRequest,
    Message,
    RawPrompt,
    RegexGuide,
    SamplingOptions,
    Token,
    TokenPrompt,
)
from gpu_node.engine.step import Step
from gpu_node.engine.worker import MOST_DEATHS
from gpu_node.errors import (
    ContextExceeded,
    DeadlineExceeded,
    DeviceOutOfMemory,
    GenerationFailed,
    ModelError,
    NodeBusy,
    NodeStopping,
    RequestError,
)
from tests.fakes.scripted_runner import ByteVocabulary, ScriptedRunner, mixed, written_out
from tests.gpu_node.engine.desk import greedy

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
        assert self._go_on.wait(10)

    def open(self) -> None:
        self._go_on.set()


@asynccontextmanager
async def engine_of(load: Callable[[], ScriptedRunner], **options: object) -> AsyncIterator[Engine]:
    engine = Engine(load, options=EngineOptions(**options))
    try:
        yield engine
    finally:
        assert await engine.close()


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
    assert await asyncio.to_thread(event.wait, 5)


async def settled(engine: Engine) -> None:
    """Nobody is left in the core, once the thread has heard of everything."""
    for _ in range(500):
        stats = engine.stats()
        if not stats.running + stats.waiting:
            break
        await asyncio.sleep(0.002)
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    assert not engine.busy


async def test_tokens_come_then_one_done() -> None:
    async with loaded(ScriptedRunner(written_out("one two three"))) as engine:
        assert engine.state == "ready"
        text, done = await collect(engine, ENDLESS)
        assert text == "one two three"
        assert (done.reason, done.output_tokens) == ("stop", 14)
        await settled(engine)


async def test_requests_are_answered_together() -> None:
    runner = ScriptedRunner()
    gate = Gate(runner, at_step=1)
    async with loaded(runner) as engine:
        first = asyncio.create_task(collect(engine))
        await until(gate.held)
        others = [
            asyncio.create_task(collect(engine, replace(REQUEST, prompt=RawPrompt(f"q{number}"))))
            for number in range(5)
        ]
        await asyncio.sleep(0.02)
        gate.open()
        results = await asyncio.gather(first, *others)
        assert results[0][0].encode() == bytes(greedy(mixed, b"hi", 8))
        for number, (text, _) in enumerate(results[1:]):
            assert text.encode() == bytes(greedy(mixed, f"q{number}".encode(), 8))
        assert max(len(step.rows) for step in runner.steps) > 1
        assert len(runner.threads) == 1
        await settled(engine)


async def test_a_thousand_requests() -> None:
    async with loaded(ScriptedRunner(blocks=256), max_running=64, max_waiting=1000) as engine:
        requests = [replace(REQUEST, prompt=RawPrompt(f"request {number}")) for number in range(1000)]
        results = await asyncio.gather(*(collect(engine, request) for request in requests))
        for number in (0, 499, 999):
            assert results[number][0].encode() == bytes(greedy(mixed, f"request {number}".encode(), 8))
        assert engine.stats().done == 1000
        await settled(engine)


async def test_more_than_fit_into_the_line_are_refused_at_once() -> None:
    runner = ScriptedRunner()
    gate = Gate(runner)
    async with loaded(runner, max_running=1, max_waiting=2) as engine:
        tasks = [asyncio.create_task(collect(engine)) for _ in range(6)]
        await until(gate.held)
        refused, _ = await asyncio.wait(tasks, timeout=0.1)
        assert len(refused) >= 3
        assert all(isinstance(task.exception(), NodeBusy) for task in refused)
        gate.open()
        await asyncio.gather(*tasks, return_exceptions=True)
        await settled(engine)


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


async def test_leaving_early_stops_the_work_before_the_next_step() -> None:
    runner = ScriptedRunner()
    gate = Gate(runner, at_step=3)
    async with loaded(runner) as engine:
        async with aclosing(engine.generate(ENDLESS)) as events:
            async for event in events:
                assert isinstance(event, Token)
                await until(gate.held)
                break
        gate.open()
        await settled(engine)
        assert len(runner.steps) == 4
        assert engine.stats().cancelled == 1


@pytest.mark.parametrize("turns", range(12))
async def test_a_client_that_leaves_at_any_moment_leaves_nothing_behind(turns: int) -> None:
    async with loaded(ScriptedRunner()) as engine:
        stays = asyncio.create_task(collect(engine))
        tasks = [
            asyncio.create_task(collect(engine, replace(ENDLESS, samples=2))),
            asyncio.create_task(engine.embed(EmbeddingRequest(("text",) * 30, 100))),
            asyncio.create_task(engine.infer(InferenceRequest(tuple(b"text")))),
        ]
        for _ in range(turns):
            await asyncio.sleep(0.0005 if turns % 3 == 2 else 0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await stays)[1].output_tokens == 8
        await settled(engine)


async def test_an_error_in_the_clients_own_loop_body_ends_its_request() -> None:
    async with loaded(ScriptedRunner()) as engine:
        with pytest.raises(ZeroDivisionError):
            async with aclosing(engine.generate(ENDLESS)) as events:
                async for _ in events:
                    raise ZeroDivisionError
        await settled(engine)


def test_a_loop_that_is_closed_in_the_middle_harms_nobody() -> None:
    runner = ScriptedRunner()
    engine = Engine(lambda: runner)

    def leave_abruptly() -> None:
        loop = asyncio.new_event_loop()
        events = engine.generate(ENDLESS)
        loop.run_until_complete(anext(events))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        kept.append(events)

    async def go_on() -> None:
        assert (await collect(engine))[1].output_tokens == 8
        for _ in range(200):
            if not engine.stats().running:
                break
            await asyncio.sleep(0.005)
        assert engine.stats().running == 0
        assert await engine.close()

    kept: list[object] = []
    with asyncio.Runner() as first:
        first.run(engine.load())
        leave_abruptly()
        first.run(go_on())


async def test_a_request_that_fails_leaves_the_engine_alive() -> None:
    runner = ScriptedRunner()
    async with loaded(runner) as engine:
        runner.poison = {ord("!"): lambda: RuntimeError("the script says so")}
        with pytest.raises(GenerationFailed, match="the script says so"):
            await collect(engine, replace(REQUEST, prompt=RawPrompt("no!")))
        assert (await collect(engine))[1].output_tokens == 8
        with pytest.raises(GenerationFailed):
            await engine.embed(EmbeddingRequest(("no!",), 100))
        await settled(engine)


async def test_a_clients_mistake_comes_as_it_is() -> None:
    async with loaded(ScriptedRunner(), max_running=4, max_inference_bytes=5000) as engine:
        narrow = Bounds(10, truncate=False)
        mistakes: list[tuple[type[Exception], GenerationRequest]] = [
            (ContextExceeded, replace(REQUEST, prompt=RawPrompt("x" * 50), bounds=narrow)),
            (ContextExceeded, replace(REQUEST, prompt=RawPrompt("x" * 50_000), bounds=narrow)),
            (ContextExceeded, replace(REQUEST, prompt=TokenPrompt((1,) * 101))),
            (RequestError, replace(REQUEST, prompt=TokenPrompt((1, 999)))),
            (RequestError, replace(REQUEST, prompt=RawPrompt(""))),
            (RequestError, replace(REQUEST, samples=0)),
            (RequestError, replace(REQUEST, samples=5)),
            (RequestError, replace(REQUEST, sampling=SamplingOptions(logit_bias=((999, 1.0),)))),
            (RequestError, replace(REQUEST, sampling=SamplingOptions(guide=RegexGuide("a+")))),
            (DeadlineExceeded, replace(REQUEST, deadline=engine.clock() - 1)),
        ]
        for error, request in mistakes:
            with pytest.raises(error):
                await collect(engine, request)
        with pytest.raises(ContextExceeded):
            await engine.embed(EmbeddingRequest(("x" * 50,), 10, truncate=False))
        with pytest.raises(RequestError, match="empty"):
            await engine.embed(EmbeddingRequest(("text", ""), 10))
        for ids in ((), (999,), (1,) * 1000, (1,) * 20):
            with pytest.raises(RequestError):
                await engine.infer(InferenceRequest(ids))
        assert (await engine.infer(InferenceRequest((1,) * 20, last_only=True))).shape == (1, 257)
        assert (await engine.embed(EmbeddingRequest((), 10))).vectors == ()
        await settled(engine)


async def test_an_absurdly_long_prompt_is_refused_before_it_is_tokenised() -> None:
    class Counting(ByteVocabulary):
        def encode(self, text: str) -> list[int]:
            raise AssertionError("never asked")

    async with loaded(ScriptedRunner(vocabulary=Counting()), max_prompt_characters=1000) as engine:
        with pytest.raises(ContextExceeded):
            await collect(engine, replace(REQUEST, prompt=RawPrompt("x" * 1001)))
        with pytest.raises(ContextExceeded):
            await engine.embed(EmbeddingRequest(("x" * 1001,), 100))


async def test_a_tokenizer_that_breaks_fails_its_request_only() -> None:
    class Broken(ByteVocabulary):
        def encode(self, text: str) -> list[int]:
            if "!" in text:
                raise UnicodeError("not this")
            return super().encode(text)

    async with loaded(ScriptedRunner(vocabulary=Broken())) as engine:
        with pytest.raises(GenerationFailed, match="not this"):
            await collect(engine, replace(REQUEST, prompt=RawPrompt("no!")))
        with pytest.raises(GenerationFailed, match="not this"):
            await engine.embed(EmbeddingRequest(("no!",), 100))
        assert (await collect(engine))[1].output_tokens == 8


async def test_a_context_longer_than_the_cache_is_cut_to_it() -> None:
    async with loaded(ScriptedRunner(blocks=8)) as engine:
        request = replace(REQUEST, prompt=RawPrompt("x" * 100), bounds=Bounds(4096, max_tokens=50))
        _, done = await collect(engine, request)
        assert (done.prompt_tokens, done.output_tokens) == (32, 50)
        await settled(engine)


async def test_guides_are_made_once_a_model_and_one_a_sample() -> None:
    made, started = list[object](), list[str]()

    class AnyLetter:
        finished = False

        def mask(self) -> bytes:
            return (1 << ord("z")).to_bytes(33, "little")

        def accept(self, token_id: int) -> None:
            assert token_id == ord("z")

    def guides(runner: object) -> Callable[[RegexGuide], AnyLetter]:
        made.append(runner)

        def start(guide: RegexGuide) -> AnyLetter:
            started.append(guide.pattern)
            if guide.pattern == "(":
                raise RequestError("no such pattern")
            return AnyLetter()

        return start

    runner = ScriptedRunner()
    engine = Engine(lambda: runner, guides=guides)
    await engine.load()
    guided = replace(REQUEST, samples=2, sampling=SamplingOptions(temperature=1, guide=RegexGuide("z*")))
    assert (await collect(engine, guided))[0] == "z" * 16
    await collect(engine, guided)
    with pytest.raises(RequestError, match="no such pattern"):
        await collect(engine, replace(guided, sampling=SamplingOptions(guide=RegexGuide("("))))
    assert made == [runner] and started == ["z*"] * 4 + ["("]
    assert await engine.close()


async def test_embeddings_and_inference_come_back_while_answers_run() -> None:
    runner = ScriptedRunner()
    async with loaded(runner) as engine:
        running = asyncio.create_task(collect(engine))
        embeddings = await engine.embed(EmbeddingRequest(("aa", "a" * 500), 100, normalise=False))
        assert embeddings.vectors == ((97.0, 0.5, 1.0, 0.0), (97.0, 49.5, 1.0, 0.0))
        assert embeddings.prompt_tokens == 102
        assert (await engine.infer(InferenceRequest(tuple(b"abc"), "hidden"))).shape == (3, 4)
        await running


async def test_rendering_does_not_wait_for_the_step_under_way() -> None:
    runner = ScriptedRunner()
    gate = Gate(runner)
    async with loaded(runner) as engine:
        running = asyncio.create_task(collect(engine))
        await until(gate.held)
        text = await engine.render(ChatPrompt((Message("user", "q"),)), Bounds(100))
        assert text == "<user>q\n<assistant>"
        gate.open()
        await running


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
        await asyncio.sleep(0.05)
        assert turns == [1]  # after the command, and no other


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
    gate = threading.Event()
    runner = ScriptedRunner()

    def load() -> ScriptedRunner:
        gate.wait(5)
        return runner

    engine = Engine(load)
    waiting = asyncio.create_task(engine.load())
    await asyncio.sleep(0.01)
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
