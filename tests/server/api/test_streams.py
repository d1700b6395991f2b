"""From events to bytes: when headers go out, how streams end, and what a leaving client or a stopping gateway does."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import orjson
import pytest

from server.errors import GatewayDraining, ModelNotFound, NodeBroken, NoNodes, QueueFull
from server.exchange import Failed, Queued, Started, Token
from tests.server.api.gateway import Call, Gateway, gateway, post, served, until
from tests.server.api.scripted_dispatch import DONE, ScriptedDispatch, Step, failing, whole

BODIES: dict[str, dict[str, Any]] = {
    "/ask": {"prompt": "hi"},
    "/ask_stream": {"prompt": "hi"},
    "/ask_batch": {"prompts": ["hi", "ho"]},
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True},
    "/v1/completions": {"model": "m", "prompt": "hi", "stream": True},
    "/v1/embeddings": {"model": "m", "input": "hi"},
    "/api/chat": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "/api/generate": {"model": "m", "prompt": "hi", "stream": False},
    "/api/embed": {"model": "m", "input": "hi"},
}
STREAMING = {path: body for path, body in BODIES.items() if path in ("/ask_stream", "/api/chat")} | {
    "/v1/chat/completions": BODIES["/v1/chat/completions"],
    "/v1/completions": BODIES["/v1/completions"],
}


def with_script(*steps: Step) -> Gateway:
    return gateway(ScriptedDispatch(list(steps)))


async def test_a_batch_of_events_is_one_piece_of_the_body():
    made = with_script([Started("miss")], [Token("a"), Token("b"), Token("c")], [Token("d"), DONE])
    answer = await post(made.app, "/ask_stream", {"prompt": "hi"})
    assert len(answer.pieces) == 2
    assert [record.get("token") for record in answer.lines()] == ["a", "b", "c", "d", None]


async def test_nothing_goes_out_before_there_is_something_to_tell():
    hold = asyncio.Event()
    made = with_script([Started("miss")], [Queued(2)], hold, [Token("a")], [DONE])
    call = Call("POST", "/ask_stream", {"prompt": "hi"})
    running = asyncio.create_task(call.run(made.app))
    await until(lambda: made.answer().running)
    for _ in range(20):
        await asyncio.sleep(0)
    assert call.status == 0
    hold.set()
    assert (await running).status == 200


async def test_the_place_in_the_queue_is_told_where_asked():
    hold = asyncio.Event()
    made = with_script([Started("miss")], [Queued(2)], hold, [Token("a")], [DONE])
    call = Call("POST", "/ask_stream", {"prompt": "hi", "progress": True})
    running = asyncio.create_task(call.run(made.app))
    await call.told.wait()
    assert orjson.loads(call.pieces[0]) == {"queued": 2}
    hold.set()
    assert (await running).status == 200


@pytest.mark.parametrize(
    ("error", "status"), [(NoNodes("none"), 503), (QueueFull("full", 3.2), 429), (ModelNotFound("m"), 404)]
)
@pytest.mark.parametrize("path", [path for path in BODIES if path != "/ask_batch"])
async def test_an_error_before_the_answer_is_a_status(path: str, error: Any, status: int):
    made = with_script(*failing(error))
    answer = await post(made.app, path, BODIES[path])
    assert answer.status == status
    assert "error" in answer.json()
    assert answer.headers.get("retry-after") == ("4" if status == 429 else None)
    assert made.noted.faults == []


@pytest.mark.parametrize("path", STREAMING)
async def test_an_error_within_the_answer_is_its_last_record(path: str):
    made = with_script(*failing(NoNodes("all gone"), "Par", "is"))
    answer = await post(made.app, path, STREAMING[path])
    assert answer.status == 200
    text = answer.body.decode()
    assert "Par" in text and "[DONE]" not in text
    last = orjson.loads(text.strip().splitlines()[-1].removeprefix("data: "))
    assert "all gone" in str(last["error"])


@pytest.mark.parametrize("path", BODIES)
async def test_a_fault_of_ours_is_a_500_without_details(path: str):
    made = with_script([Started("off")], RuntimeError("secret detail"))
    answer = await post(made.app, path, BODIES[path])
    assert answer.status == (200 if path == "/ask_batch" else 500)
    assert b"the gateway failed" in answer.body
    assert b"secret detail" not in answer.body
    assert made.noted.faults


@pytest.mark.parametrize("path", STREAMING)
async def test_a_fault_of_ours_within_a_stream_is_told_and_logged(path: str):
    made = with_script([Started("off")], [Token("Par")], RuntimeError("secret detail"))
    answer = await post(made.app, path, STREAMING[path])
    assert b"secret detail" not in answer.body
    assert b"the gateway failed" in answer.body
    assert len(made.noted.faults) == 1


async def test_a_node_error_that_slips_out_of_dispatch_is_a_fault():
    made = with_script([Started("off")], NodeBroken("slipped"))
    assert (await post(made.app, "/ask", {"prompt": "hi"})).status == 500


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_that_just_ends_is_a_fault(path: str):
    made = with_script([Started("off")])
    answer = await post(made.app, path, BODIES[path])
    if path != "/ask_batch":
        assert answer.status == 500
    assert b"the gateway failed" in answer.body


@pytest.mark.parametrize("path", BODIES)
async def test_a_client_that_leaves_cancels_the_work(path: str):
    hold = asyncio.Event()
    made = with_script([Started("miss")], [Token("a")], hold, [DONE])
    call = Call("POST", path, BODIES[path])
    running = asyncio.create_task(call.run(made.app))
    await until(lambda: made.answer().running)
    call.gone.set()
    await running
    assert made.answer().running == 0
    assert made.answer().abandoned >= 1
    assert made.noted.faults == []
    assert not made.services.open_requests.requests


async def test_a_client_that_leaves_over_real_sockets_cancels_the_work():
    hold = asyncio.Event()
    made = with_script([Started("miss")], [Token("a")], hold, [DONE])
    async with served(made.app) as address:
        host, port = address.removeprefix("http://").split(":")
        for path in ("/ask_stream", "/ask"):
            reader, writer = await asyncio.open_connection(host, int(port))
            body = b'{"prompt": "hi"}'
            writer.write(b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 16\r\n\r\n%b" % (path.encode(), body))
            if path == "/ask_stream":
                assert b'{"token":"a"}' in await reader.readuntil(b"}\n")
            await until(lambda: made.answer().running)
            writer.close()
            await writer.wait_closed()
            await until(lambda: not made.answer().running)
    assert made.answer().abandoned == 2


@pytest.mark.parametrize("path", STREAMING)
async def test_a_stopping_gateway_ends_streams_with_an_honest_event(path: str):
    """Dispatch ends its streams itself; here it has none to end, so the cancel arrives in our own code."""
    blocked = asyncio.Event()
    made = with_script([Started("miss")], [Token("a")], blocked, [DONE])
    call = Call("POST", path, STREAMING[path])
    running = asyncio.create_task(call.run(made.app))
    await call.told.wait()
    made.services.open_requests.cut(GatewayDraining("stopped"))
    running.cancel()
    answer = await running
    assert b"stopped" in answer.body.strip().splitlines()[-1]
    assert call.complete


async def test_the_event_of_dispatch_ends_a_whole_answer_too():
    made = with_script([Started("miss")], [Failed(GatewayDraining("stopped"))])
    answer = await post(made.app, "/ask", {"prompt": "hi"})
    assert answer.status == 503
    assert answer.headers["retry-after"] == "5"


async def test_a_draining_gateway_takes_nothing_new_but_tells_how_it_is():
    made = gateway()
    made.services.open_requests.draining = True
    for path, body in BODIES.items():
        answer = await post(made.app, path, body)
        assert answer.status == 503, path
        assert "retry-after" in answer.headers
    assert (await Call("GET", "/health").run(made.app)).json()["draining"] is True
    assert (await Call("GET", "/ready").run(made.app)).status == 503


@pytest.mark.parametrize("outcome", ["hit", "miss", "joined", "off"])
@pytest.mark.parametrize("path", [path for path in BODIES if path != "/ask_batch"])
async def test_what_the_cache_said_is_a_header(path: str, outcome: Any):
    made = with_script(*whole("a", done=replace(DONE, cache=outcome)))
    answer = await post(made.app, path, BODIES[path])
    assert answer.headers["x-cache"] == outcome


@pytest.mark.parametrize("path", BODIES)
async def test_the_request_id_comes_back(path: str):
    made = gateway()
    answer = await post(made.app, path, BODIES[path], headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert str(made.answer().asked[0].id).startswith("mine-1")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/ask", {"prompt": "hi"}),
        ("/ask_stream", {"prompt": "hi"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "n": 2}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/completions", {"prompt": "hi", "stream": True}),
        ("/v1/embeddings", {"input": "hi"}),
        ("/api/chat", {"messages": [{"role": "user", "content": "hi"}], "stream": False}),
        ("/api/embed", {"input": "hi"}),
    ],
)
async def test_a_refusal_by_the_fleet_says_what_the_cache_said(path: str, body: dict[str, Any]):
    made = gateway(ScriptedDispatch([[Started("off")], [Failed(ModelNotFound("m"))]]))
    answer = await post(made.app, path, {"model": "m", **body})
    assert (answer.status, answer.headers["x-cache"]) == (404, "off")


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_without_an_end_is_our_own_fault_and_in_the_log(path: str):
    made = gateway(ScriptedDispatch([[Started("miss")], [Token("a")]]))
    answer = await post(made.app, path, BODIES[path])
    assert b"the gateway failed on this request" in answer.body
    assert made.noted.faults
