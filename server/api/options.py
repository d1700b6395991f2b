"""Ollama's options: which there are, of which type, and what each of our APIs says about a wrong one.

Checked before anything is sent, since Ollama blames itself (500) for a client's wrong type. The Ollama API answers with
Ollama's own sentences and passes over unknown names as it does; our own API refuses both with the field's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.api.fields import (
    INTEGER_HIGH,
    INTEGER_LOW,
    Check,
    flag,
    integer,
    number,
    record,
    stop_texts,
    unknown_field,
)
from server.errors import RequestInvalid

# The ranges are those in which the samplers of llama.cpp do what the names say; Ollama itself checks none of them.
OPTION_CHECKS: Mapping[str, Check] = {
    "temperature": number(0),
    "top_p": number(0, 1),
    "top_k": integer(0),
    "min_p": number(0, 1),
    "typical_p": number(0, 1),
    "seed": integer(),
    "stop": stop_texts(),
    "num_predict": integer(1, also=(-1, -2)),
    "num_ctx": integer(1, 2**31 - 1),
    "num_keep": integer(-1),
    "repeat_last_n": integer(-1),
    "repeat_penalty": number(0),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "num_batch": integer(1),
    "num_gpu": integer(-1),
    "main_gpu": integer(0),
    "num_thread": integer(0),
    "use_mmap": flag,
}

# In /ask these may also stand beside the prompt; `max_tokens` is another name for `num_predict`.
TOP_LEVEL_OPTIONS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "num_predict",
    "num_ctx",
    "repeat_penalty",
)

_stop_texts = stop_texts()

_GO_TYPES: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "temperature",
            "top_p",
            "min_p",
            "typical_p",
            "repeat_penalty",
            "presence_penalty",
            "frequency_penalty",
        ),
        "float32",
    ),
    **dict.fromkeys(
        (
            "top_k",
            "seed",
            "num_predict",
            "num_ctx",
            "num_keep",
            "repeat_last_n",
            "num_batch",
            "num_gpu",
            "main_gpu",
            "num_thread",
        ),
        "integer",
    ),
    "use_mmap": "boolean",
    "stop": "array",
}


def own_options(value: Any, field: str) -> dict[str, Any]:
    """The `options` of our own API: known names only, each in its range."""
    options: dict[str, Any] = {}
    for name, item in record(value, field).items():
        check = OPTION_CHECKS.get(name)
        if check is None:
            raise unknown_field(name, OPTION_CHECKS, f"{field}.")
        if item is not None:
            options[name] = check(item, f"{field}.{name}")
    return options


def ollama_options(value: Any, field: str) -> dict[str, Any]:
    """The `options` of Ollama's API: types checked in its words, unknown names passed over."""
    if type(value) is not dict:
        raise RequestInvalid(f"'{field}' must be an object", field=field)
    options: dict[str, Any] = {}
    for name, item in value.items():
        go_type = _GO_TYPES.get(name)
        if go_type is not None and item is not None:
            options[name] = _as_go_type(name, item, go_type)
    return options


def _as_go_type(name: str, value: Any, go_type: str) -> Any:
    match go_type:
        case "float32" if type(value) in (int, float):
            return value
        case "integer" if type(value) in (int, float) and INTEGER_LOW <= value <= INTEGER_HIGH:
            return int(value)
        case "boolean" if type(value) is bool:
            return value
        case "array" if type(value) is list:
            if all(type(item) is str for item in value):
                return _stop_texts(value, f"options.{name}")
            raise _option_error(name, "of an array of strings")
        case _:
            raise _option_error(name, f"of type {go_type}")


def _option_error(name: str, wanted: str) -> RequestInvalid:
    return RequestInvalid(f'option "{name}" must be {wanted}', field=f"options.{name}", status=400)
