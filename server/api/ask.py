"""Our own API: POST /ask and /ask_stream.

Bodies become an `AskRequest` by a table of fields; whatever the table lacks is refused by name. Answers carry what the
gateway knows: node, cache, timings, attempts, shares. Knows nothing of nodes or of how an answer is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from server.api.fields import (
    Check,
    base64_texts,
    checked,
    filled_text,
    flag,
    integer,
    keep_alive,
    number,
    one_of,
    record,
    sequence,
    short_name,
    text,
    unknown_field,
    wrong_type,
)
from server.api.incoming import Incoming
from server.api.options import OPTION_CHECKS, TOP_LEVEL_OPTIONS, own_options
from server.api.reply import NDJSON, SSE
from server.api.services import Services
from server.api.streams import WholeAnswer, gather, relay
from server.errors import GatewayError, RequestInvalid
from server.exchange import AskRequest, CallerId, Done, RequestId, Token
from server.http_errors import error_bytes

ROLES = ("system", "user", "assistant")  # tools are of the other two APIs: here nobody could have called one
_THINK_LEVELS = ("low", "medium", "high")


def answer_format(value: Any, field: str) -> str | dict[str, Any]:
    """`"json"`, or a JSON Schema as an object."""
    if value == "json" or type(value) is dict:
        return value  # type: ignore[no-any-return]
    raise RequestInvalid(f"'{field}' must be \"json\" or a JSON Schema object", field=field)


def think(value: Any, field: str) -> bool | str:
    if type(value) is bool or value in _THINK_LEVELS:
        return value  # type: ignore[no-any-return]
    raise wrong_type(field, "true, false, 'low', 'medium' or 'high'", value)


_MESSAGE_FIELDS: Mapping[str, Check] = {
    "role": one_of(*ROLES),
    "content": text,
    "images": base64_texts,
    "thinking": text,
}


def messages(value: Any, field: str) -> list[dict[str, Any]]:
    """A conversation: at least one message, each with a role and its text."""
    checked_messages = []
    for index, item in enumerate(sequence(value, field)):
        path = f"{field}[{index}]"
        checked_messages.append(_message(record(item, path), path))
    if not checked_messages:
        raise RequestInvalid(f"'{field}' must not be empty", field=field)
    return checked_messages


def _message(item: dict[str, Any], path: str) -> dict[str, Any]:
    message = {}
    for name, value in item.items():
        check = _MESSAGE_FIELDS.get(name)
        if check is None:
            raise unknown_field(name, _MESSAGE_FIELDS, f"{path}.")
        if value is not None:
            message[name] = check(value, f"{path}.{name}")
    for name in ("role", "content"):
        if name not in message:
            raise RequestInvalid(f"'{path}.{name}' is required", field=f"{path}.{name}")
    return message


def _whole_only(value: Any, field: str) -> bool:
    if flag(value, field):
        raise RequestInvalid("/ask answers in one piece", field=field, hint="POST the same body to /ask_stream")
    return False


ASK_FIELDS: Mapping[str, Check] = {
    "prompt": filled_text,
    "messages": messages,
    "model": short_name,
    "system": text,
    "images": base64_texts,
    "options": own_options,
    "format": answer_format,
    "think": think,
    "keep_alive": keep_alive,
    "priority": integer(-1000, 1000),
    "deadline_s": number(0.001, 86_400),
    "cache": flag,
    "progress": flag,
    "max_tokens": OPTION_CHECKS["num_predict"],
    **{name: OPTION_CHECKS[name] for name in TOP_LEVEL_OPTIONS},
}
_WHOLE_FIELDS: Mapping[str, Check] = {**ASK_FIELDS, "stream": _whole_only}
_STREAM_FIELDS: Mapping[str, Check] = {**ASK_FIELDS, "stream": flag}
_BESIDE_PROMPT = (*TOP_LEVEL_OPTIONS, "max_tokens")
_PASSED_ON = ("format", "think", "keep_alive")


def ask_request(values: Mapping[str, Any], request_id: RequestId, caller: CallerId) -> AskRequest:
    """The request that checked fields mean."""
    model = values.get("model")
    return AskRequest(
        id=request_id,
        caller=caller,
        operation="chat",
        model=model.strip() or None if model else None,
        messages=_conversation(values),
        options=_options(values),
        fields={name: values[name] for name in _PASSED_ON if name in values},
        priority=values.get("priority", 0),
        deadline_seconds=values.get("deadline_s"),
        cacheable=values.get("cache", True),
    )


def _conversation(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    conversation: list[dict[str, Any]] | None = values.get("messages")
    prompt = values.get("prompt")
    system = values.get("system")
    if conversation is None:
        if prompt is None:
            raise RequestInvalid("'prompt' is required", field="prompt")
        message = {"role": "user", "content": prompt}
        if values.get("images"):
            message["images"] = values["images"]
        return [{"role": "system", "content": system}, message] if system else [message]
    if prompt is not None:
        raise RequestInvalid("give 'prompt' or 'messages', not both", field="messages")
    if values.get("images"):
        raise RequestInvalid("'images' goes with 'prompt'", field="images", hint="put them into a message")
    if not system:
        return conversation
    if conversation[0]["role"] == "system":
        raise RequestInvalid("the messages begin with a system message of their own", field="system")
    return [{"role": "system", "content": system}, *conversation]


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options from the top level and from `options`, which must not contradict each other."""
    options: dict[str, Any] = dict(values.get("options", ()))
    for name in _BESIDE_PROMPT:
        if name in values:
            option = "num_predict" if name == "max_tokens" else name
            if options.setdefault(option, values[name]) != values[name]:
                raise RequestInvalid(f"'{name}' is given twice, with different values", field=name)
    return options


def with_shared(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """An item's own fields over those it shares. Options go one by one, in whichever spelling and place they came."""
    fields = {name: value for name, value in {**shared, **own}.items() if name not in _BESIDE_PROMPT}
    return {**fields, "options": {**_options(shared), **_options(own)}}


def done_record(done: Done) -> dict[str, Any]:
    """What our own API tells of a finished answer, besides its text."""
    timings = done.timings
    speed = done.tokens_per_second
    return {
        "model": done.model,
        "node": done.node,
        "cached": done.cache == "hit",
        "usage": done.usage,
        "timings_ms": {
            "queue": round(timings.queue, 3),
            "first_token": round(timings.first_token, 3),
            "total": round(timings.total, 3),
        },
        "tokens_per_second": None if speed is None else round(speed, 2),
        "attempts": done.attempts,
        "nodes": done.nodes,
        "done_reason": done.reason,
    }


def answer_record(whole: WholeAnswer) -> dict[str, Any]:
    answer: dict[str, Any] = {"response": whole.text}
    if whole.thinking:
        answer["thinking"] = whole.thinking
    answer.update(done_record(whole.done))
    return answer


class LineEncoder:
    """The records of our own streams, one JSON object a line."""

    content_type = NDJSON
    _before, _after = b"", b"\n"

    def token(self, token: Token) -> bytes:
        if token.thinking:
            told = b'{"thinking":' + orjson.dumps(token.thinking) + b"}"
            if not token.text:
                return self._before + told + self._after
            return self._before + told + self._after + self._token(token.text)
        return self._token(token.text) if token.text else b""

    def _token(self, told: str) -> bytes:
        return self._before + b'{"token":' + orjson.dumps(told) + b"}" + self._after

    def queued(self, position: int) -> bytes:
        return self._before + b'{"queued":%d}' % position + self._after

    def done(self, done: Done) -> bytes:
        return self._before + orjson.dumps({"done": True, **done_record(done)}) + self._after

    def failed(self, error: GatewayError) -> bytes:
        return self._before + error_bytes(error, "ask") + self._after


class EventEncoder(LineEncoder):
    """The same records as server-sent events; the place in the queue is a comment, which readers pass over."""

    content_type = SSE
    _before, _after = b"data: ", b"\n\n"

    def queued(self, position: int) -> bytes:
        return b": queued %d\n\n" % position


class AskApi:
    def __init__(self, services: Services) -> None:
        self._dispatch = services.dispatch

    async def ask(self, incoming: Incoming) -> None:
        values = checked(await incoming.json(), _WHOLE_FIELDS)
        request = ask_request(values, incoming.request_id, incoming.caller)
        incoming.hand_over()
        whole = await gather(self._dispatch.stream(request), incoming)
        await incoming.reply.answer(orjson.dumps(answer_record(whole)))

    async def ask_stream(self, incoming: Incoming) -> None:
        values = checked(await incoming.json(), _STREAM_FIELDS)
        request = ask_request(values, incoming.request_id, incoming.caller)
        incoming.hand_over()
        encoder = EventEncoder() if incoming.wants_events() else LineEncoder()
        await relay(
            incoming, self._dispatch.stream(request), encoder, encoder.queued if values.get("progress") else None
        )
