"""What a caller asks of a relay node, made into the protocol's messages; local mistakes are found before anything is
sent.

Every option is honoured or refused: an unknown name is a Misuse that names the nearest known one. The defaults are the
node's. Knows nothing of connections.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypedDict, get_type_hints

from wire.errors import OutOfBounds
from wire.messages import encode_message
from wire.messages_work import (
    Bounds,
    ChatMessage,
    ChatPrompt,
    Embed,
    Generate,
    JsonGuide,
    LogitBias,
    RegexGuide,
    Sampling,
    TextPrompt,
    TokenPrompt,
)

from .errors import Misuse

__all__ = ["EmbedOptions", "GenerateOptions", "Prompt", "embed_request", "generate_request"]

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A text, token ids, or the messages of a chat (`{"role": …, "content": …}`)."""


class GenerateOptions(TypedDict, total=False):
    """Everything that may stand beside a prompt; what is None is left out."""

    system: str | None
    raw: bool | None
    context: Sequence[int] | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repeat_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repeat_last_n: int | None
    seed: int | None
    logit_bias: Mapping[int, float] | None
    logprobs: bool | int | None
    format: str | Mapping[str, Any] | None
    regex: str | None
    stop: str | Sequence[str] | None
    max_tokens: int | None
    num_predict: int | None
    min_tokens: int | None
    num_ctx: int | None
    num_keep: int | None
    truncate: bool | None
    shift: bool | None
    ignore_end: bool | None
    samples: int | None
    priority: int | None
    deadline_s: float | None
    keep_alive: float | None
    caller: str | None
    cache_salt: str | None


class EmbedOptions(TypedDict, total=False):
    """The same for embeddings."""

    num_ctx: int | None
    truncate: bool | None
    normalise: bool | None
    dimensions: int | None
    keep_alive: float | None
    caller: str | None
    cache_salt: str | None


_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty",
    "repeat_last_n", "seed",
)  # fmt: skip
_BOUNDS = {
    "max_tokens": "max_tokens", "num_predict": "max_tokens", "min_tokens": "min_tokens", "num_ctx": "context_tokens",
    "num_keep": "keep_tokens", "truncate": "truncate", "shift": "shift", "ignore_end": "ignore_end",
}  # fmt: skip


def generate_request(model: str, prompt: Prompt, options: Mapping[str, Any]) -> Generate:
    """Raises Misuse for options that are unknown, contradict each other or are out of range."""
    given = _given(options, GenerateOptions)
    if "max_tokens" in given and "num_predict" in given:
        raise Misuse("max_tokens and num_predict are two names of one thing; give one")
    try:
        request = Generate(
            model, _prompt(prompt, given), _sampling(given),
            Bounds(**{field: given[name] for name, field in _BOUNDS.items() if name in given}),
            stop=_texts(given.get("stop", ())),
            **_plain(given, "samples", "priority", "caller", "cache_salt"),
            **_times(given),
        )  # fmt: skip
        encode_message(request)
    except (OutOfBounds, TypeError) as error:
        raise Misuse(str(error)) from error
    return request


def embed_request(model: str, texts: str | Sequence[str], options: Mapping[str, Any]) -> Embed:
    given = _given(options, EmbedOptions)
    names = {"num_ctx": "context_tokens"}
    fields = {names.get(name, name): value for name, value in given.items() if name != "keep_alive"}
    return Embed(model, _texts(texts), **fields, **_times(given))


def _given(options: Mapping[str, Any], known: type) -> dict[str, Any]:
    names = get_type_hints(known)
    for name in options:
        if name not in names:
            near = get_close_matches(name, names, 1)
            raise Misuse(f"there is no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return {name: value for name, value in options.items() if value is not None}


def _prompt(prompt: Prompt, given: Mapping[str, Any]) -> ChatPrompt | TextPrompt | TokenPrompt:
    system, context = given.get("system"), tuple(given.get("context", ()))
    raw = given.get("raw", False)
    ids = not isinstance(prompt, str) and all(isinstance(each, int) for each in prompt)
    if (raw or ids) and (system is not None or context):
        raise Misuse("system and context go with a chat or a plain prompt, not with raw text or token ids")
    if isinstance(prompt, str):
        if raw:
            return TextPrompt(prompt)
        messages: Sequence[Any] = ({"role": "user", "content": prompt},)
    elif ids:
        return TokenPrompt(tuple(int(each) for each in prompt))  # type: ignore[arg-type]  # all are whole numbers
    else:
        messages = prompt
        if raw:
            raise Misuse("raw is for text; messages go through the model's template")
    chat = tuple(map(_message, messages))
    return ChatPrompt((ChatMessage("system", system), *chat) if system is not None else chat, context)


def _message(message: object) -> ChatMessage:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise Misuse("a message is a mapping with 'role' and 'content'")
    if extra := message.keys() - {"role", "content"}:
        raise Misuse(f"a message has 'role' and 'content'; {sorted(map(str, extra))[0]!r} cannot be sent to a node")
    if not isinstance(message["content"], str):
        raise Misuse("the content of a message is text")
    return ChatMessage(str(message["role"]), message["content"])


def _sampling(given: Mapping[str, Any]) -> Sampling:
    fields = {name: given[name] for name in _SAMPLING if name in given}
    if "logit_bias" in given:
        fields["logit_bias"] = tuple(LogitBias(int(id), float(bias)) for id, bias in given["logit_bias"].items())
    logprobs = given.get("logprobs", False)
    if logprobs is not False:
        fields["logprobs"] = 0 if logprobs is True else logprobs
    if "format" in given and "regex" in given:
        raise Misuse("format and regex both say what the answer looks like; give one")
    if "regex" in given:
        fields["guide"] = RegexGuide(given["regex"])
    if "format" in given:
        fields["guide"] = _json_guide(given["format"])
    return Sampling(**fields)


def _json_guide(form: str | Mapping[str, Any]) -> JsonGuide:
    if form == "json":
        return JsonGuide()
    if isinstance(form, str):
        raise Misuse(f"format is 'json' or a JSON schema, not {form!r}")
    return JsonGuide(json.dumps(form))


def _texts(texts: str | Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _plain(given: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _times(given: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of the caller; a negative keep_alive is for ever, as with Ollama."""
    fields: dict[str, Any] = {}
    if "deadline_s" in given:
        fields["deadline_ms"] = round(1000 * given["deadline_s"])
    if "keep_alive" in given:
        keep = given["keep_alive"]
        if isinstance(keep, bool) or not isinstance(keep, int | float):
            raise Misuse("keep_alive is a number of seconds; negative or infinite: for ever")
        fields["keep_alive_seconds"] = math.inf if keep < 0 else float(keep)
    return fields
