"""The Ollama backend against the fake phone: whole answers, and each of its ways to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from server.backends.base import Patience
from server.backends.node_http import NodeHttp
from server.backends.ollama import OllamaBackend
from server.errors import NodeBroken, NodeBusy, NodeError, NodeRefused, NodeStalled, NodeUnreachable
from server.exchange import NodeDone, Token
from tests.fakes.phone import FakePhone
from tests.fakes.phone_faults import Fault
from tests.fakes.phone_settings import PhoneSettings
from tests.server.backends.ollama_asking import CALL, PATIENCE, ask, read, spec_of, text_of
from tests.server.backends.played_node import Play, played, streamed


@pytest.fixture
async def backend() -> AsyncIterator[OllamaBackend]:
    backend = OllamaBackend(NodeHttp(), {"KEY": "secret"})
    yield backend
    await backend.aclose()


@pytest.mark.parametrize("version", ["0.6.8", "0.24.0", "0.33.0-rc2"])
async def test_a_phone_answers_whole(backend: OllamaBackend, version: str):
    async with FakePhone(PhoneSettings(version=version)) as phone:
        events, error = await read(backend, spec_of(phone), ask(phone, num_predict=12))
        assert error is None
        done = events[-1]
        assert isinstance(done, NodeDone) and done.usage.completion_tokens == 12 and done.reason == "length"
        assert sum(event.tokens for event in events if isinstance(event, Token)) == 12


@pytest.mark.parametrize(
    ("fault", "error_type"),
    [
        (Fault.refuse(), NodeUnreachable),
        (Fault.reset(), NodeUnreachable),
        (Fault.reset_in_headers(), NodeUnreachable),
        (Fault.reset(5), NodeBroken),
        (Fault.error(), NodeBroken),
        (Fault.error(404, "model 'x' not found"), NodeRefused),
        (Fault.busy(), NodeBusy),
        (Fault.too_many_requests("2"), NodeBusy),
        (Fault.cut(), NodeBroken),
        (Fault.cut(5), NodeBroken),
        (Fault.half_line(5), NodeBroken),
        (Fault.error_line(), NodeBroken),
        (Fault.error_line(5), NodeBroken),
        (Fault.malformed_line(5), NodeBroken),
        (Fault.garbage(), NodeBroken),
        (Fault.garbage(5), NodeBroken),
        (Fault.wrong_model(), NodeBroken),
    ],
    ids=lambda value: f"{value.kind}-{value.after_tokens}-{value.status}" if isinstance(value, Fault) else "",
)
async def test_each_way_to_fail_has_its_error_and_leaves_no_work(
    backend: OllamaBackend, fault: Fault, error_type: type[NodeError]
):
    async with FakePhone(PhoneSettings(tokens_per_second=2000)) as phone:
        phone.fail(fault)
        events, error = await read(backend, spec_of(phone), ask(phone))
        assert type(error) is error_type
        told = sum(event.tokens for event in events if isinstance(event, Token))
        assert told == (fault.after_tokens or 0)
        phone.heal()
        assert (await read(backend, spec_of(phone), ask(phone)))[1] is None
        await phone.idle()


@pytest.mark.parametrize(
    ("fault", "phase"),
    [(Fault.hang(), "first_token"), (Fault.hang_after_headers(), "first_token"), (Fault.hang(3), "between_tokens")],
)
async def test_silence_is_a_stall_of_its_phase(backend: OllamaBackend, fault: Fault, phase: str):
    async with FakePhone(PhoneSettings()) as phone:
        phone.fail(fault)
        short = {phase: 1.5}
        patience = Patience(**{"connect": 60, "first_token": 60, "between_tokens": 60, "total": 60, **short})
        events, error = await read(backend, spec_of(phone), ask(phone), patience)
        assert isinstance(error, NodeStalled) and error.phase == phase
        assert len(events) == (fault.after_tokens or 0)
        await phone.idle()


async def test_bytes_that_make_no_line_are_silence(backend: OllamaBackend):
    """A node that trickles says nothing; only a whole record counts."""
    line = b'{"message":{"content":"a"},"done":false}\n'
    async with played(Play(streamed(line, *[b" "] * 200), then="hang", pause=0.01)) as node:
        patience = Patience(connect=60, first_token=60, between_tokens=0.2, total=60)
        events, error = await read(backend, node.spec(), CALL, patience)
    assert isinstance(error, NodeStalled) and error.phase == "between_tokens" and len(events) == 1


async def test_the_whole_time_is_bounded_too(backend: OllamaBackend):
    line = b'{"message":{"content":"a"},"done":false}\n'
    async with played(Play(streamed(*[line] * 500), then="hang", pause=0.005)) as node:
        patience = Patience(connect=60, first_token=60, between_tokens=60, total=2.0)
        events, error = await read(backend, node.spec(), CALL, patience)
    assert isinstance(error, NodeStalled) and error.phase == "total" and events


async def test_a_phone_that_freezes_for_a_moment_goes_on(backend: OllamaBackend):
    async with FakePhone(PhoneSettings()) as phone:
        phone.fail(Fault.freeze(0.1, after_tokens=3), times=1)
        events, error = await read(backend, spec_of(phone), ask(phone, num_predict=12))
        assert error is None
        plain, _ = await read(backend, spec_of(phone), ask(phone, num_predict=12))
        assert text_of(events) == text_of(plain)


async def test_a_restarted_phone_costs_no_request(backend: OllamaBackend):
    async with FakePhone(PhoneSettings()) as phone:
        assert (await read(backend, spec_of(phone), ask(phone)))[1] is None
        await phone.restart()
        assert (await read(backend, spec_of(phone), ask(phone)))[1] is None


async def test_a_phone_that_leaves_cuts_its_answer(backend: OllamaBackend):
    async with FakePhone(PhoneSettings(tokens_per_second=50)) as phone:
        stream = backend.stream(spec_of(phone), ask(phone), PATIENCE)
        await anext(stream)
        await phone.stop_listening()
        with pytest.raises(NodeBroken):
            async for _ in stream:
                pass
        _, error = await read(backend, spec_of(phone), ask(phone))
        assert isinstance(error, NodeUnreachable) and isinstance(error.__cause__, ConnectionRefusedError)


async def test_a_cancelled_reader_stops_the_phone(backend: OllamaBackend):
    async with FakePhone(PhoneSettings(tokens_per_second=20)) as phone:
        task = asyncio.create_task(read(backend, spec_of(phone), ask(phone)))
        await phone.until(lambda counters: counters.in_flight == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await phone.idle()
