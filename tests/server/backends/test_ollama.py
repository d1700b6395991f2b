"""The Ollama backend against every recorded answer of real servers, and against bytes played to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from server.backends.base import Call
from server.backends.node_http import NodeHttp
from server.backends.ollama import OllamaBackend
from server.errors import NodeBroken, NodeError, NodeRefused, NodeUnreachable
from server.exchange import Embedding, NodeDone, NodeEvent, Token
from tests.fakes.phone import FakePhone
from tests.fakes.phone_settings import PhoneSettings
from tests.server.backends.ollama_asking import CALL, MODEL, PATIENCE, ask, read, spec_of, text_of
from tests.server.backends.played_node import Play, bodies, play_of, played, recorded, recording, streamed, whole
from tests.server.gateway_parts import until

ASKING = ("/api/chat", "/api/generate", "/api/embed")


@pytest.fixture
async def backend() -> AsyncIterator[OllamaBackend]:
    backend = OllamaBackend(NodeHttp(), {"KEY": "secret"})
    yield backend
    await backend.aclose()


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


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"embeddings":5}',
        b'{"embeddings":[5]}',
        b'{"embeddings":[["x"]]}',
        b'{"embeddings":[[1]],"prompt_eval_count":"many"}',
        b"[]",
        b"{",
    ],
)
async def test_an_answer_without_embeddings_is_broken(backend: OllamaBackend, body: bytes):
    async with played(Play([whole(200, body)])) as node:
        _, error = await read(backend, node.spec(), Call("embed", MODEL, fields={"input": "a"}))
    assert isinstance(error, NodeBroken)


async def test_embeddings_of_another_model_are_broken(backend: OllamaBackend):
    async with played(Play([whole(200, b'{"model":"other","embeddings":[[1]]}')])) as node:
        _, error = await read(backend, node.spec(), Call("embed", MODEL, fields={"input": "a"}))
    assert isinstance(error, NodeBroken)


async def test_a_request_that_can_be_read_but_not_written_is_refused(backend: OllamaBackend):
    deep = json.loads("[" * 300 + "]" * 300)
    async with played(Play([whole(200, b"{}")])) as node:
        _, error = await read(backend, node.spec(), Call("chat", MODEL, fields={"format": deep}))
        assert isinstance(error, NodeRefused) and error.status == 400 and not node.requests


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
            await until(lambda: any(backend._http._idle.values()))
        assert node.connections == 1


async def test_a_stream_that_ended_well_keeps_the_connection(backend: OllamaBackend):
    async with FakePhone(PhoneSettings()) as phone:
        for _ in range(3):
            assert (await read(backend, spec_of(phone), ask(phone)))[1] is None
        assert phone.counters.connections == 1
