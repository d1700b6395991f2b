"""OpenAI's parameters: what each one means here, why some change nothing, and why others are refused.

Every parameter is honoured, harmless by nature (with the reason beside it), or refused in OpenAI's own format with its
name; unknown names are refused as OpenAI refuses them. Pure; knows nothing of answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.api.fields import (
    Check,
    flag,
    integer,
    keep_alive,
    number,
    one_of,
    record,
    sequence,
    short_name,
    stop_texts,
    text,
    text_or_texts,
    unknown_field,
)
from server.api.ollama_bodies import MOST_TOP_LOGPROBS
from server.errors import RequestInvalid
from server.exchange import AskRequest, CallerId, RequestId

MOST_CHOICES = 128  # OpenAI's own limit
MOST_STOPS = 4  # likewise


def harmless(value: Any, field: str) -> None:
    """Accepted, whatever it says."""


def refused(reason: str) -> Check:
    def check(value: Any, field: str) -> None:
        raise RequestInvalid(f"'{field}' is not supported: {reason}", field=field)

    return check


def only(*allowed: Any, reason: str) -> Check:
    """Accepted where it says what we do anyway."""

    def check(value: Any, field: str) -> None:
        if not any(value == item and type(value) is type(item) for item in allowed):
            raise RequestInvalid(f"'{field}' is not supported with this value: {reason}", field=field)

    return check


def _stream_options(value: Any, field: str) -> bool:
    """Whether the usage is wanted as a last chunk."""
    options = record(value, field)
    checks: Mapping[str, Check] = {
        "include_usage": flag,
        "include_obfuscation": only(False, reason="chunks are not padded here"),
    }
    for name, item in options.items():
        if name not in checks:
            raise unknown_field(name, checks, f"{field}.")
        if item is not None:
            checks[name](item, f"{field}.{name}")
    return bool(options.get("include_usage"))


def _response_format(value: Any, field: str) -> str | dict[str, Any] | None:
    """As Ollama's `format`: None, "json" or a schema."""
    kind = record(value, field).get("type")
    match kind:
        case "text":
            return None
        case "json_object":
            return "json"
        case "json_schema":
            wrapped = record(value.get("json_schema"), f"{field}.json_schema")
            return record(wrapped.get("schema"), f"{field}.json_schema.schema")
        case _:
            raise RequestInvalid(
                f"'{field}.type' must be 'text', 'json_object' or 'json_schema'", field=f"{field}.type"
            )


def _tools(value: Any, field: str) -> list[dict[str, Any]]:
    for index, item in enumerate(sequence(value, field)):
        path = f"{field}[{index}]"
        if record(item, path).get("type") != "function":
            raise RequestInvalid(f"'{path}.type' must be 'function'", field=f"{path}.type")
        function = record(item.get("function"), f"{path}.function")
        text(function.get("name"), f"{path}.function.name")
    return list(value)


def _tool_choice(value: Any, field: str) -> str:
    if value in ("auto", "none"):
        return str(value)
    raise RequestInvalid(f"'{field}' can only be 'auto' or 'none': the nodes cannot force a call", field=field)


def _effort(value: Any, field: str) -> bool | str:
    """As Ollama's `think`."""
    effort = one_of("none", "minimal", "low", "medium", "high")(value, field)
    return False if effort == "none" else "low" if effort == "minimal" else str(effort)


def _top_logprobs_of_completion(value: Any, field: str) -> int:
    return int(integer(0, 5)(value, field))


def _embedded(value: Any, field: str) -> list[str]:
    if type(value) is list and any(type(item) in (int, list) for item in value):
        raise RequestInvalid(
            f"'{field}' must be text or a list of texts, not tokens",
            field=field,
            hint="send text: this gateway has no tokenizer of the model",
        )
    return text_or_texts(value, field)


# Parameter of OpenAI -> option of Ollama.
_SAMPLING: Mapping[str, tuple[str, Check]] = {
    "temperature": ("temperature", number(0, 2)),
    "top_p": ("top_p", number(0, 1)),
    "seed": ("seed", integer()),
    "stop": ("stop", stop_texts(MOST_STOPS)),
    "presence_penalty": ("presence_penalty", number(-2, 2)),
    "frequency_penalty": ("frequency_penalty", number(-2, 2)),
    "max_tokens": ("num_predict", integer(1)),
    "max_completion_tokens": ("num_predict", integer(1)),
    # not OpenAI's, but what users of local servers add
    "top_k": ("top_k", integer(0)),
    "min_p": ("min_p", number(0, 1)),
    "repeat_penalty": ("repeat_penalty", number(0)),
    "repetition_penalty": ("repeat_penalty", number(0)),
    "num_ctx": ("num_ctx", integer(1, 2**31 - 1)),
}
_OWN: Mapping[str, Check] = {
    "priority": integer(-1000, 1000),
    "deadline_s": number(0.001, 86_400),
    "cache": flag,
    "keep_alive": keep_alive,
}
# They concern bookkeeping at OpenAI, not the answer.
_HARMLESS: Mapping[str, Check] = {
    "user": harmless,  # callers are told apart by key or address
    "safety_identifier": harmless,
    "metadata": harmless,  # belongs to stored completions
    "prompt_cache_key": harmless,  # conversations find their node by their text
    "prompt_cache_retention": harmless,
    "prompt_cache_options": harmless,
    "service_tier": harmless,  # there is one tier
    "store": only(False, reason="nothing is stored here"),
}
_COMMON: Mapping[str, Check] = {
    "model": short_name,
    "stream": flag,
    "stream_options": _stream_options,
    "n": integer(1, MOST_CHOICES),
    "logit_bias": only({}, reason="the nodes take no biases"),
    **{name: check for name, (_, check) in _SAMPLING.items()},
    **_HARMLESS,
    **_OWN,
}
CHAT_FIELDS: Mapping[str, Check] = {
    **_COMMON,
    "messages": sequence,
    "logprobs": flag,
    "top_logprobs": integer(0, MOST_TOP_LOGPROBS),
    "response_format": _response_format,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": flag,
    "reasoning_effort": _effort,
    "modalities": only(["text"], reason="answers are text"),
    "verbosity": only("medium", reason="the models know no such setting"),
    "prediction": harmless,  # only ever makes OpenAI's answer come faster
    "audio": refused("answers are text"),
    "web_search_options": refused("the gateway works offline"),
    "moderation": refused("nothing is moderated here"),
    "functions": refused("use 'tools'"),
    "function_call": refused("use 'tool_choice'"),
}
COMPLETION_FIELDS: Mapping[str, Check] = {
    **_COMMON,
    "prompt": text_or_texts,
    "suffix": text,
    "echo": flag,
    "best_of": integer(1, MOST_CHOICES),
    "response_format": _response_format,  # not OpenAI's here, but vLLM's
    "logprobs": _top_logprobs_of_completion,
}
EMBEDDING_FIELDS: Mapping[str, Check] = {
    "model": short_name,
    "input": _embedded,
    "encoding_format": one_of("float", "base64"),
    "dimensions": integer(1, 2**31 - 1),
    **_HARMLESS,
    **_OWN,
}


def unrecognized(name: str, table: Mapping[str, Check]) -> RequestInvalid:
    known = unknown_field(name, table)
    return RequestInvalid(f"Unrecognized request argument supplied: {known.field}", field=known.field, hint=known.hint)


def openai_checked(body: Mapping[str, Any], table: Mapping[str, Check]) -> dict[str, Any]:
    """All given parameters, checked."""
    values: dict[str, Any] = {}
    for name, value in body.items():
        check = table.get(name)
        if check is None:
            raise unrecognized(name, table)
        if value is not None:
            values[name] = check(value, name)
    if "stream_options" in values and not values.get("stream"):
        raise RequestInvalid("'stream_options' is only allowed when 'stream' is enabled", field="stream_options")
    return values


def sampling_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's options from OpenAI's parameters. Two names of one option must agree."""
    options: dict[str, Any] = {}
    for name, (option, _) in _SAMPLING.items():
        value = values.get(name)
        if value is not None and options.setdefault(option, value) != value:
            raise RequestInvalid(f"'{name}' contradicts another name of the same setting", field=name)
    return options


def openai_request(values: Mapping[str, Any], request_id: RequestId, caller: CallerId, **asked: Any) -> AskRequest:
    """`asked` holds operation, messages or prompt, and fields."""
    options = {} if asked["operation"] == "embed" else sampling_options(values)
    fields: dict[str, Any] = asked.pop("fields", {})
    if "keep_alive" in values:
        fields["keep_alive"] = values["keep_alive"]
    return AskRequest(
        id=request_id,
        caller=caller,
        model=(values.get("model") or "").strip() or None,
        options=options,
        fields=fields,
        priority=values.get("priority", 0),
        deadline_seconds=values.get("deadline_s"),
        cacheable=values.get("cache", True),
        dialect="openai",
        **asked,
    )
