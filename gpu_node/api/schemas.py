"""The bodies of requests: shapes with pydantic, options with Ollama's own words for a wrong type.

Unknown fields are let through unread, as Ollama does. Everything wrong is a `RequestError` that names the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpu_node.durations import parse_duration
from gpu_node.errors import RequestError


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class ModelBody(Body):
    model: str | None = None
    name: str | None = None  # the older spelling of `model`

    @property
    def model_name(self) -> str:
        return self.model or self.name or ""


class MessageBody(Body):
    role: str = ""
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[dict[str, Any]] | None = None


def duration_of(value: float | str) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise RequestError(f"keep_alive: {error}", field="keep_alive") from error


class RunBody(ModelBody):
    options: dict[str, Any] | None = None
    keep_alive: int | float | str | None = None
    truncate: bool | None = None

    @property
    def keep_alive_seconds(self) -> float | None:
        if self.keep_alive is None or self.keep_alive == "":
            return None
        return duration_of(self.keep_alive)


class AnswerBody(RunBody):
    stream: bool | None = None
    format: Any = None
    think: bool | str | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    priority: int | None = None
    deadline_s: float | None = None
    render_only: bool = Field(default=False, alias="_debug_render_only")


class GenerateBody(AnswerBody):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    raw: bool | None = None
    context: list[int] | None = None
    images: list[str] | None = None


class ChatBody(AnswerBody):
    messages: list[MessageBody] | None = None
    tools: list[Any] | None = None


class EmbedBody(RunBody):
    input: str | list[str] | None = None
    prompt: str | None = None  # of the older /api/embeddings
    dimensions: int | None = None


Shape = TypeVar("Shape", bound=Body)
_KINDS = {
    str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object", type(None): "null",
}  # fmt: skip


def parse(shape: type[Shape], data: bytes) -> Shape:
    """Raises `RequestError` with what is wrong and where."""
    value = parse_object(data)
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        raise mistake(error, shape) from error


def parse_object(data: bytes) -> dict[str, Any]:
    if not data.strip():
        raise RequestError("missing request body")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"invalid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError(f"the body must be a JSON object, not {_KINDS[type(value)]}")
    return value


def mistake(error: ValidationError, shape: type[Body]) -> RequestError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not _is_branch(part))
    if first["type"] == "extra_forbidden":
        near = get_close_matches(where, list(shape.model_fields), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return RequestError(f'field "{where}" is unknown{hint}', field=where)
    got = _KINDS.get(type(first["input"]), "something else")
    return RequestError(f'field "{where}" is wrong: {first["msg"]} (got {got})', field=where)


def _is_branch(part: Any) -> bool:
    """pydantic names the member of a union that it tried as if it were a field."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part)


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
_STRINGS = _Kind("array", (list, str))

OPTION_KINDS: Mapping[str, _Kind] = {
    "temperature": _FLOAT, "top_k": _INTEGER, "top_p": _FLOAT, "min_p": _FLOAT, "typical_p": _FLOAT,
    "repeat_penalty": _FLOAT, "presence_penalty": _FLOAT, "frequency_penalty": _FLOAT, "repeat_last_n": _INTEGER,
    "seed": _INTEGER, "num_predict": _INTEGER, "num_ctx": _INTEGER, "num_keep": _INTEGER, "stop": _STRINGS,
    "mirostat": _INTEGER, "mirostat_tau": _FLOAT, "mirostat_eta": _FLOAT, "tfs_z": _FLOAT, "penalize_newline": _BOOLEAN,
    "num_batch": _INTEGER, "num_gpu": _INTEGER, "main_gpu": _INTEGER, "num_thread": _INTEGER, "use_mmap": _BOOLEAN,
    "use_mlock": _BOOLEAN, "low_vram": _BOOLEAN, "numa": _BOOLEAN, "draft_num_predict": _INTEGER,
}  # fmt: skip


def check_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options that were given a value, each of the right type; integers may be written as 1.0."""
    checked: dict[str, Any] = {}
    for name, value in (options or {}).items():
        kind = OPTION_KINDS.get(name)
        if kind is None or value is None:
            continue
        checked[name] = _checked(name, kind, value)
    return checked


def _checked(name: str, kind: _Kind, value: Any) -> Any:
    if not kind.accepts(value):
        raise RequestError(f'option "{name}" must be of type {kind.name}')
    if kind is _INTEGER:
        return int(value)
    if kind is not _STRINGS:
        return value
    words = [value] if isinstance(value, str) else value
    if not all(isinstance(word, str) for word in words):
        raise RequestError(f'option "{name}" must be of an array of strings')
    return words
