"""The bytes of answers: JSON as Ollama frames it, plain text, and answers that stop when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

JSON_TYPE = "application/json; charset=utf-8"
NDJSON_TYPE = "application/x-ndjson"


def encode(record: Mapping[str, Any]) -> bytes:
    return orjson.dumps(record)


def json_reply(record: Mapping[str, Any], status: int = 200) -> Response:
    return Response(encode(record), status, {"Content-Type": JSON_TYPE})


def error_reply(message: str, status: int) -> Response:
    return json_reply({"error": message}, status)


def text_reply(text: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(text, status, {"Content-Type": "text/plain; charset=utf-8", **(headers or {})})


class WatchedAnswer(Response):
    """Runs `answer(send)` and cancels it as soon as the client is gone, streaming or not."""

    def __init__(self, answer: Callable[[Send], Coroutine[Any, Any, None]]) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._answer(send), name="answer")
        gone = asyncio.create_task(_until_disconnected(receive), name="watch the client")
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            finished = work.done()
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if finished:
            work.result()


async def send_whole(send: Send, response: Response) -> None:
    """Write a finished response from inside a watched answer."""
    start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
    await send(start)
    await send({"type": "http.response.body", "body": response.body})


async def start_stream(send: Send) -> None:
    headers = [(b"content-type", NDJSON_TYPE.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_line(send: Send, record: Mapping[str, Any]) -> None:
    await send({"type": "http.response.body", "body": encode(record) + b"\n", "more_body": True})


async def end_stream(send: Send) -> None:
    await send({"type": "http.response.body", "body": b""})


async def _until_disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
