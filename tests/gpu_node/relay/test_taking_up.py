"""Answers that are taken up after a cut, or where others have left them: nothing is lost and nothing told twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_node.engine.cache_size import CacheOptions
from gpu_node.relay.presence import SessionTerms
from tests.fakes.scripted_runner import ScriptedRunner, mixed
from tests.gpu_node.engine.loaded_engine import Gate, until
from tests.gpu_node.relay.relayed import Alarm, Heard, answer, failure, generate, hear, real, scripted, until_true
from tests.gpu_node.serving import NAME
from transport.errors import ConnectionLost, Refused
from wire.messages_session import ErrorCode
from wire.messages_work import Bounds, Given, JsonGuide, Sampling

GREEDY = Sampling(temperature=0.0)
SEEDED = Sampling(temperature=1.0, seed=11, repeat_penalty=1.3, presence_penalty=0.2)
JOB = b"one answer"


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED])
async def test_a_cut_answer_is_taken_up_without_loss_or_repeat(sampling: Sampling) -> None:
    runner = ScriptedRunner(mixed)
    async with real(lambda: runner) as here:
        link = await here.connect()
        request = generate("tell", sampling=sampling, bounds=Bounds(max_tokens=40))
        whole = await answer(link, request)
        gate = Gate(runner, at_step=12)
        request = replace(request, job=JOB)
        heard = await hear(await link.open(request), most=7)
        await until(gate.held)
        await here.cut(link)
        gate.open()
        again = await here.connect(link.welcome.session_key)
        assert again.welcome.resumed and again.welcome.session_key == link.welcome.session_key
        await hear(await again.open(replace(request, next_index=heard.next_index)), heard)
        assert (heard.ids(), heard.text()) == (whole.ids(), whole.text())
        assert [one.index for one in heard.tokens] == list(range(len(heard.tokens)))
        assert heard.done is not None and heard.done.context == whole.done.context  # type: ignore[union-attr]


async def test_an_answer_goes_on_while_nobody_is_connected_and_is_kept_until_it_is_heard() -> None:
    async with scripted() as (here, fleet):
        script = fleet.script(NAME)
        script.hold_at = 1
        link = await here.connect()
        request = generate(job=JOB)
        heard = await hear(await link.open(request), most=1)
        await here.cut(link)
        script.go_on.set()
        session = here.sessions.all[0]
        await until_true(lambda: not script.running and not session.jobs.running)
        assert (session.state, len(session.jobs), session.jobs.running) == ("cut", 1, 0)
        for _ in range(2):  # also twice, when the end itself was lost
            link = await here.connect(session.key)
            rest = await hear(await link.open(replace(request, next_index=heard.next_index)))
            assert heard.text() + rest.text() == "one two three"
            await here.cut(link)
        assert script.told == 3


async def test_without_a_job_a_cut_ends_the_answer() -> None:
    async with scripted() as (here, fleet):
        fleet.script(NAME).hold_at = 1
        link = await here.connect()
        await hear(await link.open(generate()), most=1)
        await here.cut(link)
        await until_true(lambda: not fleet.script(NAME).running)
        assert fleet.script(NAME).told == 1


async def test_two_streams_want_one_answer_and_the_later_gets_it() -> None:
    async with scripted() as (here, fleet):
        fleet.script(NAME).hold_at = 1
        link = await here.connect()
        request = generate(job=JOB)
        first = await link.open(request)
        heard = await hear(first, most=1)
        second = await link.open(replace(request, next_index=1))
        with pytest.raises(Refused, match="another stream"):
            await hear(first)
        fleet.script(NAME).go_on.set()
        await hear(second, heard)
        assert heard.text() == "one two three"


@pytest.mark.parametrize("at", [0, 3, 11, 12])
async def test_what_was_given_elsewhere_is_gone_on_from(at: int) -> None:
    async with real(lambda: ScriptedRunner(mixed)) as here:
        link = await here.connect()
        request = generate("tell", sampling=SEEDED, bounds=Bounds(max_tokens=12))
        whole = await answer(link, request)
        text = "".join(one.text for one in whole.tokens[:at])
        given = Given(tuple(whole.ids()[:at]), len(text.encode()))
        rest = await answer(link, replace(request, given=(given,), job=JOB, next_index=at))
        assert text + rest.text() == whole.text() and [*given.ids, *rest.ids()] == whole.ids()
        assert [(one.index, one.position) for one in rest.tokens] == [(number, number) for number in range(at, 12)]
        assert rest.done is not None and rest.done.index == 12


async def test_a_job_is_its_sessions_own() -> None:
    async with scripted() as (here, _):
        first, second = await here.connect(), await here.connect()
        await answer(first, generate(job=JOB))
        error = await failure(second, generate(job=JOB, next_index=2))
        assert isinstance(error, Refused) and error.code is ErrorCode.SESSION_GONE
        other = await failure(first, generate("another question", job=JOB))
        assert isinstance(other, Refused) and other.details["field"] == "job"
        late = await failure(first, generate(job=JOB, next_index=9))
        assert isinstance(late, Refused) and late.details["field"] == "next_index"


async def test_what_failed_before_its_first_word_may_be_tried_again() -> None:
    async with scripted() as (here, fleet):
        script = fleet.script(NAME)
        script.fail_at = 0
        link = await here.connect()
        error = await failure(link, generate(job=JOB))
        assert isinstance(error, Refused) and error.code is ErrorCode.GENERATION_FAILED
        script.fail_at = None
        assert (await answer(link, generate(job=JOB))).text() == "one two three"


async def test_a_failure_in_the_middle_is_told_to_who_comes_back() -> None:
    async with scripted() as (here, fleet):
        script = fleet.script(NAME)
        script.hold_at = script.fail_at = 2
        link = await here.connect()
        heard = await hear(await link.open(generate(job=JOB)), most=1)
        await until_true(script.held.is_set)
        await here.cut(link)
        script.go_on.set()
        await until_true(lambda: not here.sessions.all[0].jobs.running)
        link = await here.connect(link.welcome.session_key)
        stream = await link.open(generate(job=JOB, next_index=1))
        with pytest.raises(Refused, match="the script says so"):
            await hear(stream, heard)
        assert heard.text() == "one two "


async def test_a_session_that_is_over_ends_its_answers() -> None:
    alarm = Alarm()
    async with scripted(terms=SessionTerms(grace_seconds=30), times=alarm.times) as (here, fleet):
        fleet.script(NAME).hold_at = 1
        link = await here.connect()
        await hear(await link.open(generate(job=JOB)), most=1)
        await here.cut(link)
        await alarm.advance(29.9)
        assert fleet.script(NAME).running == 1
        await alarm.advance(0.2)
        await until_true(lambda: not fleet.script(NAME).running and not here.sessions.all)
        link = await here.connect(link.welcome.session_key)
        assert not link.welcome.resumed
        error = await failure(link, generate(job=JOB, next_index=1))
        assert isinstance(error, Refused) and error.code is ErrorCode.SESSION_GONE


async def test_the_real_model_goes_on_exactly(tiny_folder: Path) -> None:
    from gpu_node.engine.loader import LoadOptions, load_runner

    def load():
        return load_runner(tiny_folder, LoadOptions(device="cpu", dtype="float32", cache=CacheOptions(block_count=64)))

    async with real(load) as here:
        link = await here.connect()
        for sampling in (GREEDY, SEEDED, replace(SEEDED, guide=JsonGuide('{"type": "array"}'))):
            request = generate("the quick", sampling=sampling, bounds=Bounds(64, max_tokens=90), stop=("qqq",))
            whole = await answer(link, request)
            half = len(whole.tokens) // 2
            heard = Heard(whole.tokens[:half])
            given = Given(tuple(heard.ids()), len(heard.text().encode()))
            rest = await answer(link, replace(request, given=(given,)))
            assert heard.text() + rest.text() == whole.text()
            assert heard.ids() + rest.ids() == whole.ids()


async def test_a_lost_connection_is_told_to_who_listens() -> None:
    async with scripted() as (here, fleet):
        fleet.script(NAME).hold_at = 1
        link = await here.connect()
        stream = await link.open(generate())
        listening = asyncio.create_task(hear(stream))
        await until_true(lambda: fleet.script(NAME).held.is_set())
        await here.cut(link)
        with pytest.raises(ConnectionLost):
            await listening
