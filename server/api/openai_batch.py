"""POST /v1/batch/completions: many chats and completions in one call, as our GPU nodes take them, over the whole fleet.

A request with `messages` is a chat, others are completions; its own fields win over the shared ones. Each is read when
its turn comes, so that a large batch stops nobody, and a mistake in it is its own error. A shared field that
no request knows is the whole batch's mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from server.api.batch_run import BatchRun, Record
from server.api.fields import Check, flag, sequence
from server.api.incoming import Incoming
from server.api.openai_chat import OpenAIChatApi
from server.api.openai_completions import OpenAICompletionsApi
from server.api.openai_fields import CHAT_FIELDS, COMPLETION_FIELDS, MOST_CHOICES, unrecognized
from server.api.services import Services
from server.errors import RequestInvalid
from server.exchange import CallerId, RequestId

LISTS = ("prompts", "requests")
_SHAREABLE: Mapping[str, Check] = {**CHAT_FIELDS, **COMPLETION_FIELDS}
_USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


def read_items(body: Mapping[str, Any], longest: int) -> list[Record]:
    """The bodies of all requests, each with the shared fields where it has none of its own. Raises RequestInvalid."""
    given = [name for name in LISTS if body.get(name) is not None]
    if len(given) != 1:
        raise RequestInvalid("give either 'prompts' or 'requests'", field="prompts")
    name = given[0]
    items = sequence(body[name], name)
    if not items:
        raise RequestInvalid(f"'{name}' must not be empty", field=name)
    if len(items) > longest:
        raise RequestInvalid(f"'{name}' holds more than {longest} entries", field=name)
    shared = {field: value for field, value in body.items() if field not in (*LISTS, "stream")}
    for field in shared:  # every request holds them all, so there may not be any number of them
        if field not in _SHAREABLE:
            raise unrecognized(field, _SHAREABLE)
    if name == "prompts":
        return [{**shared, "prompt": prompt} for prompt in items]
    for place, item in enumerate(items):
        if type(item) is not dict:
            raise RequestInvalid(f"'requests[{place}]' must be an object", field=f"requests[{place}]")
    return [{**shared, **item} for item in items]


def size_of(item: Mapping[str, Any]) -> int:
    """How many requests to the fleet it is, as far as it is none that will be refused."""
    choices, prompt = item.get("n"), item.get("prompt")
    prompts = len(prompt) if type(prompt) is list and item.get("messages") is None else 1
    size = prompts * (choices if type(choices) is int else 1)
    return size if 1 <= size <= MOST_CHOICES else 1


class OpenAIBatchApi:
    def __init__(self, services: Services, chat: OpenAIChatApi, completions: OpenAICompletionsApi) -> None:
        self._services = services
        self._chat, self._completions = chat, completions

    async def completions(self, incoming: Incoming) -> None:
        body = await incoming.json()
        stream = body.get("stream") is not None and flag(body["stream"], "stream")
        items = read_items(body, self._services.settings.batch_limit)
        usage = dict.fromkeys(_USAGE, 0)
        ask = partial(self._ask, incoming.caller, usage)
        incoming.hand_over()
        run = BatchRun(
            self._services,
            incoming,
            [partial(ask, item, RequestId(f"{incoming.request_id}.{number}")) for number, item in enumerate(items)],
            [size_of(item) for item in items],
        )
        if stream:
            await run.as_they_finish(lambda: {"done": True, "usage": usage})
        else:
            results = await run.in_order()
            await incoming.reply.answer_json({"object": "list", "results": results, "usage": usage})

    async def _ask(self, caller: CallerId, usage: dict[str, int], item: Record, request_id: RequestId) -> Record:
        if item.get("stream"):
            raise RequestInvalid("'stream' is for the whole batch", field="stream")
        given = {name: value for name, value in item.items() if value is not None}
        api = self._chat if "messages" in given else self._completions
        answer = await api.answer(given, request_id, caller)
        for name in _USAGE:
            usage[name] += answer["usage"][name]
        return answer
