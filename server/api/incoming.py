"""One HTTP request on bare ASGI.

Holds what every handler needs: headers, body, caller, request id, and the reply.
From `watch` on, a client that leaves cancels the handler's task; `cut` does the same for a gateway that must stop.
Knows nothing of models, nodes or dialects beyond their names.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from itertools import count
from secrets import token_hex
from typing import Any

import orjson

from server.api.reply import Message, Reply, Send
from server.errors import BodyTooLarge, GatewayError, RequestInvalid
from server.exchange import CallerId, RequestId
from server.http_errors import Dialect, error_bytes, error_headers, http_status
from server.nesting import DEEPEST, is_too_deep, might_be_too_deep

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

# What may come back in a header and a log line as it came; anything else is replaced by an id of ours.
_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_SECRET_PATH = re.compile(r"[/\\]join[/\\]", re.IGNORECASE)
# Headers that decide something must not come twice: which of the two counts would be a matter of luck.
_SINGLE_HEADERS = frozenset(
    {b"host", b"origin", b"authorization", b"x-api-key", b"x-api-token", b"content-length", b"x-request-id"}
)

_id_prefix = token_hex(4)  # ids of two runs of the gateway differ in the logs
_id_numbers = count(1)


class Incoming:
    __slots__ = (
        "_receive",
        "_task",
        "_watcher",
        "body_limit",
        "body_seconds",
        "caller",
        "cut_error",
        "dialect",
        "gone",
        "handed_over",
        "headers",
        "method",
        "path",
        "reply",
        "request_id",
        "route",
        "scope",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        dialect: Dialect,
        body_limit: int,
        body_seconds: float = 60.0,
    ) -> None:
        self.scope = scope
        self._receive = receive
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.route = ""
        self.dialect = dialect
        self.body_limit = body_limit
        self.body_seconds = body_seconds
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.caller = CallerId("")
        self.gone = False
        self.handed_over = False  # to dispatch, which tells how the request ended
        self.cut_error: GatewayError | None = None
        self.request_id = RequestId(_request_id(self.headers.get(b"x-request-id")))
        self.reply = Reply(send, [(b"x-request-id", self.request_id.encode())])

    @property
    def shown_path(self) -> str:
        """The path as it may stand in logs and errors: what follows /join/ is a secret, however it is written."""
        found = _SECRET_PATH.search(self.path)
        return self.path if found is None else f"{self.path[: found.end()]}…"

    def check_headers(self) -> None:
        """Refuse a request whose deciding headers come twice."""
        names = [name for name, _ in self.scope["headers"]]
        if len(names) == len(self.headers):
            return
        for name in _SINGLE_HEADERS:
            if names.count(name) > 1:
                raise RequestInvalid(f"the header {name.decode()} came more than once", status=400)

    def header(self, name: bytes) -> str | None:
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def wants_events(self) -> bool:
        """Does the client ask for server-sent events?"""
        return b"text/event-stream" in self.headers.get(b"accept", b"")

    # the body

    async def read(self) -> bytes:
        """The whole body. Raises BodyTooLarge as soon as it is known to be."""
        length = self.headers.get(b"content-length")
        if length is not None and length.isdigit() and int(length) > self.body_limit:
            raise self._too_large()
        late = asyncio.get_running_loop().call_later(self.body_seconds, self._come_too_late)
        try:
            return await self._read()
        finally:
            late.cancel()

    async def _read(self) -> bytes:
        message = await self._receive()
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            return self._checked(message, body)
        pieces = [body]
        size = len(body)
        while message.get("more_body", False):
            message = await self._receive()
            piece = message.get("body", b"")
            size += len(piece)
            if size > self.body_limit:
                raise self._too_large()
            pieces.append(piece)
        return self._checked(message, b"".join(pieces))

    def _checked(self, message: Message, body: bytes) -> bytes:
        if message["type"] == "http.disconnect":
            self.gone = True
            raise ClientGone
        if len(body) > self.body_limit:
            raise self._too_large()
        return body

    def _come_too_late(self) -> None:
        self.cut(RequestInvalid(f"the body did not come within {self.body_seconds:g} s", status=408))

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self.body_limit} bytes")

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object. Raises RequestInvalid (400) with the place of the mistake."""
        body = await self.read()
        if not body.strip():
            raise RequestInvalid("missing request body", status=400)
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise self._bad_json(body, error) from error
        if type(value) is not dict:
            raise RequestInvalid("the body must be a JSON object", status=400)
        if might_be_too_deep(body) and is_too_deep(value):
            raise RequestInvalid(f"the body is nested more than {DEEPEST} levels deep", status=400)
        return value

    def _bad_json(self, body: bytes, error: orjson.JSONDecodeError) -> RequestInvalid:
        encoding = self.header(b"content-encoding")
        if encoding not in (None, "", "identity"):
            return RequestInvalid(f"bodies with Content-Encoding {str(encoding)[:40]!r} are not read", status=415)
        try:
            body.decode()
        except UnicodeDecodeError as broken:
            line = body.count(b"\n", 0, broken.start) + 1
            column = broken.start - body.rfind(b"\n", 0, broken.start)
            where, why = f"line {line}, column {column}", "the text is not UTF-8"
        else:
            where, why = f"line {error.lineno}, column {error.colno}", error.msg
        return RequestInvalid(f"the body is not valid JSON: {why} ({where})", status=400)

    # the client's presence

    def watch(self) -> None:
        """From now on the client's leaving cancels this task. Call it when the body has been read."""
        if self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(self._wait_for_leaving())

    def hand_over(self) -> None:
        """The request goes to the fleet now: watch the client, and leave the log's line to dispatch."""
        self.handed_over = True
        self.watch()

    async def _wait_for_leaving(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                if self._task is not None:
                    self._task.cancel()
                return

    def cut(self, error: GatewayError) -> None:
        """End this request: with `error`, as a status or as the last event of a stream already begun.

        One that was handed over is cancelled by dispatch, which runs in this very task.
        """
        self.cut_error = error
        if self._task is not None and not self.handed_over:
            self._task.cancel()

    def end(self) -> None:
        """The handler is through: nobody needs to know when the client leaves."""
        self._task = None
        if self._watcher is not None:
            self._watcher.cancel()

    async def refuse(self, error: GatewayError) -> None:
        """Answer with an error. Only before the reply has begun."""
        self.reply.headers += error_headers(error)
        status = http_status(error, self.dialect)
        await self.reply.answer(error_bytes(error, self.dialect), status=status)


class ClientGone(Exception):
    """The client left while its request was being read."""


def _request_id(given: bytes | None) -> str:
    if given is not None and _SANE_REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    return f"{_id_prefix}-{next(_id_numbers):06x}"
