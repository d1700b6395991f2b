"""Reading requests: bodies, their limits and mistakes, request ids; and what a leaving client does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.api.incoming import ClientGone, Incoming
from server.errors import BodyTooLarge, GatewayDraining, RequestInvalid
from tests.server.api.gateway import Call, gateway


def incoming(call: Call, limit: int = 1000) -> Incoming:
    return Incoming(call.scope, call.receive, call.send, "ask", limit)


async def test_a_body_in_pieces_is_read_whole():
    assert await incoming(Call("POST", "/ask", pieces=[b'{"prompt"', b':"a', b'"}'])).json() == {"prompt": "a"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "missing request body"),
        (b"  \n", "missing request body"),
        (b'{"prompt": ', "line 1, column 12"),
        (b'{\n "prompt": x}', "line 2, column 12"),
        (b'{"prompt": "\xff"}', "not UTF-8 (line 1, column 13)"),
        (b'"text"', "must be a JSON object"),
        (b"[1]", "must be a JSON object"),
        (b"[" * 5000, "line 1"),
    ],
)
async def test_a_broken_body_is_400_and_says_where(body: bytes, words: str):
    with pytest.raises(RequestInvalid, match=r"JSON|missing") as caught:
        await incoming(Call("POST", "/ask", body), 10_000).json()
    assert words in caught.value.message
    assert caught.value.http_status == 400


async def test_a_compressed_body_is_415():
    call = Call("POST", "/ask", b"\x1f\x8b\x08", headers={"Content-Encoding": "gzip"})
    with pytest.raises(RequestInvalid, match="gzip") as caught:
        await incoming(call).json()
    assert caught.value.http_status == 415


async def test_a_declared_length_beyond_the_limit_is_refused_unread():
    async def never() -> Any:
        raise AssertionError("the body was read")

    call = Call("POST", "/ask", headers={"Content-Length": "1001"})
    with pytest.raises(BodyTooLarge, match="1000 bytes"):
        await Incoming(call.scope, never, call.send, "ask", 1000).read()


async def test_a_body_that_grows_beyond_the_limit_is_refused_at_once():
    call = Call("POST", "/ask", pieces=[b"x" * 600, b"x" * 600, b"x" * 600])
    with pytest.raises(BodyTooLarge):
        await incoming(call).read()
    assert await call.receive() == {"type": "http.request", "body": b"x" * 600, "more_body": False}


async def test_a_body_that_does_not_come_is_408():
    async def never() -> Any:
        await asyncio.Event().wait()

    call = Call("POST", "/ask")
    call.receive = never  # type: ignore[method-assign]
    answer = await call.run(gateway(body_timeout_s=0.01).app)
    assert answer.status == 408
    assert "0.01 s" in answer.json()["error"]["message"]


async def test_a_body_of_exactly_the_limit_is_read():
    assert len(await incoming(Call("POST", "/ask", b"x" * 1000)).read()) == 1000


async def test_a_client_that_leaves_while_sending_is_gone():
    messages: list[Any] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    call = Call("POST", "/ask")
    with pytest.raises(ClientGone):
        await Incoming(call.scope, receive, call.send, "ask", 1000).read()


@pytest.mark.parametrize("given", ["abc", "8f14-e45f_1.2:3", "x" * 128])
async def test_a_sane_request_id_is_kept(given: str):
    assert incoming(Call("GET", "/", headers={"X-Request-Id": given})).request_id == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'a"b', "ż", "a\x01b"])
async def test_any_other_request_id_is_replaced(given: str):
    call = Call("GET", "/")
    call.scope["headers"].append((b"x-request-id", given.encode()))
    assert incoming(call).request_id != given


async def test_ids_of_our_own_differ():
    assert incoming(Call("GET", "/")).request_id != incoming(Call("GET", "/")).request_id


async def test_a_deciding_header_must_not_come_twice():
    call = Call("GET", "/")
    call.scope["headers"].append((b"host", b"evil.example"))
    with pytest.raises(RequestInvalid, match="host came more than once"):
        incoming(call).check_headers()


async def test_other_headers_may_come_twice():
    call = Call("GET", "/", headers={"Accept": "text/html"})
    call.scope["headers"].append((b"accept", b"text/plain"))
    incoming(call).check_headers()


async def test_a_watched_client_that_leaves_cancels_the_task():
    call = Call("POST", "/ask")
    seen = []

    async def handle() -> None:
        request = incoming(call)
        await request.read()
        request.watch()
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(request.gone)
            request.end()

    task = asyncio.create_task(handle())
    await asyncio.sleep(0)
    call.gone.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [True]


async def test_the_watcher_ends_with_the_request():
    request = incoming(Call("POST", "/ask"))
    await request.read()
    request.watch()
    request.end()  # a task left over would fail this test


async def test_cutting_cancels_a_request_that_is_not_at_dispatch():
    request: list[Incoming] = []

    async def handle() -> None:
        request.append(incoming(Call("POST", "/ask")))
        await asyncio.Event().wait()

    task = asyncio.create_task(handle())
    await asyncio.sleep(0)
    request[0].cut(GatewayDraining("stopped"))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert request[0].cut_error is not None


async def test_a_request_id_that_comes_twice_is_refused():
    call = Call("POST", "/ask", {"prompt": "hi"})
    call.scope["headers"] += [(b"x-request-id", b"one"), (b"x-request-id", b"two")]
    with pytest.raises(RequestInvalid, match="x-request-id came more than once"):
        incoming(call).check_headers()
