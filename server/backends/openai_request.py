"""A call in Ollama's terms as the body that servers with OpenAI's API take. Pure.

vLLM, llama-server and LM Studio differ in what they know beyond OpenAI's own fields; a sampler's name is sent in each
of their spellings. What such a server cannot do is refused with its name, never dropped: an Ollama may still do it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from server.backends.base import Call, encoded
from server.errors import NodeIncapable, NodeRefused
from server.exchange import Message

# Ollama's option -> the names under which it is sent.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "min_p": ("min_p",),
    "seed": ("seed",),
    "stop": ("stop",),
    "presence_penalty": ("presence_penalty",),
    "frequency_penalty": ("frequency_penalty",),
    "repeat_penalty": ("repeat_penalty", "repetition_penalty"),  # llama.cpp's and LM Studio's; vLLM's
}
# The first bytes of an image, in base64, tell what it is.
IMAGE_KINDS = (("iVBOR", "png"), ("/9j/", "jpeg"), ("R0lG", "gif"), ("UklGR", "webp"))
_NO_TIME = re.compile(r"0+(\.0+)?[a-zµ]*")


def request_of(call: Call, *, continues_final_message: bool) -> tuple[str, dict[str, Any]]:
    """The path and the body. Raises NodeIncapable for what cannot be honoured, NodeRefused for what is wrong."""
    fields = dict(call.fields)
    if _is_unload(fields.pop("keep_alive", None)):
        raise NodeIncapable("a node with OpenAI's API cannot unload a model (keep_alive)", 400)
    if call.operation == "embed":
        return "/v1/embeddings", _embed_body(call, fields)
    if fields.pop("truncate", False):
        raise NodeIncapable("a node with OpenAI's API cannot cut a prompt to its context (truncate)", 400)
    if call.continues and not continues_final_message:
        raise NodeIncapable("this node does not continue a message", 501)
    body: dict[str, Any] = {"model": call.model, "stream": True, "stream_options": {"include_usage": True}}
    body |= options_of(call.options)
    if call.operation == "generate" and (fields.get("raw") or "suffix" in fields):
        return "/v1/completions", body | _completion_fields(call, fields)
    body["messages"] = messages_of(_conversation(call, fields))
    if call.continues:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return "/v1/chat/completions", body | _chat_fields(fields)


def options_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling options under their names there."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name == "num_predict":
            if value > 0:  # below: as much as fits, which is the default there
                found["max_tokens"] = value
            continue
        if name not in OPTIONS:
            raise NodeIncapable(f"a node with OpenAI's API cannot honour the option {name!r}", 400)
        found.update(dict.fromkeys(OPTIONS[name], value))
    return found


def messages_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Ollama's messages in OpenAI's shape: images as data URLs, tool calls with ids and their arguments as text."""
    found: list[dict[str, Any]] = []
    open_calls: list[str] = []  # ids of calls whose results are still to come, in order
    for number, message in enumerate(messages):
        record: dict[str, Any] = {"role": message["role"], "content": _content(message)}
        if message.get("thinking"):
            record["reasoning_content"] = message["thinking"]
        calls = message.get("tool_calls")
        if calls:
            record["tool_calls"] = [_tool_call(call, f"call_{number}_{place}") for place, call in enumerate(calls)]
            open_calls = [call["id"] for call in record["tool_calls"]]
        if message["role"] == "tool":
            known = message.get("tool_call_id") or (open_calls.pop(0) if open_calls else f"call_{number}")
            record["tool_call_id"] = known
        found.append(record)
    return found


def _conversation(call: Call, fields: dict[str, Any]) -> Sequence[Message]:
    """The messages of a chat, or those that a prompt means."""
    if call.operation == "chat":
        return call.messages
    fields.pop("raw", None)
    system = fields.pop("system", "")
    user: dict[str, Any] = {"role": "user", "content": call.prompt}
    if images := fields.pop("images", None):
        user["images"] = images
    return [{"role": "system", "content": system}, user] if system else [user]


def _content(message: Message) -> Any:
    text = message.get("content", "")
    images = message.get("images")
    if not images:
        return text
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    return parts + [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]


def _data_url(image: str) -> str:
    kind = next((kind for start, kind in IMAGE_KINDS if image.startswith(start)), None)
    if kind is None:
        raise NodeIncapable("an image must be PNG, JPEG, GIF or WebP for a node with OpenAI's API", 400)
    return f"data:image/{kind};base64,{image}"


def _tool_call(call: Mapping[str, Any], default_id: str) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else encoded(arguments).decode()
    return {
        "id": call.get("id") or default_id,
        "type": "function",
        "function": {"name": function["name"], "arguments": text},
    }


def _chat_fields(fields: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if (wanted := fields.pop("format", None)) is not None:
        body["response_format"] = _response_format(wanted)
    if tools := fields.pop("tools", None):
        body["tools"] = tools
    if (think := fields.pop("think", None)) is not None:
        if isinstance(think, bool):
            body["chat_template_kwargs"] = {"enable_thinking": think}
        else:
            body["reasoning_effort"] = think
    if fields.pop("logprobs", False):
        body["logprobs"] = True
        body["top_logprobs"] = fields.pop("top_logprobs", 0)
    fields.pop("top_logprobs", None)  # means nothing without logprobs, there as here
    _refuse_rest(fields)
    return body


def _completion_fields(call: Call, fields: dict[str, Any]) -> dict[str, Any]:
    """A prompt that is sent as it is: no template, so no system, no images, no tools either."""
    fields.pop("raw", None)
    body: dict[str, Any] = {"prompt": call.prompt}
    if suffix := fields.pop("suffix", ""):
        body["suffix"] = suffix
    if (wanted := fields.pop("format", None)) is not None:
        body["response_format"] = _response_format(wanted)
    if fields.pop("logprobs", False):
        raise NodeIncapable("a node with OpenAI's API tells no logprobs of a raw prompt in Ollama's shape", 400)
    fields.pop("top_logprobs", None)
    _refuse_rest(fields)
    return body


def _embed_body(call: Call, fields: dict[str, Any]) -> dict[str, Any]:
    body = {"model": call.model, "input": fields.pop("input", ""), "encoding_format": "float"}
    if "dimensions" in fields:
        body["dimensions"] = fields.pop("dimensions")
    if fields.pop("truncate", False):
        raise NodeIncapable("a node with OpenAI's API cannot cut an input to its context (truncate)", 400)
    for name in call.options:
        raise NodeIncapable(f"a node with OpenAI's API cannot honour the option {name!r} for embeddings", 400)
    _refuse_rest(fields)
    return body


def _response_format(wanted: Any) -> dict[str, Any]:
    if wanted == "json":
        return {"type": "json_object"}
    if isinstance(wanted, Mapping):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted, "strict": True}}
    raise NodeRefused(f"format must be 'json' or a JSON Schema, not {wanted!r}", 400)


def _refuse_rest(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if value not in (None, "", [], False):
            raise NodeIncapable(f"a node with OpenAI's API cannot honour the field {name!r}", 400)


def _is_unload(keep_alive: Any) -> bool:
    """Such a server keeps its model for ever, which honours every wish but the one to forget it."""
    if isinstance(keep_alive, str):
        return _NO_TIME.fullmatch(keep_alive.strip()) is not None
    return keep_alive is not None and not isinstance(keep_alive, bool) and keep_alive == 0
