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
from server.api.join import JOIN_FIELDS, REPORT_FIELDS
from tests.server.api.gateway import MODEL, Call, client, gateway, get, post
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
    | {*JOIN_FIELDS, *REPORT_FIELDS, "minutes"}
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


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(route=st.sampled_from(ROUTES), body=BODIES)
async def test_no_json_is_a_500(route: tuple[str, str], body: dict[str, Any]):
    made = app()
    answer = await request(made.app, *route, json.dumps(body).encode())
    assert made.noted.faults == []
    assert answer.status < 500 or answer.status in (501, 503), (answer.status, answer.body)
    if route[1].startswith("/join/"):
        assert answer.body.endswith(b"exit 1\n")  # whoever is invited runs what comes
    elif answer.status >= 400:
        assert orjson.loads(answer.body)["error"]
    for asked in made.answer().asked:
        orjson.dumps([asked.messages, asked.options, asked.fields])  # what cannot be sent on must not get here


@settings(max_examples=60, deadline=None)
@given(route=st.sampled_from(ROUTES), body=st.binary(max_size=60))
async def test_no_bytes_are_a_500(route: tuple[str, str], body: bytes):
    made = app()
    answer = await request(made.app, *route, body)
    assert made.noted.faults == []
    assert answer.status < 500 or answer.status in (501, 503)


@settings(max_examples=60, deadline=None)
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


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        value = {"a": value}
    return value


ASKED = {"messages": [{"role": "user", "content": "hi"}]}
SCHEMA = {"name": "s", "schema": deep(300)}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/ask", {"prompt": "x", "format": deep(300)}),
        ("/ask_stream", {"prompt": "x", "format": deep(300)}),
        ("/ask_batch", {"requests": [{"prompt": "x", "format": deep(300)}]}),
        ("/v1/chat/completions", {**ASKED, "tools": [{"type": "function", "function": {"name": "f", "p": deep(300)}}]}),
        ("/v1/chat/completions", {**ASKED, "response_format": {"type": "json_schema", "json_schema": SCHEMA}}),
        ("/api/generate", {"model": MODEL, "prompt": "x", "format": deep(300)}),
        ("/api/chat", {"model": MODEL, **ASKED, "tools": [deep(300)]}),
    ],
)  # fmt: skip
async def test_what_we_could_read_but_not_write_again_is_refused(path: str, body: dict[str, Any]):
    made = gateway()
    answer = await post(made.app, path, json.dumps(body).encode())
    assert (answer.status, b"nested more than 128 levels" in answer.body) == (400, True)
    assert made.noted.faults == []


async def test_deep_arguments_of_a_tool_call_are_refused_by_name():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps(deep(300))}}
    body = {"messages": [*ASKED["messages"], {"role": "assistant", "content": None, "tool_calls": [call]}]}
    answer = await post(gateway().app, "/v1/chat/completions", body)
    assert answer.status == 400
    assert answer.json()["error"]["param"] == "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    "path", ["/ask", "/ask_stream", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/api/generate",
             "/api/chat", "/api/embed", "/api/embeddings", "/api/show"],
)  # fmt: skip
async def test_no_name_of_a_model_is_longer_than_any_model_has(path: str):
    made = gateway()
    answer = await post(made.app, path, {"model": "sm" * 50_000, "prompt": "x", "input": "x", **ASKED})
    assert 400 <= answer.status < 500
    assert len(answer.body) < 1000
    assert not made.dispatch.asked


async def test_long_paths_are_not_told_back():
    made = gateway()
    for method, path in (("GET", "/v1/models/" + "x" * 60_000), ("DELETE", "/v1/models/" + "x" * 60_000)):
        answer = await request(made.app, method, path)
        assert 400 <= answer.status < 500
        assert len(answer.body) < 1000
    assert all(len(error.message) < 400 for error in made.noted.refusals)


@pytest.mark.parametrize(("path", "most"), [("/ask", 64), ("/v1/completions", 4), ("/api/generate", 64)])
async def test_a_bounded_list_ends_an_answer(path: str, most: int):
    def body(stops: list[str]) -> dict[str, Any]:
        given: dict[str, Any] = {"options": {"stop": stops}} if path == "/api/generate" else {"stop": stops}
        return {"model": MODEL, "prompt": "x", **given}

    made = gateway()
    assert (await post(made.app, path, body(["", *(str(index) for index in range(most))]))).status == 200
    assert made.dispatch.asked[0].options["stop"] == [str(index) for index in range(most)]
    assert (await post(made.app, path, body(["x"] * (most + 1)))).status in (400, 422)
    assert (await post(made.app, path, body(["x" * 257]))).status in (400, 422)
