"""The calls that answer at once, sync and async, over a stand-in for the network."""

import asyncio
import json

import httpx
import pytest
import respx

from potluck import (
    AsyncGateway,
    Gateway,
    GatewayUnreachable,
    InvalidRequest,
    KeyRefused,
    Misuse,
    ModelUnknown,
    PotluckError,
    QueueFull,
    UnexpectedAnswer,
)
from potluck.gateway import DEFAULT_URL
from tests.potluck.loopback import ANSWER, Loopback, health, node

URL = "http://gateway.test:8000"


def call_sync(name, *args, api_key=None, url=URL, **options):
    with Gateway(url, api_key=api_key) as gateway:
        return getattr(gateway, name)(*args, **options)


def call_async(name, *args, api_key=None, url=URL, **options):
    async def call():
        async with AsyncGateway(url, api_key=api_key) as gateway:
            return await getattr(gateway, name)(*args, **options)

    return asyncio.run(call())


both = pytest.mark.parametrize("call", [call_sync, call_async])


@pytest.fixture
def network():
    with respx.mock(base_url=URL) as router:
        yield router


def body_of(route):
    return json.loads(route.calls.last.request.content)


@both
def test_ask(network, call):
    route = network.post("/ask").respond(json=ANSWER)
    answer = call("ask", "What is the capital of France?", model="qwen2.5:0.5b", temperature=0, system=None)
    assert answer.text == "Paris is nice"
    assert body_of(route) == {"prompt": "What is the capital of France?", "model": "qwen2.5:0.5b", "temperature": 0}


@both
def test_ask_a_chat(network, call):
    route = network.post("/ask").respond(json=ANSWER)
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    call("ask", messages=messages)
    assert body_of(route) == {"messages": messages}


@both
def test_batch_in_order(network, call):
    error = {"error": {"code": "invalid_request", "message": "empty", "field": "prompt"}}
    route = network.post("/ask_batch").respond(json={"results": [error, ANSWER]})
    first, second = call("batch", ["", "two"], max_tokens=5)
    assert (first.index, second.index) == (0, 1)
    assert isinstance(first.error, InvalidRequest)
    assert first.error.field == "prompt"
    assert second.text == "Paris is nice"
    assert body_of(route) == {"prompts": ["", "two"], "max_tokens": 5}


@both
def test_an_empty_batch_asks_nothing(network, call):
    assert call("batch", []) == []


@both
def test_health_nodes_and_models(network, call):
    network.get("/health").respond(503, json=health(node("a"), status="unavailable"))
    network.get("/api/nodes").respond(json={"nodes": [node("a"), node("b")]})
    network.get("/v1/models").respond(json={"object": "list", "data": [{"id": "qwen2.5:0.5b"}]})
    assert call("health").status == "unavailable"
    assert [entry.id for entry in call("nodes")] == ["a", "b"]
    assert call("models") == ["qwen2.5:0.5b"]


@both
def test_models_are_loaded_and_let_go(network, call):
    load = network.post("/api/models/load").respond(json={"model": "m", "status": "success", "node": "tower"})
    unload = network.post("/api/models/unload").respond(json={"model": "m", "status": "unloaded", "nodes": []})
    assert call("load", "m", node="tower", keep_alive="1h")["node"] == "tower"
    assert body_of(load) == {"model": "m", "node": "tower", "keep_alive": "1h"}
    assert call("unload", "m")["status"] == "unloaded"
    assert body_of(unload) == {"model": "m"}


@both
def test_refusals_come_typed(network, call):
    network.post("/ask").respond(
        429, json={"error": {"code": "queue_full", "message": "full"}}, headers={"Retry-After": "3"}
    )
    with pytest.raises(QueueFull) as caught:
        call("ask", "hi")
    assert caught.value.retry_after_seconds == 3
    network.post("/ask").respond(
        404, json={"error": {"code": "model_not_found", "message": "model 'x' not found", "hint": "did you mean y?"}}
    )
    with pytest.raises(ModelUnknown) as unknown:
        call("ask", "hi", model="x")
    assert unknown.value.hint == "did you mean y?"


@both
def test_the_key_travels_in_its_header_only(network, call):
    route = network.get("/v1/models").respond(json={"data": []})
    call("models", api_key="secret-1")
    request = route.calls.last.request
    assert request.headers["authorization"] == "Bearer secret-1"
    assert "secret-1" not in str(request.url)
    network.get("/v1/models").respond(401, json={"error": {"code": "unauthorized", "message": "who are you?"}})
    with pytest.raises(KeyRefused) as caught:
        call("models")
    assert "authorization" not in network.calls.last.request.headers
    assert "secret" not in str(caught.value)


@both
def test_network_errors_are_ours(network, call):
    network.get("/health").mock(side_effect=httpx.ConnectError("refused"))
    with pytest.raises(GatewayUnreachable, match="refused"):
        call("health")


@both
def test_an_answer_that_is_none(network, call):
    network.post("/ask").respond(200, text="hello")
    with pytest.raises(UnexpectedAnswer):
        call("ask", "hi")


@both
def test_redirects_are_not_followed(network, call):
    network.post("/ask").respond(307, headers={"Location": "http://elsewhere.test/ask"})
    with pytest.raises(PotluckError, match="307"):
        call("ask", "hi", api_key="secret-1")


@both
def test_misuse_sends_nothing(network, call):
    with pytest.raises(Misuse):
        call("ask")
    with pytest.raises(ValueError, match="no address"):
        call("health", url="localhost")


@both
def test_a_connection_that_breaks_before_the_answer(call):
    with Loopback(lambda exchange: exchange.connection.close()) as server, pytest.raises(GatewayUnreachable):
        call("ask", "hi", url=server.url)


def test_an_address_may_have_a_path_and_a_last_slash():
    with respx.mock, Gateway("http://proxy.test/llm/") as gateway:
        respx.get("http://proxy.test/llm/health").respond(json=health())
        assert gateway.health().status == "ok"


def test_the_default_address():
    with Gateway() as gateway:
        assert gateway.url == DEFAULT_URL == "http://127.0.0.1:8000"


def test_connections_are_kept_and_closed(network):
    network.get("/v1/models").respond(json={"data": []})
    gateway = Gateway(URL)
    gateway.models()
    gateway.close()
    with pytest.raises(RuntimeError, match="closed"):
        gateway.models()


def test_a_transport_replaces_the_network():
    def answer(request):
        return httpx.Response(200, json={"data": [{"id": request.url.path}]})

    with Gateway(URL, transport=httpx.MockTransport(answer)) as gateway:
        assert gateway.models() == ["/v1/models"]
