"""What form an answer must have, from the fields of both dialects to the engine's guides.

Whether a schema or an expression can be held to at all is for the engine to say; here it is only bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gpu_node.engine.sequence import Guide, JsonGuide, RegexGuide
from gpu_node.errors import RequestError

# A grammar much larger than this takes seconds to build and was never meant.
LARGEST_GUIDE = 65_536


def guide_of_format(value: Any) -> Guide | None:
    """Ollama's `format`: nothing, "json", or a JSON schema."""
    if value is None or value == "":
        return None
    if value == "json":
        return JsonGuide()
    if not isinstance(value, dict):
        shown = json.dumps(_json_text(value, "format"))
        raise RequestError(f'invalid format: {shown}; expected "json" or a valid JSON Schema object', field="format")
    return _of_schema(value, "format")


def guide_of_response_format(value: Mapping[str, Any] | None) -> Guide | None:
    """OpenAI's `response_format`."""
    if value is None:
        return None
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return JsonGuide()
        case "json_schema":
            wrapped = value.get("json_schema")
            schema = wrapped.get("schema") if isinstance(wrapped, dict) else None
            if not isinstance(schema, dict):
                raise RequestError("response_format.json_schema.schema must be an object", field="response_format")
            return _of_schema(schema, "response_format")
    raise RequestError("response_format.type must be text, json_object or json_schema", field="response_format")


def guide_of_regex(pattern: str, field: str) -> Guide:
    if not pattern or len(pattern) > LARGEST_GUIDE:
        raise RequestError(f"{field} must have 1 to {LARGEST_GUIDE} characters", field=field)
    return RegexGuide(pattern)


def guide_of_choice(choices: Sequence[str], field: str) -> Guide:
    if not choices or not all(choices):
        raise RequestError(f"{field} must name at least one text, and no empty one", field=field)
    return guide_of_regex("|".join(f"({re.escape(choice)})" for choice in choices), field)


def guide_of_json(value: Any, field: str) -> Guide:
    """A schema as an object or as JSON text."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise RequestError(f"{field} is no JSON: {error}", field=field) from error
    if not isinstance(value, dict):
        raise RequestError(f"{field} must be a JSON schema", field=field)
    return _of_schema(value, field)


def one_guide(guides: Mapping[str, Guide | None]) -> Guide | None:
    """The one that was given; two are a contradiction."""
    given = {name: guide for name, guide in guides.items() if guide is not None}
    if len(given) > 1:
        raise RequestError(f"only one of {', '.join(given)} can be held to", field=list(given)[1])
    return next(iter(given.values()), None)


def _of_schema(schema: Mapping[str, Any], field: str) -> Guide:
    text = _json_text(schema, field)
    if len(text) > LARGEST_GUIDE:
        raise RequestError(f"the schema in {field} is larger than {LARGEST_GUIDE} characters", field=field)
    return JsonGuide(text)


def _json_text(value: Any, field: str) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError as error:  # what was read from JSON can only be nested too deeply to be written again
        raise RequestError(f"{field} is nested too deeply", field=field) from error
