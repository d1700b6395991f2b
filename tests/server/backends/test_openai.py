"""The backend for OpenAI's API: a played vLLM or llama-server on the other side of a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from server.backends.base import Call, Patience
from server.backends.node_http import NodeHttp
from server.backends.openai import OpenAIBackend, context_of, listing_of
from server.errors import NodeBroken, NodeBusy, NodeError, NodeIncapable, NodeRefused, NodeStalled, NodeUnreachable
from server.exchange import Embedding, NodeDone, NodeEvent, Token
from server.nodes import NodeSpec
from tests.server.backends.played_node import Play, played, recorded, streamed, whole
from tests.server.gateway_parts import until

PATIENCE = Patience(connect=60, first_token=60, between_tokens=60, total=60)
CALL = Call("chat", "m", messages=[{"role": "user", "content": "hi"}])
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
MODELS = {"object": "list", "data": [{"id": "Qwen/Qwen2.5-1.5B", "created": 1_700_000_000, "max_model_len": 4096}]}


@pytest.fixture
async def backend() -> AsyncIterator[OpenAIBackend]:
    backend = OpenAIBackend(NodeHttp(), {"KEY": "secret"})
    yield backend
    await backend.aclose()


async def read(
    backend: OpenAIBackend, spec: NodeSpec, call: Call = CALL, patience: Patience = PATIENCE
) -> tuple[list[NodeEvent], NodeError | None]:
    events: list[NodeEvent] = []
    try:
        async for batch in backend.stream(spec, call, patience):
            events += batch
    except NodeError as error:
        return events, error
    return events, None


def json_answer(value: Any) -> Play:
    return Play([whole(200, orjson.dumps(value))], then="stay")


async def test_a_chat(backend: OpenAIBackend):
    async with played(Play(streamed(TOKEN, TOKEN, END), then="stay")) as node:
        events, error = await read(backend, node.spec(kind="openai", api_key_env="KEY"))
        assert error is None and events[:-1] == [Token("a"), Token("a")]
        done = events[-1]
        assert isinstance(done, NodeDone) and (done.reason, done.model, done.usage.completion_tokens) == (
            "stop",
            "m",
            2,
        )
        assert done.durations.total >= done.durations.generation > 0
        assert node.head().startswith("POST /v1/chat/completions HTTP/1.1")
        assert "Authorization: Bearer secret" in node.head()
        await until(lambda: any(backend._http._idle.values()))  # the end of the body comes after the last event
        await read(backend, node.spec(kind="openai"))
        assert node.connections == 1 and "Authorization" not in node.head()


async def test_a_recorded_stream(backend: OpenAIBackend):
    async with played(recorded("0.33", "v1-chat-stream-usage")) as node:
        events, error = await read(backend, node.spec(kind="openai"))
    assert error is None and isinstance(events[-1], NodeDone) and events[-1].usage.prompt_tokens > 0


@pytest.mark.parametrize(
    ("play", "error_type"),
    [
        (Play([whole(429, b'{"error":{"message":"slow down"}}', "Retry-After: 2")]), NodeBusy),
        (Play([whole(503, b'{"error":{"message":"Loading model"}}')]), NodeBusy),
        (Play([whole(400, b'{"error":{"message":"too long"}}')]), NodeRefused),
        (Play([whole(422, b'{"detail":"what"}')]), NodeRefused),
        (Play([whole(501, b'{"error":{"message":"no embeddings here"}}')]), NodeIncapable),
        (Play([whole(500, b"oops")]), NodeBroken),
        (Play([whole(401, b"no")]), NodeBroken),
        (Play(streamed(TOKEN)), NodeBroken),
        (Play(streamed(TOKEN, ended=False)), NodeBroken),
        (Play(streamed(TOKEN, b"data: {nonsense\n\n")), NodeBroken),
        (Play([], then="reset"), NodeUnreachable),
    ],
)
async def test_each_way_to_fail_has_its_error(backend: OpenAIBackend, play: Play, error_type: type[NodeError]):
    async with played(play) as node:
        _, error = await read(backend, node.spec(kind="openai"))
    assert type(error) is error_type


async def test_silence_is_a_stall(backend: OpenAIBackend):
    patience = Patience(connect=60, first_token=60, between_tokens=0.2, total=60)
    async with played(Play(streamed(TOKEN, b": still here\n\n", ended=False), then="hang")) as node:
        events, error = await read(backend, node.spec(kind="openai"), CALL, patience)
    assert isinstance(error, NodeStalled) and error.phase == "between_tokens" and events == [Token("a")]


async def test_what_cannot_be_honoured_never_reaches_the_node(backend: OpenAIBackend):
    async with played(Play(streamed(END))) as node:
        _, error = await read(backend, node.spec(kind="openai"), Call("chat", "m", options={"num_ctx": 1}))
        assert isinstance(error, NodeIncapable) and "num_ctx" in error.message and not node.requests


async def test_leaving_hangs_up(backend: OpenAIBackend):
    async with played(Play(streamed(TOKEN, ended=False), then="hang")) as node:
        stream = backend.stream(node.spec(kind="openai"), CALL, PATIENCE)
        assert await anext(stream) == [Token("a")]
        await stream.aclose()
        await node.until_closed()


async def test_a_probe_lists_the_models_as_loaded(backend: OpenAIBackend):
    async with played(json_answer(MODELS)) as node:
        report = await backend.probe(node.spec(kind="openai", continues_final_message=True), 2.0)
    assert [model.name for model in report.models] == ["Qwen/Qwen2.5-1.5B"]
    assert [(model.name, model.context_length) for model in report.resident] == [("Qwen/Qwen2.5-1.5B", 4096)]
    assert report.continues_assistant and not report.renders
    assert report.models[0].listing["modified_at"] == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize("body", [{}, {"data": 7}, {"data": [{}]}, {"data": [{"id": ""}]}, []])
async def test_a_listing_that_is_none_is_broken(backend: OpenAIBackend, body: object):
    async with played(json_answer(body)) as node:
        with pytest.raises(NodeBroken):
            await backend.probe(node.spec(kind="openai"), 2.0)


async def test_a_probe_that_hangs_is_a_stall_of_its_own_phase(backend: OpenAIBackend):
    async with played(Play([], then="hang")) as node:
        with pytest.raises(NodeStalled) as caught:
            await backend.probe(node.spec(kind="openai"), 0.1)
    assert caught.value.phase == "probe"


async def test_embeddings_in_the_order_of_their_inputs(backend: OpenAIBackend):
    data = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]
    call = Call("embed", "m", fields={"input": ["a", "b"]})
    async with played(json_answer({"data": data, "usage": {"prompt_tokens": 5}})) as node:
        events, error = await read(backend, node.spec(kind="openai"), call)
        assert node.head().startswith("POST /v1/embeddings ")
    assert error is None and events[0] == Embedding([[1.0], [2.0]])
    assert isinstance(events[1], NodeDone) and events[1].usage.prompt_tokens == 5


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data": [{"index": 0}]},
        {"data": [{"index": 0, "embedding": "x"}]},
        {"data": [{"index": 0, "embedding": ["x"]}]},
        {"data": [{"index": 0, "embedding": [1]}], "usage": {"prompt_tokens": "many"}},
        [],
        {"data": 7},
    ],
)
async def test_an_answer_without_embeddings_is_broken(backend: OpenAIBackend, body: object):
    async with played(json_answer(body)) as node:
        _, error = await read(backend, node.spec(kind="openai"), Call("embed", "m", fields={"input": "a"}))
    assert isinstance(error, NodeBroken)


async def test_it_renders_nothing_and_says_so(backend: OpenAIBackend):
    async with played(json_answer({})) as node:
        with pytest.raises(NodeIncapable) as caught:
            await backend.render(node.spec(kind="openai"), CALL, 1.0)
    assert caught.value.status == 501


async def test_show_tells_what_is_known(backend: OpenAIBackend):
    async with played(json_answer(MODELS)) as node:
        found = await backend.show(node.spec(kind="openai"), "qwen/qwen2.5-1.5b", 2.0)
        assert found["model_info"] == {"general.context_length": 4096}
        with pytest.raises(NodeRefused) as caught:
            await backend.show(node.spec(kind="openai"), "other", 2.0)
    assert caught.value.status == 404


async def test_a_cancelled_reader_hangs_up(backend: OpenAIBackend):
    async with played(Play([], then="hang")) as node:
        task = asyncio.create_task(read(backend, node.spec(kind="openai")))
        while not node.requests:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await node.until_closed()


def test_where_servers_say_how_long_their_context_is():
    assert context_of({"id": "m", "meta": {"n_ctx": 2048}}) == 2048
    assert context_of({"id": "m"}) is None
    assert context_of({"id": "m", "max_model_len": "long"}) is None


@pytest.mark.parametrize("created", [None, "now", -5, 10**20])
def test_a_listing_without_a_sensible_date(created: object):
    assert listing_of({"id": "m", "created": created})["modified_at"] == "1970-01-01T00:00:00Z"
