"""What a node of kind relay is asked, from a call in Ollama's terms: every field honoured or refused. Pure.

A field is read as our own node's HTTP API reads it, with the same words where it is refused, so that a request means
the same however the node is reached. What needs no generating (an empty prompt) is a loading or an unloading.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from server.backends.base import Call
from server.backends.relay_answer import too_large
from server.backends.relay_options import bounds_of, checked_options, guide_of, sampling_of, stops_of, usable_options
from server.errors import NodeIncapable, NodeRefused
from server.exchange import Message
from wire.errors import OutOfBounds
from wire.messages_work import ChatMessage, ChatPrompt, Embed, Generate, Given, Load, TextPrompt, Unload

Asked = Generate | Load | Unload
Options = Mapping[str, Any]

MOST_TOP_LOGPROBS = 20  # Ollama's and OpenAI's
NO_IMAGES = "Multimodal data provided, but model does not support multimodal requests."
NO_TEMPLATE = "template is not supported: the model's own chat template is used; send raw: true to use none"
KNOWN_FIELDS = frozenset({
    "format", "tools", "think", "keep_alive", "raw", "system", "template", "suffix", "context", "images", "logprobs",
    "top_logprobs", "truncate", "shift", "input", "dimensions", "stream",
})  # fmt: skip
# Of a loading: what is no option of the protocol's LOAD, and what is called otherwise there.
NOT_OPTIONS = frozenset({"model", "stream", "keep_alive"})
RENAMED_OPTIONS = {"context": "context_tokens", "kv_memory": "kv_bytes"}
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PIECE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|us|µs|ns|h|m|s)")


def asked_of(call: Call, parameters: Options) -> Asked:
    """A chat or generate call. `parameters` are what the model's maker wants where the request says nothing.

    Raises NodeRefused for what our own node refuses, NodeIncapable for what the protocol cannot carry.
    """
    keep_alive = keep_alive_of(call.fields.get("keep_alive"))
    _refuse_unknown(call)
    try:
        if not (call.messages if call.operation == "chat" else call.prompt):
            if keep_alive == 0:
                return Unload(call.model)
            return load_of(call.model, {}, keep_alive)
        return _generate(call, parameters, keep_alive)
    except OutOfBounds as problem:
        raise too_large(problem) from problem


def embed_of(call: Call) -> Embed | None:
    """An embed call; None where there is nothing to embed. Raises as `asked_of`."""
    fields = call.fields
    _refuse_unknown(call)
    given = fields.get("input")
    texts = ([given] if given else []) if isinstance(given, str) else list(given or ())
    options = checked_options(call.options)
    if not texts:
        return None
    try:
        return Embed(
            call.model,
            tuple(texts),
            context_tokens=bounds_of(options, None, None).context_tokens,
            truncate=fields.get("truncate") is not False,
            dimensions=int(fields.get("dimensions") or 0),
            keep_alive_seconds=keep_alive_of(fields.get("keep_alive")),
        )
    except OutOfBounds as problem:
        raise too_large(problem) from problem


def load_of(model: str, options: Options, keep_alive: float | None) -> Load:
    """A loading as a request does it: the model's time to stay counts from then on, and the gateway holds nothing."""
    stay = {} if keep_alive is None else {"keep_alive_seconds": keep_alive}
    return Load(model, tuple({**options, **stay, "hold": False}.items()))


def loading_of(body: Options) -> Load:
    """What a GPU node is asked at /api/models/load; its options are its own to honour or refuse. Raises NodeRefused."""
    options = {name: value for name, value in body.items() if name not in NOT_OPTIONS and value is not None}
    if "num_gpus" in options:
        options["device"] = _device(options.pop("num_gpus"), options.get("device"))
    for name, renamed in RENAMED_OPTIONS.items():
        if name in options:
            options[renamed] = options.pop(name)
    if not all(isinstance(value, str | int | float) for value in options.values()):
        name = next(name for name, value in options.items() if not isinstance(value, str | int | float))
        raise NodeRefused(f'field "{name[:64]}" is wrong: a text or a number is wanted', 400)
    return load_of(str(body.get("model") or ""), options, keep_alive_of(body.get("keep_alive")))


def _device(gpus: Any, device: Any) -> str:
    if type(gpus) is not int or not 0 <= gpus <= 1:
        raise NodeRefused("a model is held by one device: num_gpus must be 0 or 1", 400)
    wanted = "cuda" if gpus else "cpu"
    if device not in (None, "auto", wanted):
        raise NodeRefused(f"num_gpus {gpus} contradicts device {device}", 400)
    return wanted


def rendering_of(request: Asked, call: Call) -> Generate:
    """The same, to be answered by the prompt alone."""
    if isinstance(request, Generate):
        return replace(request, render_only=True)
    prompt = ChatPrompt(()) if call.operation == "chat" else TextPrompt("")
    return Generate(call.model, prompt, render_only=True)


def keep_alive_of(value: Any) -> float | None:
    """Seconds, infinite for anything negative; None where nothing is said. Raises NodeRefused."""
    if value is None or value == "":
        return None
    try:
        seconds = _seconds(value.strip()) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError) as problem:
        raise NodeRefused(f"keep_alive: {problem}", 400) from problem
    if math.isnan(seconds):
        raise NodeRefused("keep_alive: a duration must be a number", 400)
    return math.inf if seconds < 0 else seconds


def _seconds(text: str) -> float:
    sign = -1.0 if text.startswith("-") else 1.0
    body = text.lstrip("+-")
    try:
        return sign * float(body)
    except ValueError:
        pass
    pieces = _PIECE.findall(body)
    if not pieces or "".join(number + unit for number, unit in pieces) != body:
        raise ValueError(f'"{text}" is no duration: write seconds, or a text like "5m" or "1h30m", or -1 for ever')
    return sign * sum(float(number) * _UNITS[unit] for number, unit in pieces)


def _generate(call: Call, parameters: Options, keep_alive: float | None) -> Generate:
    fields = call.fields
    prompt = _chat_prompt(call) if call.operation == "chat" else _generate_prompt(call)
    if fields.get("think"):
        raise NodeRefused(f'"{call.model}" does not support thinking', 400)
    options = {**usable_options(parameters), **checked_options(call.options)}
    return Generate(
        call.model,
        prompt,
        sampling_of(options, guide_of(fields.get("format")), _logprobs(fields)),
        bounds_of(options, fields.get("truncate"), fields.get("shift")),
        stops_of(options),
        given=_given(call),
        keep_alive_seconds=keep_alive,
    )


def _given(call: Call) -> tuple[Given, ...]:
    return () if call.begun is None else (Given(call.begun.ids, call.begun.text_bytes),)


def _logprobs(fields: Options) -> int | None:
    wanted = fields.get("top_logprobs")
    if wanted is not None and not 0 <= wanted <= MOST_TOP_LOGPROBS:
        raise NodeRefused(f"top_logprobs must be between 0 and {MOST_TOP_LOGPROBS}", 400)
    if not fields.get("logprobs"):
        if wanted:
            raise NodeRefused("top_logprobs needs logprobs to be true", 400)
        return None
    return int(wanted or 0)


def _chat_prompt(call: Call) -> ChatPrompt:
    if call.fields.get("tools"):
        raise NodeRefused(f"{call.model} does not support tools", 400)
    return ChatPrompt(_messages(call.messages, call.model))


def _messages(messages: Sequence[Message], model: str) -> tuple[ChatMessage, ...]:
    read = []
    for message in messages:
        if message.get("images"):
            raise NodeRefused(NO_IMAGES, 400)
        if message.get("tool_calls"):
            raise NodeRefused(f"{model} does not support tools", 400)
        read.append(ChatMessage(message.get("role") or "", message.get("content") or ""))
    return tuple(read)


def _generate_prompt(call: Call) -> ChatPrompt | TextPrompt:
    fields = call.fields
    if fields.get("suffix"):
        raise NodeRefused(f"{call.model} does not support insert", 400)
    if fields.get("images"):
        raise NodeRefused(NO_IMAGES, 400)
    if fields.get("raw"):
        if fields.get("template") or fields.get("system") or fields.get("context"):
            raise NodeRefused("raw mode does not support template, system, or context", 400)
        return TextPrompt(call.prompt)
    if fields.get("template"):
        raise NodeRefused(NO_TEMPLATE, 400)
    system = fields.get("system")
    messages = (ChatMessage("system", system),) if system else ()
    return ChatPrompt((*messages, ChatMessage("user", call.prompt)), tuple(fields.get("context") or ()))


def _refuse_unknown(call: Call) -> None:
    for name, value in call.fields.items():
        if name not in KNOWN_FIELDS and value not in (None, "", [], False):
            raise NodeIncapable(f"a node of kind relay cannot honour the field {name!r}", 400)
