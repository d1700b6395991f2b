"""The one way in: routes, methods, dialects of errors, and that nothing a client sends is a 500."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.api import ask, ollama_bodies, openai_fields
from server.api.app import dialect_of, route_table
from tests.server.api.gateway import Call, client, gateway, get, post
from tests.server.api.gateway import ask as request
from tests.server.api.scripted_backend import ScriptedBackend
from tests.server.api.scripted_dispatch import ScriptedDispatch, whole


@pytest.mark.parametrize(
    ("path", "dialect"),
    [("/ask", "ask"), ("/v1/models", "openai"), ("/api/tags", "ollama"), ("/api/nodes", "ask"),
     ("/api/queue/status", "ask"), ("/health", "ask"), ("/v1x", "ask"), ("/", "ask")],
)  # fmt: skip
def test_dialects_by_path(path: str, dialect: str):
    assert dialect_of(path) == dialect


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/api/nothing", "/ask/", "/v1/models/", "/dashboard/"])
async def test_unknown_paths_are_404_in_their_dialect(path: str):
    answer = await get(gateway().app, path)
    assert answer.status == 404
    error = answer.json()["error"]
    match dialect_of(path):
        case "openai":
            assert error["type"] == "invalid_request_error"
        case "ollama":
            assert isinstance(error, str)
        case _:
            assert error["code"] == "not_found"


async def test_wrong_methods_are_405_and_say_which_are_right():
    for path, methods in route_table(gateway().services).items():
        wrong = "PUT"
        answer = await request(gateway().app, wrong, path + "x" if path.endswith("/") and path != "/" else path)
        assert answer.status == 405, path
        assert set(methods) <= set(answer.headers["allow"].split(", "))
        assert "error" in answer.json()


async def test_head_is_get_without_a_body():
    async with client(gateway().app) as http:
        for path in ("/health", "/v1/models", "/api/version", "/"):
            answer = await http.head(path)
            assert (answer.status_code, answer.content) == (200, b""), path
            assert int(answer.headers["content-length"]) > 0


async def test_a_body_beyond_the_limit_is_413_in_every_dialect():
    app = gateway(body_limit_bytes=100).app
    for path in ("/ask", "/v1/chat/completions", "/api/chat"):
        answer = await post(app, path, b"{" + b" " * 200)
        assert answer.status == 413
        assert "100 bytes" in str(answer.json()["error"])


async def test_a_large_body_over_real_sockets_is_413_and_the_connection_lives():
    async with client(gateway(body_limit_bytes=1000).app) as http:
        assert (await http.post("/ask", content=b"x" * 300_000)).status_code == 413

        async def pieces() -> Any:
            for _ in range(50):
                yield b"x" * 1000

        assert (await http.post("/ask", content=pieces())).status_code == 413
        assert (await http.get("/live")).status_code == 200


async def test_every_answer_is_counted_by_route():
    made = gateway()
    await get(made.app, "/live")
    await get(made.app, "/v1/models/x")
    await get(made.app, "/no/such/path")
    assert made.noted.finished == [("/live", 200), ("/v1/models/", 404), ("other", 404)]


async def test_a_refusal_is_reported_with_what_it_was():
    made = gateway()
    await post(made.app, "/ask", {"prompt": ""})
    assert [error.field for error in made.noted.refusals] == ["prompt"]


async def test_a_twofold_host_is_400():
    call = Call("GET", "/health")
    call.scope["headers"].append((b"host", b"other"))
    assert (await call.run(gateway().app)).status == 400


# whatever comes

NAMES = sorted(
    {*ask.ASK_FIELDS, *ollama_bodies.GENERATE_FIELDS, *ollama_bodies.CHAT_FIELDS, *openai_fields.CHAT_FIELDS}
    | {*openai_fields.COMPLETION_FIELDS, *openai_fields.EMBEDDING_FIELDS, "prompts", "requests", "name", "source"}
    | {"role", "content", "type", "function", "arguments", "tool_calls", "tool_call_id", "image_url", "url"}
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from(["user", "assistant", "tool", "json", "text", "0s", "5m", "qwen2.5:1.5b", "auto", "aGk="]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)
BODIES = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6)
ROUTES = [
    (method, path + "x" if path.endswith("/") and path != "/" else path)
    for path, methods in route_table(gateway().services).items()
    for method in methods
]


def app() -> Any:
    return gateway(ScriptedDispatch(whole("a")), backends={"ollama": ScriptedBackend()})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(route=st.sampled_from(ROUTES), body=BODIES)
async def test_no_json_is_a_500(route: tuple[str, str], body: dict[str, Any]):
    made = app()
    answer = await request(made.app, *route, json.dumps(body).encode())
    assert made.noted.faults == []
    assert answer.status < 500 or answer.status in (501, 503), (answer.status, answer.body)
    if answer.status >= 400:
        assert orjson.loads(answer.body)["error"]
    for asked in made.answer().asked:
        orjson.dumps([asked.messages, asked.options, asked.fields])  # what cannot be sent on must not get here


@settings(max_examples=120, deadline=None)
@given(route=st.sampled_from(ROUTES), body=st.binary(max_size=60))
async def test_no_bytes_are_a_500(route: tuple[str, str], body: bytes):
    made = app()
    answer = await request(made.app, *route, body)
    assert made.noted.faults == []
    assert answer.status < 500 or answer.status in (501, 503)


@settings(max_examples=120, deadline=None)
@given(
    path=st.text(st.characters(blacklist_categories=["Cs"]), max_size=30),
    headers=st.dictionaries(
        st.sampled_from(["origin", "host", "authorization", "x-api-key", "x-request-id", "accept", "content-length"]),
        st.text(st.characters(max_codepoint=255), max_size=30),
    ),
)
async def test_no_path_or_header_is_a_500(path: str, headers: dict[str, str]):
    for made in (app(), gateway(api_keys="a:b")):
        answer = await get(made.app, "/" + path, headers=headers)
        assert made.noted.faults == []
        assert answer.status < 500
