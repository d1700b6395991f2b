"""POST /ask_batch: many questions in one call, each with fields of its own over those it shares.

With `stream` results come as they finish. How they are spread over the fleet is `batch_run`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from server.api.ask import ASK_FIELDS, answer_record, ask_request, with_shared
from server.api.batch_run import BatchRun, Record
from server.api.fields import Check, checked, flag, record, sequence
from server.api.incoming import Incoming
from server.api.services import Services
from server.api.streams import gather
from server.errors import GatewayError, RequestInvalid
from server.exchange import AskRequest, CallerId, RequestId


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
        run = BatchRun(self._services, incoming, [partial(self._answer, item) for item in batch.items])
        if batch.stream:
            await run.as_they_finish(lambda: {"done": True})
        else:
            await incoming.reply.answer_json({"results": await run.in_order()})

    async def _answer(self, item: AskRequest | GatewayError) -> Record:
        if isinstance(item, GatewayError):
            raise item
        return answer_record(await gather(self._services.dispatch.stream(item)))
