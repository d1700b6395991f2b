"""Bodies of Ollama's API: what they may hold, and the request each one means.

Checked as Ollama checks them, with 400 where it blames itself; fields that nobody knows are passed over as it does.
Empty texts count as "not given", since the `ollama` command sends every field. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from server.api.fields import (
    LONGEST_NAME,
    Check,
    base64_fault,
    flag,
    integer,
    keep_alive,
    known_only,
    record,
    sequence,
    text,
    texts,
)
from server.api.options import ollama_options
from server.errors import RequestInvalid
from server.exchange import AskRequest, CallerId, Operation, RequestId

MOST_TOP_LOGPROBS = 20
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
# What may stand in a model's name: Ollama's own characters, and the slashes of hubs and hosts.
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+ -]*")


def model_name(value: Any, field: str) -> str:
    name = text(value, field).strip()
    if len(name) > LONGEST_NAME or (name and (not _MODEL_NAME.fullmatch(name) or ".." in name)):
        raise RequestInvalid("invalid model name", field=field, status=400)
    return name


def _images(value: Any, field: str) -> list[str]:
    for item in texts(value, field):
        if base64_fault(item) is not None:
            at = _BASE64.match(item)
            raise RequestInvalid(f"illegal base64 data at input byte {at.end() if at else 0}", field=field, status=400)
    return list(value)


def _format(value: Any, field: str) -> Any:
    if value in ("", "json") or type(value) is dict:
        return value
    raise RequestInvalid('invalid format; expected "json" or a valid JSON Schema object', field=field, status=400)


def _think(value: Any, field: str) -> bool | str:
    if type(value) is bool or value in ("high", "medium", "low"):
        return value  # type: ignore[no-any-return]
    raise RequestInvalid(
        'invalid think value (must be "high", "medium", "low", true, or false)', field=field, status=400
    )


def _token_ids(value: Any, field: str) -> list[int]:
    check = integer(0, 2**31 - 1)
    return [check(item, field) for item in sequence(value, field)]


def _tools(value: Any, field: str) -> list[Any]:
    return [record(item, f"{field}[{index}]") for index, item in enumerate(sequence(value, field))]


def _input(value: Any, field: str) -> str | list[str]:
    if type(value) is str:
        return value
    if type(value) is list and all(type(item) is str for item in value):
        return value
    raise RequestInvalid("invalid input type", field=field, status=400)


_MESSAGE_FIELDS: Mapping[str, Check] = {
    "role": text,
    "content": text,
    "images": _images,
    "thinking": text,
    "tool_calls": _tools,
    "tool_name": text,
    "tool_call_id": text,
}


def _messages(value: Any, field: str) -> list[dict[str, Any]]:
    messages = []
    for index, item in enumerate(sequence(value, field)):
        message = known_only(record(item, f"{field}[{index}]"), _MESSAGE_FIELDS)
        message.setdefault("role", "")
        message.setdefault("content", "")
        messages.append(message)
    return messages


# Ollama's older clients say `name` where newer ones say `model`.
MODEL_FIELDS: Mapping[str, Check] = {"model": model_name, "name": model_name}
_COMMON: Mapping[str, Check] = {
    **MODEL_FIELDS,
    "stream": flag,
    "options": ollama_options,
    "format": _format,
    "think": _think,
    "keep_alive": keep_alive,
    "logprobs": flag,
    "top_logprobs": integer(0, MOST_TOP_LOGPROBS),
    "truncate": flag,
    "shift": flag,
    "_debug_render_only": flag,
}
GENERATE_FIELDS: Mapping[str, Check] = {
    **_COMMON,
    "prompt": text,
    "suffix": text,
    "system": text,
    "template": text,
    "context": _token_ids,
    "raw": flag,
    "images": _images,
}
CHAT_FIELDS: Mapping[str, Check] = {**_COMMON, "messages": _messages, "tools": _tools}
EMBED_FIELDS: Mapping[str, Check] = {
    **MODEL_FIELDS,
    "input": _input,
    "truncate": flag,
    "dimensions": integer(0, 2**31 - 1),
    "keep_alive": keep_alive,
    "options": ollama_options,
}
EMBEDDINGS_FIELDS: Mapping[str, Check] = {
    **MODEL_FIELDS,
    "prompt": text,
    "keep_alive": keep_alive,
    "options": ollama_options,
}
# Everything else of a body travels to the node under its own name.
_NOT_FIELDS = frozenset({"model", "name", "stream", "options", "messages", "prompt", "_debug_render_only"})


def named_model(values: Mapping[str, Any]) -> str | None:
    return values.get("model") or values.get("name") or None


def required_model(model: str | None) -> str:
    """For what would otherwise reach every model of the fleet. Raises RequestInvalid with Ollama's sentence."""
    if model is None:
        raise RequestInvalid("model is required", field="model", status=400)
    return model


def ollama_request(
    operation: Operation, values: Mapping[str, Any], request_id: RequestId, caller: CallerId
) -> AskRequest:
    """The request that checked fields mean."""
    return AskRequest(
        id=request_id,
        caller=caller,
        operation=operation,
        model=named_model(values),
        messages=values.get("messages", ()),
        prompt=values.get("prompt", ""),
        options=values.get("options", {}),
        fields={name: value for name, value in values.items() if name not in _NOT_FIELDS and value != ""},
        cacheable=True,
        dialect="ollama",
    )
