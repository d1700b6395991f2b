"""Replies: whole or in pieces, nothing before its time."""

from __future__ import annotations

from typing import Any

from server.api.reply import NDJSON, Reply


class Sent:
    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def __call__(self, message: Any) -> None:
        self.messages.append(message)


async def test_a_whole_answer_tells_its_length():
    sent = Sent()
    reply = Reply(sent, [(b"x-request-id", b"1")])
    assert reply.status == 0
    await reply.answer_json({"a": 1}, 201)
    start, body = sent.messages
    assert (reply.status, start["status"], body["body"]) == (201, 201, b'{"a":1}')
    assert dict(start["headers"]) == {
        b"x-request-id": b"1",
        b"content-type": b"application/json",
        b"content-length": b"7",
    }
    assert not body.get("more_body")


async def test_pieces_are_kept_back_by_nobody():
    sent = Sent()
    reply = Reply(sent, [])
    await reply.begin(NDJSON)
    await reply.tell(b"a\n")
    await reply.tell(b"b\n", last=True)
    start, *pieces = sent.messages
    headers = dict(start["headers"])
    assert (headers[b"cache-control"], headers[b"x-accel-buffering"]) == (b"no-store", b"no")
    assert b"content-length" not in headers
    assert [(piece["body"], piece["more_body"]) for piece in pieces] == [(b"a\n", True), (b"b\n", False)]


async def test_an_empty_answer_has_no_content():
    sent = Sent()
    await Reply(sent, []).answer_empty()
    assert [message.get("status", message.get("body")) for message in sent.messages] == [204, b""]
