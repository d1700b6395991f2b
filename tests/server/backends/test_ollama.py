"""The Ollama backend: against every recorded answer of real servers, against the fake phone and each of its faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from server.backends.base import Call, Patience
from server.backends.node_http import NodeHttp
from server.backends.ollama import OllamaBackend
from server.errors import NodeBroken, NodeBusy, NodeError, NodeRefused, NodeStalled, NodeUnreachable
from server.exchange import Embedding, NodeDone, NodeEvent, Token
from server.nodes import NodeId, NodeSpec
from tests.fakes.phone import FakePhone
from tests.fakes.phone_faults import Fault
from tests.fakes.phone_settings import FakeModel, PhoneSettings
from tests.server.backends.played_node import Play, bodies, play_of, played, recorded, recording, streamed, whole

PATIENCE = Patience(connect=5, first_token=5, between_tokens=5, total=20)
MODEL = "smollm2:135m"
CALL = Call("chat", MODEL, messages=[{"role": "user", "content": "hi"}])
ASKING = ("/api/chat", "/api/generate", "/api/embed")


@pytest.fixture
async def backend() -> AsyncIterator[OllamaBackend]:
    backend = OllamaBackend(NodeHttp(), {"KEY": "secret"})
    yield backend
    await backend.aclose()


async def read(
    backend: OllamaBackend, spec: NodeSpec, call: Call = CALL, patience: Patience = PATIENCE
) -> tuple[list[NodeEvent], NodeError | None]:
    """All events, and the error that ended them."""
    events: list[NodeEvent] = []
    try:
        async for batch in backend.stream(spec, call, patience):
            events += batch
    except NodeError as error:
        return events, error
    return events, None


def text_of(events: Sequence[NodeEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


def cases() -> list[tuple[str, str]]:
    return [
        (version, name)
        for version in ("0.6", "0.24", "0.33")
        for name in bodies(version)
        if (case := recording(version, name)).get("request", {}).get("path") in ASKING
        and isinstance(case["request"]["body"], dict)
        and "model" in case["request"]["body"]
        and all("text" in chunk for chunk in case["response"].get("chunks", []))
    ]


@pytest.mark.parametrize(("version", "name"), cases())
async def test_every_recorded_answer_has_its_meaning(backend: OllamaBackend, version: str, name: str):
    case = recording(version, name)
    body = case["request"]["body"]
    call = Call(case["request"]["path"].removeprefix("/api/"), body["model"])
    async with played(play_of(case["response"])) as node:
        events, error = await read(backend, node.spec(), call)
    assert _meaning(events, error) == _expected(case["response"])


def _meaning(events: Sequence[NodeEvent], error: NodeError | None) -> tuple[str, Any]:
    if error is not None:
        return type(error).__name__, getattr(error, "status", None)
    done = events[-1]
    assert isinstance(done, NodeDone)
    return "done", (text_of(events), done.reason, done.usage.completion_tokens)


def _expected(response: dict[str, Any]) -> tuple[str, Any]:
    """The same, found in the plainest way."""
    status = int(response["status_line"].split()[1])
    body = response.get("body") or "".join(chunk["text"] for chunk in response["chunks"])
    records = [json.loads(line) for line in body.splitlines() if line.startswith("{")]
    error = next((record["error"] for record in records if "error" in record), "")
    if "must be of type" in error or error.startswith("invalid format"):
        return "NodeRefused", 400
    if 400 <= status < 500 or status == 501:
        return "NodeRefused" if status < 500 else "NodeIncapable", status
    if error or status != 200:
        return "NodeBroken", None
    last = records[-1]
    if "embeddings" in last:
        return "done", ("", "stop", 0)
    if not last.get("done"):
        return "NodeBroken", None
    text = "".join((record.get("message") or {}).get("content", "") or record.get("response", "") for record in records)
    return "done", (text, last["done_reason"], last.get("eval_count", 0))


async def test_the_body_of_a_chat(backend: OllamaBackend):
    call = Call(
        "chat", MODEL, messages=[{"role": "user", "content": "hi"}], options={"seed": 1}, fields={"keep_alive": "5m"}
    )
    async with played(recorded("0.24", "chat-stream")) as node:
        await read(backend, node.spec(), call)
        assert node.body() == {
            "model": MODEL,
            "messages": [{"role": "user", "content": "hi"}],
            "options": {"seed": 1},
            "keep_alive": "5m",
            "stream": True,
        }
        assert node.head().startswith("POST /api/chat HTTP/1.1\r\n")


async def test_the_body_of_a_generate(backend: OllamaBackend):
    call = Call("generate", MODEL, prompt="once", fields={"raw": True})
    async with played(recorded("0.24", "generate-stream")) as node:
        await read(backend, node.spec(), call)
        assert node.body() == {"model": MODEL, "prompt": "once", "raw": True, "stream": True}


async def test_embeddings_come_whole_with_their_counts(backend: OllamaBackend):
    call = Call("embed", MODEL, fields={"input": ["a", "b"]})
    async with played(recorded("0.24", "embed-list")) as node:
        events, error = await read(backend, node.spec(), call)
        assert node.body() == {"model": MODEL, "input": ["a", "b"]}
    assert error is None and isinstance(events[0], Embedding) and isinstance(events[1], NodeDone)
    assert len(events[0].vectors) == 2 and events[1].usage.prompt_tokens == 2


@pytest.mark.parametrize("body", [b"{}", b'{"embeddings":5}', b'{"embeddings":[5]}', b"[]", b"{"])
async def test_an_answer_without_embeddings_is_broken(backend: OllamaBackend, body: bytes):
    async with played(Play([whole(200, body)])) as node:
        _, error = await read(backend, node.spec(), Call("embed", MODEL, fields={"input": "a"}))
    assert isinstance(error, NodeBroken)


async def test_embeddings_of_another_model_are_broken(backend: OllamaBackend):
    async with played(Play([whole(200, b'{"model":"other","embeddings":[[1]]}')])) as node:
        _, error = await read(backend, node.spec(), Call("embed", MODEL, fields={"input": "a"}))
    assert isinstance(error, NodeBroken)


async def test_a_key_goes_to_the_node_that_wants_it_and_nowhere_else(backend: OllamaBackend):
    async with played(recorded("0.24", "chat-stream")) as node:
        await read(backend, node.spec(api_key_env="KEY"))
        assert "Authorization: Bearer secret" in node.head()
        await read(backend, node.spec())
        assert "Authorization" not in node.head()
        _, error = await read(backend, node.spec(api_key_env="MISSING"))
        assert isinstance(error, NodeUnreachable) and len(node.requests) == 2


async def test_each_read_of_the_network_is_one_batch(backend: OllamaBackend):
    one = b'{"message":{"content":"a"},"done":false}\n'
    last = b'{"message":{"content":""},"done":true}\n'
    async with played(Play(streamed(one * 3, one[:7], one[7:] + last), pause=0.02)) as node:
        sizes = [len(batch) async for batch in backend.stream(node.spec(), CALL, PATIENCE)]
    assert sizes == [3, 2]


async def test_a_stream_that_is_closed_hangs_up_on_the_node(backend: OllamaBackend):
    one = b'{"message":{"content":"a"},"done":false}\n'
    async with played(Play(streamed(one, ended=False), then="hang")) as node:
        stream = backend.stream(node.spec(), CALL, PATIENCE)
        assert await anext(stream) == [Token("a")]
        await stream.aclose()
        await node.until_closed()


async def test_a_stream_that_is_left_after_its_last_record_keeps_the_connection(backend: OllamaBackend):
    last = b'{"message":{"content":""},"done":true}\n'
    async with played(Play(streamed(last), then="stay")) as node:
        for _ in range(3):
            stream = backend.stream(node.spec(), CALL, PATIENCE)
            await anext(stream)
            await stream.aclose()
            await asyncio.sleep(0.01)
        assert node.connections == 1


async def test_a_stream_that_ended_well_keeps_the_connection(backend: OllamaBackend):
    async with FakePhone(PhoneSettings()) as phone:
        for _ in range(3):
            assert (await read(backend, spec_of(phone), ask(phone)))[1] is None
        assert phone.counters.connections == 1


# -- the phone ---------------------------------------------------------------------------------------------------------


def spec_of(phone: FakePhone, **fields: Any) -> NodeSpec:
    return NodeSpec(NodeId("p"), "p", "ollama", phone.host, phone.port, **fields)


def ask(phone: FakePhone, **options: Any) -> Call:
    model = phone.settings.models[0].full_name
    return Call("chat", model, messages=[{"role": "user", "content": "hello"}], options={"temperature": 0} | options)


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
        patience = Patience(connect=5, first_token=0.1, between_tokens=0.1, total=20)
        events, error = await read(backend, spec_of(phone), ask(phone), patience)
        assert isinstance(error, NodeStalled) and error.phase == phase
        assert len(events) == (fault.after_tokens or 0)
        await phone.idle()


async def test_bytes_that_make_no_line_are_silence(backend: OllamaBackend):
    """A node that trickles says nothing; only a whole record counts."""
    line = b'{"message":{"content":"a"},"done":false}\n'
    async with played(Play(streamed(line, *[b" "] * 200), then="hang", pause=0.01)) as node:
        patience = Patience(connect=5, first_token=1, between_tokens=0.2, total=20)
        events, error = await read(backend, node.spec(), CALL, patience)
    assert isinstance(error, NodeStalled) and error.phase == "between_tokens" and len(events) == 1


async def test_the_whole_time_is_bounded_too(backend: OllamaBackend):
    line = b'{"message":{"content":"a"},"done":false}\n'
    async with played(Play(streamed(*[line] * 500), then="hang", pause=0.005)) as node:
        patience = Patience(connect=5, first_token=5, between_tokens=5, total=0.1)
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


# -- the short questions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "can_render"), [("0.6.8", False), ("0.24.0", True), ("0.33.0-rc2", True)])
async def test_a_probe_tells_version_models_and_what_is_loaded(backend: OllamaBackend, version: str, can_render: bool):
    settings = PhoneSettings(version=version, models=(FakeModel(), FakeModel("other:1b")))
    async with FakePhone(settings) as phone:
        report = await backend.probe(spec_of(phone), 2.0)
        assert (report.version, report.renders, report.resident) == (version, can_render, ())
        assert [model.name for model in report.models] == [model.full_name for model in settings.models]
        await read(backend, spec_of(phone), ask(phone))
        report = await backend.probe(spec_of(phone), 2.0)
        assert [model.name for model in report.resident] == [settings.models[0].full_name]
        assert phone.counters.connections == 1


@pytest.mark.parametrize(
    ("fault", "paths", "error_type"),
    [
        (Fault.hang(), "tags", NodeStalled),
        (Fault.hang(), "ps", NodeStalled),
        (Fault.error(), "tags", NodeBroken),
        (Fault.error(404, "404 page not found"), "tags", NodeRefused),
        (Fault.reset(), "version", NodeUnreachable),
    ],
)
async def test_a_probe_that_fails(backend: OllamaBackend, fault: Fault, paths: str, error_type: type[NodeError]):
    async with FakePhone(PhoneSettings()) as phone:
        phone.fail(fault, paths=paths)
        with pytest.raises(error_type):
            await backend.probe(spec_of(phone), 0.2)


async def test_the_time_limit_of_a_probe_is_that_of_all_its_questions(backend: OllamaBackend):
    slow = Play([whole(200, b'{"version":"1","models":[]}')], then="stay", pause=0.0)
    late = Play([b"", whole(200, b'{"version":"1","models":[]}')], then="stay", pause=0.15)
    async with played(late, late, late, slow) as node:
        with pytest.raises(NodeStalled):
            await backend.probe(node.spec(), 0.35)


async def test_a_node_without_ps_is_an_old_one(backend: OllamaBackend):
    async with played(
        Play([whole(404, b"404 page not found")], then="stay"),
        Play([whole(200, b'{"models":[{"name":"llama2:7b"}]}')], then="stay"),
        Play([whole(404, b"404 page not found")], then="stay"),
    ) as node:
        report = await backend.probe(node.spec(), 2.0)
    assert (report.version, report.models[0].name, report.resident) == ("", "llama2:7b", ())


@pytest.mark.parametrize("body", [b"<html>", b'{"models":7}', b"7"])
async def test_what_is_no_ollama_is_broken(backend: OllamaBackend, body: bytes):
    async with played(Play([whole(200, b"{}")], then="stay"), Play([whole(200, body)], then="stay")) as node:
        with pytest.raises(NodeBroken):
            await backend.probe(node.spec(), 2.0)


async def test_a_listing_without_end_is_not_read_to_its_end(backend: OllamaBackend):
    chunk = b"x" * (1024 * 1024)
    async with played(Play(streamed(*[chunk] * 12))) as node:
        with pytest.raises(NodeBroken, match="more than"):
            await backend.probe(node.spec(), 5.0)


@pytest.mark.parametrize("operation", ["chat", "generate"])
async def test_a_rendered_prompt_is_told_without_generating(backend: OllamaBackend, operation: Any):
    async with FakePhone(PhoneSettings(version="0.24.0", template="open")) as phone:
        name = phone.settings.models[0].full_name
        call = Call(operation, name, messages=[{"role": "user", "content": "hello"}], prompt="hello")
        if operation == "generate":
            call = Call("generate", name, prompt="hello")
        text = await backend.render(spec_of(phone), call, 2.0)
        assert "hello" in text and phone.log[-1].json["_debug_render_only"] is True


async def test_a_recorded_rendering_is_unescaped(backend: OllamaBackend):
    async with played(recorded("0.33", "chat-render")) as node:
        text = await backend.render(node.spec(), CALL, 2.0)
        assert text.startswith("<|im_start|>user\nWhat is the capital of France?")
        assert node.body() | {"stream": False, "_debug_render_only": True} == node.body()


async def test_a_node_that_generates_instead_of_rendering_is_broken(backend: OllamaBackend):
    async with played(recorded("0.33", "chat-whole")) as node:
        with pytest.raises(NodeBroken, match="does not render"):
            await backend.render(node.spec(), CALL, 2.0)


async def test_a_rendering_that_hangs_is_a_stall_of_its_own_phase(backend: OllamaBackend):
    async with FakePhone(PhoneSettings()) as phone:
        phone.fail(Fault.hang(), paths="render")
        with pytest.raises(NodeStalled) as caught:
            await backend.render(spec_of(phone), ask(phone), 0.1)
        assert caught.value.phase == "render"


async def test_show_describes_a_model_and_refuses_an_unknown_one(backend: OllamaBackend):
    async with FakePhone(PhoneSettings()) as phone:
        found = await backend.show(spec_of(phone), phone.settings.models[0].full_name, 2.0)
        assert "template" in found and "model_info" in found
        with pytest.raises(NodeRefused) as caught:
            await backend.show(spec_of(phone), "nothing:1b", 2.0)
        assert caught.value.status == 404


async def test_a_description_that_is_no_object_is_broken(backend: OllamaBackend):
    async with played(Play([whole(200, b"[]")])) as node:
        with pytest.raises(NodeBroken):
            await backend.show(node.spec(), MODEL, 2.0)
