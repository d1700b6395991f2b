"""OpenAI's chat messages as Ollama's: roles, parts, images, tool calls and their results. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from server.api.fields import base64_fault, record, sequence, text, unknown_field
from server.errors import RequestInvalid
from server.nesting import DEEPEST, is_too_deep

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


# What a message of each role may hold besides its role, content and name.
_KEYS: Mapping[str, frozenset[str]] = {
    "assistant": frozenset({"tool_calls", "reasoning", "reasoning_content", "refusal", "annotations"}),
    "tool": frozenset({"tool_call_id"}),
}
# `name` tells speakers apart, which the models' templates do not; `annotations` are the links of an answer from
# elsewhere, of which models read only the text; a `refusal` is the text of an answer without content.
_ALWAYS = frozenset({"role", "content", "name"})


def ollama_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Raises RequestInvalid with the path of the part that cannot be sent."""
    if not messages:
        raise RequestInvalid("[] is too short - 'messages'", field="messages")
    called: dict[str, str] = {}  # tool_call_id -> the function's name, which Ollama's templates want
    return [
        _message(record(item, f"messages[{index}]"), f"messages[{index}]", called)
        for index, item in enumerate(messages)
    ]


def _message(item: Mapping[str, Any], path: str, called: dict[str, str]) -> dict[str, Any]:
    role = item.get("role")
    if type(role) is not str or role not in _ROLES:
        raise RequestInvalid(
            f"'{path}.role' must be one of 'system', 'developer', 'user', 'assistant', 'tool'",
            field=f"{path}.role",
        )
    _check_keys(item, role, path)
    told, images = _content(item.get("content"), f"{path}.content", optional=role == "assistant")
    message: dict[str, Any] = {"role": _ROLES[role], "content": told}
    if images:
        message["images"] = images
    if role == "assistant":
        _add_assistant_parts(message, item, path, called)
    elif role == "tool":
        name = called.get(text(item.get("tool_call_id"), f"{path}.tool_call_id"))
        if name is not None:
            message["tool_name"] = name
    return message


def _check_keys(item: Mapping[str, Any], role: str, path: str) -> None:
    """Refuse what would be lost. `null` counts as not given: clients send whole messages back."""
    known = _ALWAYS | _KEYS.get(role, frozenset())
    for name, value in item.items():
        if value is None or name in known:
            continue
        if name == "function_call":
            raise RequestInvalid("'function_call' is not supported: use 'tool_calls'", field=f"{path}.function_call")
        raise unknown_field(name, known, f"{path}.")


def _add_assistant_parts(message: dict[str, Any], item: Mapping[str, Any], path: str, called: dict[str, str]) -> None:
    if item.get("tool_calls"):
        calls = sequence(item["tool_calls"], f"{path}.tool_calls")
        message["tool_calls"] = [
            _tool_call(record(call, f"{path}.tool_calls[{index}]"), f"{path}.tool_calls[{index}]", called)
            for index, call in enumerate(calls)
        ]
    for name in ("reasoning", "reasoning_content"):  # two spellings of servers in use
        if item.get(name):
            message["thinking"] = text(item[name], f"{path}.{name}")
    if not message["content"] and item.get("refusal"):
        message["content"] = text(item["refusal"], f"{path}.refusal")


def _tool_call(call: Mapping[str, Any], path: str, called: dict[str, str]) -> dict[str, Any]:
    function = record(call.get("function"), f"{path}.function")
    name = text(function.get("name"), f"{path}.function.name")
    arguments = text(function.get("arguments", "{}"), f"{path}.function.arguments")
    try:
        parsed = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError as error:
        raise RequestInvalid(
            f"'{path}.function.arguments' is not valid JSON: {error.msg}", field=f"{path}.function.arguments"
        ) from error
    if type(parsed) is dict and is_too_deep(parsed):
        raise RequestInvalid(
            f"'{path}.function.arguments' is nested more than {DEEPEST} levels deep", field=f"{path}.function.arguments"
        )
    if call.get("id") is not None:
        called[text(call["id"], f"{path}.id")] = name
    return {"function": {"name": name, "arguments": record(parsed, f"{path}.function.arguments")}}


def _content(value: Any, path: str, *, optional: bool) -> tuple[str, list[str]]:
    """The text and the images of a message."""
    if type(value) is str:
        return value, []
    if value is None and optional:
        return "", []
    if type(value) is not list:
        text(value, path)
    told: list[str] = []
    images: list[str] = []
    for index, item in enumerate(value):
        _part(record(item, f"{path}[{index}]"), f"{path}[{index}]", told, images)
    return "\n".join(told), images


def _part(part: Mapping[str, Any], path: str, told: list[str], images: list[str]) -> None:
    match part.get("type"):
        case "text":
            told.append(text(part.get("text"), f"{path}.text"))
        case "refusal":
            told.append(text(part.get("refusal"), f"{path}.refusal"))
        case "image_url":
            images.append(_image(part.get("image_url"), f"{path}.image_url"))
        case other:
            raise RequestInvalid(
                f"'{path}.type' must be 'text' or 'image_url'"
                + (f", '{other[:40]}' is not supported" if type(other) is str else ""),
                field=f"{path}.type",
            )


def _image(value: Any, path: str) -> str:
    """The base64 text of a data URL. Nothing is fetched: the gateway works offline."""
    url = text(value.get("url") if type(value) is dict else value, f"{path}.url")
    head, separator, data = url.partition(";base64,")
    if not separator or not head.startswith("data:"):
        raise RequestInvalid(
            f"'{path}.url' must be a data URL with base64: images are not fetched", field=f"{path}.url"
        )
    fault = base64_fault(data)
    if fault is not None:
        raise RequestInvalid(f"'{path}.url' is not valid base64: {fault}", field=f"{path}.url")
    return data
