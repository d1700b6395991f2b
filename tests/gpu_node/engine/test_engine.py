"""One terminal event a request, whatever it asks for, and nothing left behind when a client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

import pytest

from gpu_node.engine.engine import Engine
from gpu_node.engine.sequence import (
    Bounds,
    ChatPrompt,
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
from gpu_node.errors import (
    ContextExceeded,
    DeadlineExceeded,
    GenerationFailed,
    NodeBusy,
    RequestError,
)
from tests.fakes.scripted_runner import ByteVocabulary, ScriptedRunner, mixed, written_out
from tests.gpu_node.engine.desk import greedy
from tests.gpu_node.engine.loaded_engine import (
    ENDLESS,
    REQUEST,
    Gate,
    collect,
    loaded,
    settled,
    until,
)
from tests.gpu_node.serving import until_true


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
        await until_true(lambda: engine._worker._commands.qsize() == 5)
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
        refused, waiting = set(), set(tasks)
        while len(refused) < 3:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            refused |= done
        assert all(isinstance(task.exception(), NodeBusy) for task in refused)
        gate.open()
        await asyncio.gather(*tasks, return_exceptions=True)
        await settled(engine)


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
        await until_true(lambda: not engine.stats().running)
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
