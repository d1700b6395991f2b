"""From a request body to a `Call`, or to the refusal that the recorded version gives. Pure; the words are Ollama's
own.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from tests.fakes.phone_call import Call
from tests.fakes.phone_settings import FakeModel, PhoneSettings
from tests.fakes.phone_template import Message

_NAME = re.compile(r"(?:[A-Za-z0-9_][\w.-]*/){0,3}[A-Za-z0-9_][\w.-]*(?::[\w.-]+)?")
_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_FLOATS = frozenset(
    (
        *("temperature", "top_p", "min_p", "typical_p", "tfs_z", "repeat_penalty", "presence_penalty"),
        *("frequency_penalty", "mirostat_tau", "mirostat_eta"),
    )
)
_INTEGERS = frozenset(
    (
        *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed", "num_predict"),
        *("top_k", "repeat_last_n", "mirostat"),
    )
)
_BOOLEANS = frozenset(
    ("use_mmap", "use_mlock", "numa", "low_vram", "penalize_newline", "vocab_only", "f16_kv", "logits_all")
)
_GO_FIELDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "model": (str, "string"),
    "messages": (list, "[]api.Message"),
    "prompt": (str, "string"),
    "suffix": (str, "string"),
    "system": (str, "string"),
    "template": (str, "string"),
    "context": (list, "[]int"),
    "stream": (bool, "bool"),
    "raw": (bool, "bool"),
    "options": (dict, "map[string]interface {}"),
    "images": (list, "[]api.ImageData"),
    "tools": (list, "api.Tools"),
    "truncate": (bool, "bool"),
    "logprobs": (bool, "bool"),
    "top_logprobs": (int, "int"),
}


class Refused(Exception):
    """The request ends here. `streamed`: with the framing of a stream that fails, instead of a plain JSON answer."""

    def __init__(self, status: int, message: str, *, streamed: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.streamed = streamed


class Unreadable(Refused):
    """The body is no request at all: found before any dialect looks at it."""


@dataclass(frozen=True, slots=True)
class Contexts:
    """Where `context` token ids are looked up: what text they stand for."""

    find: Callable[[list[int]], str]


def parse_json(body: bytes, struct: str = "") -> dict[str, Any]:
    """The body as an object, or Go's words for what is wrong with it."""
    if not body.strip():
        raise Unreadable(400, "missing request body")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Unreadable(400, _go_error(body, error)) from error
    if not isinstance(value, dict):
        raise Unreadable(400, f"json: cannot unmarshal {_go_kind(value)} into Go value of type api.{struct}")
    for name, (kind, go_type) in _GO_FIELDS.items():
        given = value.get(name)
        if given is not None and (not isinstance(given, kind) or (isinstance(given, bool) and kind is int)):
            where = f"Go struct field {struct}.{name} of type {go_type}"
            raise Unreadable(400, f"json: cannot unmarshal {_go_kind(given)} into {where}")
    return value


def _go_error(body: bytes, error: orjson.JSONDecodeError) -> str:
    if "end of" in error.msg or "EOF" in error.msg or error.pos >= len(body.rstrip()):
        return "unexpected EOF"
    return f"invalid character '{chr(body[error.pos])}' looking for beginning of value"


def _go_kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    kinds = {str: "string", int: "number", float: "number", list: "array", dict: "object"}
    return kinds.get(type(value), "null")


def find_model(body: dict[str, Any], settings: PhoneSettings, *, pulling: bool = False) -> FakeModel:
    """`name` is the old spelling of `model`; the command itself still uses it in places."""
    name = body.get("model") or body.get("name") or ""
    if not name:
        raise Refused(400, "model is required")
    if not _NAME.fullmatch(name):
        raise Refused(400, "invalid model name" if settings.profile.checks_model_names else "model is required")
    model = settings.model_named(name)
    if model is None:
        text = f'model "{name}" not found, try pulling it first' if pulling else f"model '{name}' not found"
        raise Refused(404, text)
    return model


def seconds_of(keep_alive: Any) -> float | None:
    """`keep_alive` as Ollama reads it: seconds as a number, or a Go duration; below zero means for ever."""
    if keep_alive is None or keep_alive == "":
        return None
    if isinstance(keep_alive, bool) or not isinstance(keep_alive, (int, float, str)):
        raise Refused(400, f"time: invalid duration {orjson.dumps(keep_alive).decode()}")
    if isinstance(keep_alive, (int, float)):
        seconds = float(keep_alive)
    elif re.fullmatch(f"(?:{_DURATION.pattern})+", keep_alive):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(keep_alive))
    elif keep_alive in ("0", "-0"):
        seconds = 0.0
    else:
        raise Refused(400, f'time: invalid duration "{keep_alive}"')
    return float("inf") if seconds < 0 else seconds


def check_options(options: dict[str, Any] | None) -> dict[str, Any]:
    """A wrong type is a 500 in Ollama; an unknown option is ignored; null is as good as absent."""
    known: dict[str, Any] = {}
    for name, value in (options or {}).items():
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in _FLOATS and not number:
            raise Refused(500, f'option "{name}" must be of type float32')
        if name in _INTEGERS and not number:
            raise Refused(500, f'option "{name}" must be of type integer')
        if name in _BOOLEANS and not isinstance(value, bool):
            raise Refused(500, f'option "{name}" must be of type boolean')
        if name == "stop":
            if not isinstance(value, list):
                raise Refused(500, 'option "stop" must be of type array')
            if not all(isinstance(stop, str) for stop in value):
                raise Refused(500, 'option "stop" must be of an array of strings')
        known[name] = value
    return known


def _images(value: Any) -> tuple[str, ...]:
    for image in value or ():
        try:
            base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError, TypeError) as error:
            alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
            wrong = next((at for at, char in enumerate(str(image)) if char not in alphabet), len(str(image)))
            raise Refused(400, f"illegal base64 data at input byte {wrong}") from error
    return tuple(value or ())


def _messages(body: dict[str, Any]) -> tuple[Message, ...]:
    result = []
    for message in body.get("messages") or ():
        if not isinstance(message, dict) or not isinstance(message.get("content") or "", str):
            given = message.get("content") if isinstance(message, dict) else message
            where = "Go struct field Message.messages.content of type string"
            raise Refused(400, f"json: cannot unmarshal {_go_kind(given)} into {where}")
        content = message.get("content") or ""
        if message.get("tool_calls"):
            content += orjson.dumps(message["tool_calls"]).decode()
        result.append(Message(str(message.get("role", "")), content, _images(message.get("images"))))
    return tuple(result)


def _check_capabilities(body: dict[str, Any], model: FakeModel, settings: PhoneSettings) -> None:
    long_name = f"registry.ollama.ai/library/{model.full_name}"
    if body.get("tools") and "tools" not in model.capabilities:
        raise Refused(400, f"{long_name} does not support tools")
    if body.get("suffix") and "insert" not in model.capabilities:
        raise Refused(400, f"{long_name} does not support insert")
    if body.get("think") and settings.profile.knows_thinking and "thinking" not in model.capabilities:
        raise Refused(400, f'"{model.name}" does not support thinking')


def check_format(value: Any, settings: PhoneSettings) -> Any:
    if value is None or value == "" or value == "json" or isinstance(value, dict):
        return None if value == "" else value  # the empty schema is a form too: any JSON
    quoted = orjson.dumps(value).decode().replace("\\", "\\\\").replace('"', '\\"')
    text = f'invalid format: "{quoted}"; expected "json" or a valid JSON Schema object'
    raise Refused(settings.profile.bad_format_status, text, streamed=True)


def _common(body: dict[str, Any], model: FakeModel, settings: PhoneSettings) -> dict[str, Any]:
    profile = settings.profile
    think = body.get("think")
    wants_probabilities = bool(body.get("logprobs")) and profile.knows_logprobs
    return {
        "model": model,
        "asked_name": body.get("model") or body.get("name"),
        "stream": body.get("stream") is not False,
        "options": check_options(body.get("options")),
        "format": check_format(body.get("format"), settings),
        "keep_alive": seconds_of(body.get("keep_alive")),
        "think": bool(think) and profile.knows_thinking,
        "render_only": bool(body.get("_debug_render_only")) and profile.renders,
        "truncate": body.get("truncate") is not False or not profile.refuses_too_long,
        "logprobs": int(body.get("top_logprobs") or 0) if wants_probabilities else None,
    }


def read_chat(body: dict[str, Any], settings: PhoneSettings) -> Call:
    messages = _messages(body)
    model = find_model(body, settings, pulling=settings.profile.says_try_pulling)
    _check_capabilities(body, model, settings)
    _check_vision(any(message.images for message in messages), model, settings)
    tools = tuple(tool for tool in body.get("tools") or () if isinstance(tool, dict))
    return Call(kind="chat", messages=messages, tools=tools, **_common(body, model, settings))


def read_generate(body: dict[str, Any], settings: PhoneSettings, contexts: Contexts) -> Call:
    images = _images(body.get("images"))
    model = find_model(body, settings)
    _check_capabilities(body, model, settings)
    raw = bool(body.get("raw"))
    if raw and settings.raw == "refused":
        raise Refused(400, "raw mode is not supported here")
    if raw and (body.get("template") or body.get("system") or body.get("context")):
        raise Refused(400, "raw mode does not support template, system, or context")
    _check_vision(bool(images), model, settings)
    prompt = body.get("prompt") or ""
    system = body.get("system") or ""
    context = body.get("context") or []
    suffix = body.get("suffix") or ""
    asked = f"<|fim_prefix|>{prompt}<|fim_suffix|>{suffix}<|fim_middle|>" if suffix else prompt
    messages = (Message("system", system),) if system else ()
    return Call(
        kind="generate",
        messages=(*messages, Message("user", asked, images)),
        prompt=asked,
        context_text=contexts.find(context) if context else "",
        raw=raw and settings.raw == "on",
        template=body.get("template") or "",
        **_common(body, model, settings),
    )


def _check_vision(has_images: bool, model: FakeModel, settings: PhoneSettings) -> None:
    if has_images and settings.profile.refuses_images and "vision" not in model.capabilities:
        inner = (
            '{"error":{"code":400,"message":"Multimodal data provided, but model does not support '
            'multimodal requests.","type":"invalid_request_error"}}'
        )
        raise Refused(400, inner, streamed=True)
