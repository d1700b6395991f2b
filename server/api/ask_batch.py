"""POST /ask_batch: many questions in one call, spread over the whole fleet.

As many run at once as the fleet has use for; the others wait here, so that a large batch neither fills the queue nor
pushes other callers out of it. One that fails is an error in its place. With `stream` results come as they finish.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from server.api.ask import ASK_FIELDS, answer_record, ask_request, with_shared
from server.api.fields import Check, checked, flag, record, sequence
from server.api.incoming import Incoming
from server.api.reply import NDJSON, SSE
from server.api.services import Services
from server.api.streams import gather
from server.errors import GatewayError, InternalError, QueueFull, RequestInvalid
from server.exchange import AskRequest, CallerId, RequestId
from server.http_errors import error_record
from server.nodes import NodeStatus

# Per slot of the fleet: one request that runs and one that waits, so that a freed slot never looks for work.
AT_ONCE_PER_SLOT = 2
LEAST_AT_ONCE = 8
# A queue that others keep full: this often the last worker comes back to it before its item becomes an error.
TRIES_AT_FULL_QUEUE = 5


def _list_of_requests(value: Any, field: str) -> list[Any]:
    if not sequence(value, field):
        raise RequestInvalid(f"'{field}' must not be empty", field=field)
    return list(value)


_SHARED_FIELDS: Mapping[str, Check] = {
    name: check for name, check in ASK_FIELDS.items() if name not in ("prompt", "messages", "progress")
}
_BATCH_FIELDS: Mapping[str, Check] = {
    **_SHARED_FIELDS,
    "prompts": _list_of_requests,
    "requests": _list_of_requests,
    "stream": flag,
}
_ITEM_FIELDS: Mapping[str, Check] = {name: check for name, check in ASK_FIELDS.items() if name != "progress"}


@dataclass(frozen=True, slots=True)
class Batch:
    """The items of a batch: a request each, or the error that its own fields are."""

    items: tuple[AskRequest | GatewayError, ...]
    stream: bool


def read_batch(body: dict[str, Any], request_id: RequestId, caller: CallerId, longest: int) -> Batch:
    values = checked(body, _BATCH_FIELDS)
    prompts, requests = values.get("prompts"), values.get("requests")
    if (prompts is None) == (requests is None):
        raise RequestInvalid("give either 'prompts' or 'requests'", field="prompts")
    shared = with_shared({}, {name: value for name, value in values.items() if name in _SHARED_FIELDS})
    listed = requests if prompts is None else [{"prompt": prompt} for prompt in prompts]
    if len(listed or ()) > longest:
        name = "requests" if prompts is None else "prompts"
        raise RequestInvalid(f"'{name}' holds more than {longest} entries", field=name)
    items = tuple(
        _read_item(item, shared, RequestId(f"{request_id}.{index}"), caller) for index, item in enumerate(listed or ())
    )
    return Batch(items, values.get("stream", False))


def _read_item(
    item: Any, shared: Mapping[str, Any], request_id: RequestId, caller: CallerId
) -> AskRequest | GatewayError:
    try:
        own = checked(record(item, "request"), _ITEM_FIELDS)
        return ask_request(with_shared(shared, own), request_id, caller)
    except GatewayError as error:
        return error


Tell = Callable[[int, dict[str, Any]], Awaitable[None]]


class BatchApi:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def ask_batch(self, incoming: Incoming) -> None:
        batch = read_batch(
            await incoming.json(),
            incoming.request_id,
            incoming.caller,
            self._services.settings.batch_limit,
        )
        incoming.hand_over()
        if batch.stream:
            await self._tell_as_they_finish(incoming, batch)
        else:
            await self._tell_in_order(incoming, batch)

    async def _tell_in_order(self, incoming: Incoming, batch: Batch) -> None:
        results: list[Any] = [None] * len(batch.items)

        async def keep(index: int, result: dict[str, Any]) -> None:
            results[index] = result

        await self._run(incoming, batch, keep)
        await incoming.reply.answer(orjson.dumps({"results": results}))

    async def _tell_as_they_finish(self, incoming: Incoming, batch: Batch) -> None:
        events = incoming.wants_events()
        before, after = (b"data: ", b"\n\n") if events else (b"", b"\n")
        await incoming.reply.begin(SSE if events else NDJSON)

        async def tell(index: int, result: dict[str, Any]) -> None:
            await incoming.reply.tell(before + orjson.dumps({"index": index, **result}) + after)

        try:
            await self._run(incoming, batch, tell)
            last: dict[str, Any] = {"done": True}
        except asyncio.CancelledError:
            if incoming.cut_error is None:
                raise
            last = error_record(incoming.cut_error, "ask")
        await incoming.reply.tell(before + orjson.dumps(last) + after, last=True)

    async def _run(self, incoming: Incoming, batch: Batch, tell: Tell) -> None:
        workers = min(len(batch.items), self._at_once())
        run = _Run(self._services, incoming, batch, tell, workers)
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(run.work())

    def _at_once(self) -> int:
        nodes = self._services.registry.fleet.nodes.values()
        slots = sum(node.slots for node in nodes if node.status is NodeStatus.READY)
        return max(LEAST_AT_ONCE, AT_ONCE_PER_SLOT * slots)


class _Run:
    """One batch under way: its items in order, and how many workers are still at it."""

    def __init__(self, services: Services, incoming: Incoming, batch: Batch, tell: Tell, workers: int) -> None:
        self._services = services
        self._incoming = incoming
        self._items = batch.items
        self._tell = tell
        self._workers = workers
        self._waiting = deque(range(len(batch.items)))

    async def work(self) -> None:
        """Answer one item after another. Where the queue is full, one worker fewer tries, down to the last."""
        try:
            while self._waiting:
                index = self._waiting.popleft()
                result = await self._result(self._items[index])
                if result is None:
                    self._waiting.appendleft(index)
                    return
                await self._tell(index, result)
        finally:
            self._workers -= 1

    async def _result(self, item: AskRequest | GatewayError) -> dict[str, Any] | None:
        """The answer or the error; None when the queue is full and another worker is left to come back to it."""
        if isinstance(item, GatewayError):
            return error_record(item, "ask")
        for tried in range(1, TRIES_AT_FULL_QUEUE + 1):
            try:
                return answer_record(await gather(self._services.dispatch.stream(item)))
            except QueueFull as error:
                if self._workers > 1:
                    return None
                if tried == TRIES_AT_FULL_QUEUE:
                    return error_record(error, "ask")
                await asyncio.sleep(error.retry_after)
            except GatewayError as error:
                return error_record(error, "ask")
            except Exception as error:  # a fault of ours costs this item, not the others
                self._services.log.failed(self._incoming, error)
                return error_record(InternalError(), "ask")
        raise AssertionError("the loop returns")
