"""The answer to one HTTP request on bare ASGI: whole, or begun and told piece by piece.

Nothing is sent before `answer` or `begin`, so that a refusal is still a status until then. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from server.http_errors import Header

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

JSON = b"application/json"
NDJSON = b"application/x-ndjson"
SSE = b"text/event-stream; charset=utf-8"


class Reply:
    __slots__ = ("_send", "headers", "status")

    def __init__(self, send: Send, headers: list[Header]) -> None:
        self._send = send
        self.headers = headers  # sent with the status; whoever knows one adds it before
        self.status = 0  # 0 until the answer has begun

    async def answer(self, body: bytes, content_type: bytes = JSON, status: int = 200) -> None:
        await self.begin(content_type, status, len(body))
        await self._send({"type": "http.response.body", "body": body})

    async def answer_json(self, value: Any, status: int = 200) -> None:
        await self.answer(orjson.dumps(value), status=status)

    async def answer_empty(self) -> None:
        self.status = 204
        await self._send({"type": "http.response.start", "status": 204, "headers": self.headers})
        await self._send({"type": "http.response.body", "body": b""})

    async def begin(self, content_type: bytes, status: int = 200, length: int | None = None) -> None:
        """Send status and headers; without a length the body follows in pieces, by `tell`."""
        headers = self.headers
        headers.append((b"content-type", content_type))
        if length is None:
            headers.append((b"cache-control", b"no-store"))
            headers.append((b"x-accel-buffering", b"no"))  # nginx would keep the pieces back
        else:
            headers.append((b"content-length", b"%d" % length))
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def tell(self, piece: bytes, last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": not last})
