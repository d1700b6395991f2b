"""Ollama's options and what a model's maker wants, as a relay node's sampling, bounds and stop strings. Pure.

Values, clamps and the words of refusals are those of our own node's HTTP API, so that one request means the same to a
node however it is reached. An option that is Ollama's and about how a model is loaded means nothing per request there,
and nothing here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from server.errors import NodeRefused
from wire.messages_work import Bounds, JsonGuide, Sampling

SMALLEST_CONTEXT = 4  # Ollama's own floor
LARGEST_GUIDE = 65_536  # characters of a schema; a grammar of more takes a node seconds to build
INT32 = (1 << 31) - 1
INT64 = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str  # as Ollama says it
    types: tuple[type, ...]

    def accepts(self, value: Any) -> bool:
        if isinstance(value, bool):
            return bool in self.types
        return isinstance(value, self.types) and not (isinstance(value, float) and not math.isfinite(value))


_FLOAT = _Kind("float32", (int, float))
_INTEGER = _Kind("integer", (int, float))
_BOOLEAN = _Kind("boolean", (bool,))
_STRINGS = _Kind("array", (list, tuple, str))

OPTION_KINDS: Mapping[str, _Kind] = {
    "temperature": _FLOAT, "top_k": _INTEGER, "top_p": _FLOAT, "min_p": _FLOAT, "typical_p": _FLOAT,
    "repeat_penalty": _FLOAT, "presence_penalty": _FLOAT, "frequency_penalty": _FLOAT, "repeat_last_n": _INTEGER,
    "seed": _INTEGER, "num_predict": _INTEGER, "num_ctx": _INTEGER, "num_keep": _INTEGER, "stop": _STRINGS,
    "mirostat": _INTEGER, "mirostat_tau": _FLOAT, "mirostat_eta": _FLOAT, "tfs_z": _FLOAT, "penalize_newline": _BOOLEAN,
    "num_batch": _INTEGER, "num_gpu": _INTEGER, "main_gpu": _INTEGER, "num_thread": _INTEGER, "use_mmap": _BOOLEAN,
    "use_mlock": _BOOLEAN, "low_vram": _BOOLEAN, "numa": _BOOLEAN, "draft_num_predict": _INTEGER,
}  # fmt: skip


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given a value, each of the right type; integers may be written as 1.0."""
    checked: dict[str, Any] = {}
    for name, value in options.items():
        kind = OPTION_KINDS.get(name)
        if kind is not None and value is not None:
            checked[name] = _checked(name, kind, value)
    return checked


def usable_options(told: Mapping[str, Any]) -> dict[str, Any]:
    """As `checked_options`, of what a node tells: a wrong one is left out, since no caller can mend it."""
    usable: dict[str, Any] = {}
    for name, value in told.items():
        with contextlib.suppress(NodeRefused):
            usable |= checked_options({name: value})
    return usable


def _checked(name: str, kind: _Kind, value: Any) -> Any:
    if not kind.accepts(value):
        raise NodeRefused(f'option "{name}" must be of type {kind.name}', 400)
    if kind is _INTEGER:
        return int(value)
    if kind is not _STRINGS:
        return value
    words = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(word, str) for word in words):
        raise NodeRefused(f'option "{name}" must be of an array of strings', 400)
    return words


def sampling_of(options: Mapping[str, Any], guide: JsonGuide | None, logprobs: int | None) -> Sampling:
    """`options` are checked ones. Raises NodeRefused for what our own node does not do."""
    for name, neutral in (("mirostat", 0), ("tfs_z", 1.0)):
        if options.get(name, neutral) != neutral:
            raise NodeRefused(f'option "{name}" is not supported by this node', 400)
    plain = Sampling()
    seed = options.get("seed", -1)
    penalty = options.get("repeat_penalty", plain.repeat_penalty)
    if penalty <= 0:
        raise NodeRefused('option "repeat_penalty" must be above 0', 400)
    return Sampling(
        temperature=max(float(options.get("temperature", plain.temperature)), 0.0),
        top_k=_within(options.get("top_k", plain.top_k), -INT32, INT32),
        top_p=_share(options.get("top_p", plain.top_p)),
        min_p=_share(options.get("min_p", plain.min_p)),
        repeat_penalty=float(penalty),
        presence_penalty=float(options.get("presence_penalty", plain.presence_penalty)),
        frequency_penalty=float(options.get("frequency_penalty", plain.frequency_penalty)),
        repeat_last_n=_within(options.get("repeat_last_n", plain.repeat_last_n), -1, INT32),
        seed=None if seed < 0 else min(seed, INT64),
        typical_p=_share(options.get("typical_p", plain.typical_p)) or 1.0,
        logprobs=logprobs,
        guide=guide,
    )


def bounds_of(options: Mapping[str, Any], truncate: bool | None, shift: bool | None) -> Bounds:
    """A larger num_ctx than the model has is taken by the node for all that it has, as Ollama takes it."""
    wanted = options.get("num_ctx", 0)
    return Bounds(
        context_tokens=min(max(wanted, SMALLEST_CONTEXT), INT32) if wanted > 0 else 0,
        max_tokens=_most_tokens(options.get("num_predict", -1)),
        keep_tokens=_within(options.get("num_keep", 4), -1, INT32),
        truncate=truncate is not False,
        shift=shift is not False,
    )


def stops_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in options.get("stop", ()) if word))


def guide_of(form: Any) -> JsonGuide | None:
    """Ollama's `format`: nothing, "json", or a JSON schema."""
    if form is None or form == "":
        return None
    if form == "json":
        return JsonGuide()
    if not isinstance(form, Mapping):
        raise NodeRefused(f'invalid format: {_json(form)}; expected "json" or a valid JSON Schema object', 400)
    text = _json(form)
    if len(text) > LARGEST_GUIDE:
        raise NodeRefused(f"the schema in format is larger than {LARGEST_GUIDE} characters", 400)
    return JsonGuide(text)


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as problem:  # what was read can only be nested too deeply to be written again
        raise NodeRefused("format is nested too deeply", 400) from problem


def _most_tokens(wanted: int) -> int:
    """Below 1 is "as long as the model wants", but for -2."""
    if wanted > 0:
        return min(wanted, INT32)
    return -2 if wanted == -2 else -1


def _share(value: float) -> float:
    return min(max(float(value), 0.0), 1.0)


def _within(value: int, least: int, most: int) -> int:
    return min(max(value, least), most)
