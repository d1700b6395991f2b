"""`/v1/batch/completions`: many prompts or requests answered together, results in order, each with its own error.

Items run several at a time, never more than the model has slots, so that a batch does not fill the queue for others. An
item that fails leaves the rest alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from gpu_node.api.body import read_body
from gpu_node.api.generations import in_window
from gpu_node.api.openai import OpenAiApi
from gpu_node.api.openai_records import Record
from gpu_node.api.replies import Stream, WatchedAnswer, json_reply, openai_error_of, send_whole
from gpu_node.api.schemas import parse_object
from gpu_node.api.service import Service
from gpu_node.api.terms import Asker, asker_of
from gpu_node.errors import NodeError, NodeStopping, RequestError

MOST_ITEMS = 10_000
LISTS = ("prompts", "requests")

Told = Callable[[int, Record], Awaitable[None]]


class BatchApi:
    def __init__(self, service: Service, openai: OpenAiApi) -> None:
        self._service, self._openai = service, openai

    async def completions(self, request: Request) -> Response:
        body = parse_object(await read_body(request, self._service.max_body_bytes))
        stream = body.pop("stream", None)
        if not isinstance(stream, bool | None):
            raise RequestError("stream must be true or false", field="stream")
        batch = _Batch(self._service, self._openai, split(body), asker_of(request))
        return WatchedAnswer(batch.stream if stream else batch.whole)


def split(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The requests, each with the shared fields where it has none of its own. Raises `RequestError`."""
    given = [name for name in LISTS if body.get(name) is not None]
    if len(given) != 1:
        raise RequestError("a batch needs prompts or requests, and not both", field="prompts")
    items = body[given[0]]
    if not isinstance(items, list) or not items:
        raise RequestError(f"{given[0]} must be a list that is not empty", field=given[0])
    if len(items) > MOST_ITEMS:
        raise RequestError(f"a batch may hold at most {MOST_ITEMS} requests", field=given[0])
    shared = {name: value for name, value in body.items() if name not in LISTS}
    if given[0] == "prompts":
        return [{**shared, "prompt": item} for item in items]
    for place, item in enumerate(items):
        if not isinstance(item, dict):
            raise RequestError(f"requests.{place} must be an object", field=f"requests.{place}")
    return [{**shared, **item} for item in items]


class _Batch:
    def __init__(self, service: Service, openai: OpenAiApi, items: list[dict[str, Any]], asker: Asker) -> None:
        self._openai, self._items, self._asker = openai, items, asker
        self._window = service.residents.main.slots.running

    async def whole(self, send: Send) -> None:
        async def nothing(index: int, result: Record) -> None:
            pass

        results = await self._run(nothing)
        await send_whole(send, json_reply({"object": "list", "results": results, "usage": summed(results)}))

    async def stream(self, send: Send) -> None:
        """Results as lines as they finish, each with its place; nothing is sent before the first."""
        stream = Stream(send)

        async def tell(index: int, result: Record) -> None:
            await stream.line({"index": index, **result})

        try:
            last: Record = {"done": True, "usage": summed(await self._run(tell))}
        except NodeError as error:
            if not stream.started:
                raise
            last = openai_error_of(error)
        await stream.line(last)
        await stream.end()

    async def _run(self, tell: Told) -> list[Record]:
        async def one(index: int) -> Record:
            result = await self._answered(index)
            await tell(index, result)
            return result

        return await in_window(one, len(self._items), self._window)

    async def _answered(self, index: int) -> Record:
        try:
            return await self._openai.call(self._openai.read(self._items[index]), self._asker).answer()
        except NodeStopping:
            raise
        except NodeError as error:
            return openai_error_of(error)


def summed(results: list[Record]) -> Record:
    usages = [result["usage"] for result in results if "usage" in result]
    return {key: sum(usage[key] for usage in usages) for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
