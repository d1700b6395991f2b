"""Answers over the protocol: told as they are written, cancelled, refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fakes.scripted_runner import ScriptedRunner, mixed, written_out
from tests.gpu_node.relay.relayed import Heard, answer, failure, generate, hear, real, scripted, until_true
from tests.gpu_node.scripted import Script
from tests.gpu_node.serving import NAME, Fleet
from transport.errors import Refused
from wire.messages_session import ErrorCode
from wire.messages_work import (
    Bounds,
    ChatMessage,
    ChatPrompt,
    FinishReason,
    Generate,
    Given,
    LogitBias,
    Phase,
    RegexGuide,
    Sampling,
    TokenPrompt,
)

GREEDY = Sampling(temperature=0.0)
SEEDED = Sampling(temperature=1.0, seed=11, repeat_penalty=1.3, presence_penalty=0.2)
JOB = b"one answer"


async def test_an_answer_comes_in_numbered_pieces_and_one_done() -> None:
    async with real(lambda: ScriptedRunner(written_out("two words", after="say"))) as here:
        link = await here.connect()
        heard = await answer(link, generate("say", sampling=GREEDY))
        assert heard.text() == "two words"
        assert [one.index for one in heard.tokens] == list(range(9))
        assert [one.position for one in heard.tokens] == list(range(9))
        done = heard.done
        assert done is not None
        assert (done.index, done.reason, done.prompt_tokens, done.output_tokens) == (9, FinishReason.STOP, 3, 10)
        assert bytes(done.context) == b"saytwo words"
        await until_true(lambda: not here.host.slots.busy)


async def test_samples_come_on_one_stream_each_with_its_positions() -> None:
    async with real(lambda: ScriptedRunner(mixed)) as here:
        link = await here.connect()
        heard = await answer(link, generate(sampling=SEEDED, samples=3, bounds=Bounds(max_tokens=5)))
        assert heard.done is not None and heard.done.reasons == (FinishReason.LENGTH,) * 3
        for sample in range(3):
            assert [one.position for one in heard.tokens if one.sample == sample] == list(range(5))
        assert len({heard.text(sample) for sample in range(3)}) == 3


async def test_cancel_ends_the_work_and_forgets_the_job() -> None:
    async with scripted() as (here, fleet):
        script = fleet.script(NAME)
        script.hold_at = 1
        link = await here.connect()
        for job in (b"", JOB):
            stream = await link.open(generate(job=job))
            await hear(stream, most=1)
            stream.cancel()
            await stream.wait_over()
            await until_true(lambda: not script.running)
            assert len(here.session(link).jobs) == 0
        assert script.told == 2


async def test_many_that_are_cancelled_at_once_leave_nothing() -> None:
    async with scripted() as (here, fleet):
        link = await here.connect()
        for number in range(50):
            stream = await link.open(generate(job=bytes([number]) if number % 2 else b""))
            stream.cancel()
        await link.ping()
        session = here.session(link)
        await until_true(lambda: not session.tasks and not fleet.script(NAME).running)
        assert not len(session.jobs) and here.server.figures.streams == 0
        assert (await answer(link, generate())).text() == "one two three"


async def test_loading_is_told_while_it_lasts() -> None:
    fleet = Fleet()
    async with scripted(fleet) as (here, _):
        script = fleet.script(NAME)
        await here.residents.unload(here.host)
        script.load_gate.clear()
        link = await here.connect()
        stream = await link.open(generate(job=JOB))
        heard = Heard()
        heard.add(await stream.message())
        assert heard.progress[0].phase in (Phase.WAITING, Phase.READING)
        script.load_gate.set()
        await hear(stream, heard)
        assert heard.text() == "one two three" and heard.done is not None and heard.done.load_ns > 0


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        (Generate("nobody", TokenPrompt((1,))), ErrorCode.MODEL_NOT_FOUND, "model"),
        (generate(priority=2000), ErrorCode.BAD_REQUEST, "priority"),
        (generate(sampling=Sampling(repeat_penalty=0.0)), ErrorCode.BAD_REQUEST, "repeat_penalty"),
        (generate(next_index=3), ErrorCode.BAD_REQUEST, "next_index"),
        (generate(samples=100), ErrorCode.BAD_REQUEST, None),
        (generate(sampling=Sampling(logit_bias=(LogitBias(99999, 1.0),))), ErrorCode.BAD_REQUEST, None),
        (generate("x" * 2000, bounds=Bounds(context_tokens=20, truncate=False)), ErrorCode.CONTEXT_EXCEEDED, None),
        (generate(deadline_ms=0), ErrorCode.DEADLINE_EXCEEDED, None),
        (generate(given=(Given((9999,)),)), ErrorCode.BAD_REQUEST, "given"),
        (generate(given=(Given((97,), 2),)), ErrorCode.BAD_REQUEST, "given"),
        (generate(given=(Given(),), render_only=True), ErrorCode.BAD_REQUEST, "given"),
    ],
)
@pytest.mark.parametrize("job", [b"", JOB])
async def test_what_cannot_be_honoured_is_refused(
    request_: Generate, code: ErrorCode, field: str | None, job: bytes
) -> None:
    if job and request_.next_index:
        return
    try:
        request_ = replace(request_, job=job)
    except ValueError:
        return
    async with real(lambda: ScriptedRunner(mixed)) as here:
        link = await here.connect()
        error = await failure(link, request_)
        assert isinstance(error, Refused) and error.code is code, error
        assert error.details.get("field") == field
        assert (await answer(link, generate(bounds=Bounds(max_tokens=2)))).done is not None


async def test_a_full_queue_says_when_to_come_again() -> None:
    async with scripted(Fleet(max_waiting=0)) as (here, fleet):
        fleet.script(NAME).hold_at = 0
        link = await here.connect()
        for _ in range(2):
            await link.open(generate())
        await until_true(lambda: here.host.slots.inside == 2)
        error = await failure(link, generate())
        assert isinstance(error, Refused) and (error.code, error.retry_after_ms) == (ErrorCode.BUSY, 1000)


async def test_a_deadline_passes_while_the_model_comes() -> None:
    async with scripted() as (here, fleet):
        await here.residents.unload(here.host)
        fleet.script(NAME).load_gate.clear()
        link = await here.connect()
        error = await failure(link, generate(deadline_ms=20))
        assert isinstance(error, Refused) and error.code is ErrorCode.DEADLINE_EXCEEDED
        fleet.script(NAME).load_gate.set()
        await until_true(lambda: here.host.ready)


async def test_every_field_reaches_the_engine() -> None:
    async with scripted() as (here, fleet):
        link = await here.connect()
        sampling = Sampling(
            0.5, 7, 0.6, 0.1, 1.2, 0.3, 0.4, 5, 42, 0.7, (LogitBias(65, -1.5),), 2, RegexGuide("a+")
        )  # fmt: skip
        request = Generate(
            NAME, ChatPrompt((ChatMessage("user", "hi"),), (104,)), sampling,
            Bounds(50, 9, 3, False, False, 2, True), ("stop", "stop", "end"), 2, 5, 60_000, "ann", "salt",
            keep_alive_seconds=77.0,
        )  # fmt: skip
        await answer(link, request)
        asked = fleet.script(NAME).requests[-1]
        told = asked.sampling
        assert (told.temperature, told.top_k, told.top_p, told.min_p, told.repeat_penalty) == (0.5, 7, 0.6, 0.1, 1.2)
        assert (told.presence_penalty, told.frequency_penalty, told.repeat_last_n, told.seed) == (0.3, 0.4, 5, 42)
        assert (told.typical_p, told.logit_bias, told.logprobs) == (0.7, ((65, -1.5),), 2)
        assert told.guide is not None and told.guide.pattern == "a+"  # type: ignore[union-attr]
        bounds = asked.bounds
        assert (bounds.context_tokens, bounds.max_tokens, bounds.keep_tokens) == (50, 9, 3)
        assert (bounds.truncate, bounds.shift, bounds.min_tokens, bounds.ignore_end) == (False, False, 2, True)
        assert (asked.stop, asked.samples, asked.priority) == (("stop", "end"), 2, 5)
        assert asked.deadline is not None and asked.prompt.context == (104,)  # type: ignore[union-attr]
        assert asked.caller.endswith("ann") and asked.caller.startswith(here.session(link).owner)
        assert here.host.seconds_left == 77.0


async def test_prompts_are_shared_only_by_who_names_the_same_salt() -> None:
    async with scripted() as (here, fleet):
        links = [await here.connect() for _ in range(2)]
        for link in links:
            await answer(link, generate())
            await answer(link, generate(cache_salt="team"))
        salts = [request.cache_salt for request in fleet.script(NAME).requests]
        assert salts[0] != salts[2] and salts[1] == salts[3] and "" not in salts
        callers = [request.caller for request in fleet.script(NAME).requests]
        assert callers[0] != callers[2]


async def test_likelihoods_come_with_their_tokens_texts() -> None:
    async with scripted() as (here, _):
        link = await here.connect()
        heard = await answer(link, generate(sampling=Sampling(logprobs=2)))
        first = heard.tokens[0]
        assert [one.chosen.text for one in first.logprobs] == ["o", "n", "e", " "]
        assert [one.text for one in first.logprobs[0].top] == ["a", "b"]
        assert first.logprobs[0].chosen.logprob == -0.5


async def test_a_prompt_is_only_rendered() -> None:
    async with scripted() as (here, fleet):
        link = await here.connect()
        prompt = ChatPrompt((ChatMessage("user", "hi"),))
        for job in (b"", JOB):
            heard = await answer(link, Generate(NAME, prompt, render_only=True, job=job))
            assert heard.text() == "<user>hi\n<assistant>" and heard.done is not None
            assert heard.done.output_tokens == 0
        assert not fleet.script(NAME).requests


async def test_a_long_rendering_takes_several_frames() -> None:
    async with scripted() as (here, _):
        link = await here.connect()
        text = "é" * 400_000
        heard = await answer(link, generate(text, render_only=True, bounds=Bounds()))
        assert heard.text() == text and len(heard.tokens) > 1


async def test_a_reader_that_is_slow_loses_nothing_and_stalls_nobody() -> None:
    words = [f"word {number} " * 20 for number in range(3000)]
    async with scripted(Fleet(scripts={NAME: Script(words)})) as (here, _):
        link = await here.connect()
        slow = await link.open(generate(job=JOB))
        assert (await answer(link, generate(bounds=Bounds(max_tokens=3)))).text() == "".join(words[:3])
        assert (await hear(slow)).text() == "".join(words)
