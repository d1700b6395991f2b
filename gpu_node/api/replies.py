"""The bytes of answers: JSON as Ollama frames it, server-sent events, text, and answers that end with their client.

Errors have the shape of the dialect whose path was asked: OpenAI's beneath `/v1/`, Ollama's everywhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gpu_node.errors import DeadlineExceeded, DeviceOutOfMemory, NodeBusy, NodeError, NodeStopping, NoRoom, RequestError

JSON_TYPE = "application/json; charset=utf-8"
NDJSON_TYPE = "application/x-ndjson"
EVENTS_TYPE = "text/event-stream"
OPENAI_PATHS = "/v1/"


def encode(record: Mapping[str, Any]) -> bytes:
    return orjson.dumps(record)


def json_reply(record: Mapping[str, Any], status: int = 200) -> Response:
    return Response(encode(record), status, {"Content-Type": JSON_TYPE})


def error_reply(message: str, status: int, path: str = "", field: str | None = None) -> Response:
    if path.startswith(OPENAI_PATHS):
        return json_reply(openai_error(message, status, field), status)
    return json_reply({"error": message}, status)


def status_of(error: NodeError) -> int:
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, DeadlineExceeded):
        return 504
    return 503 if isinstance(error, NodeBusy | NodeStopping | NoRoom | DeviceOutOfMemory) else 500


def openai_error(message: str, status: int, field: str | None = None) -> dict[str, Any]:
    code = {401: "invalid_api_key", 404: "model_not_found" if field == "model" else "not_found"}.get(status)
    if "exceeds the context length" in message:
        code = "context_length_exceeded"
    return {"error": {"message": message, "type": _openai_type(status), "param": field, "code": code}}


def openai_error_of(error: NodeError) -> dict[str, Any]:
    return openai_error(str(error), status_of(error), error.field if isinstance(error, RequestError) else None)


def _openai_type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return {403: "permission_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")


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


class Stream:
    """A streamed body. Nothing is sent before the first record, so that a failure until then still has its status."""

    def __init__(self, send: Send, content_type: str = NDJSON_TYPE) -> None:
        self._send, self._type = send, content_type
        self._turn = asyncio.Lock()  # several choices of one answer may write at once
        self.started = False

    async def line(self, record: Mapping[str, Any]) -> None:
        await self._write(encode(record) + b"\n")

    async def event(self, record: Mapping[str, Any]) -> None:
        await self._write(b"data: " + encode(record) + b"\n\n")

    async def event_text(self, text: str) -> None:
        await self._write(f"data: {text}\n\n".encode())

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def _write(self, body: bytes) -> None:
        async with self._turn:
            if not self.started:
                self.started = True
                headers = [(b"content-type", self._type.encode())]
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send({"type": "http.response.body", "body": body, "more_body": True})


async def _until_disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
