"""A client's JSON schema made ready for the guide: formats nobody knows are dropped, objects hold what they name.

Invariant: whatever the result allows, the schema given allows too. Must not know the library that follows it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from gpu_node.errors import RequestError

# What the library writes and checks; to JSON Schema every other format is a remark, not a rule.
KNOWN_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"),
)
# Beneath these lie values, not schemas.
VALUES = frozenset(("const", "enum", "default", "examples", "example"))
# Beneath these lie schemas by names of the client's choice.
NAMED = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
OPENERS = frozenset(("additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames"))


def ready_schema(text: str) -> dict[str, Any]:
    """Raises `RequestError` where `text` is not the JSON of a schema."""
    try:
        schema = json.loads(text, parse_constant=_no_number)
        schemas = list(_schemas(schema))
    except RecursionError:
        raise RequestError("the schema is nested too deeply") from None
    except ValueError as error:
        raise RequestError(f"the schema is not JSON: {error}") from None
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise RequestError("the schema must be a JSON object")
    closable = not any(_combines(inner) for inner in schemas)
    for inner in schemas:
        if isinstance(inner.get("format"), str) and inner["format"] not in KNOWN_FORMATS:
            del inner["format"]
        if closable and _may_close(inner):
            inner["additionalProperties"] = False
    return schema


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, list):
        for item in schema:
            yield from _schemas(item)
    if not isinstance(schema, dict):
        return
    yield schema
    for key, value in schema.items():
        if key in NAMED and isinstance(value, dict):
            for inner in value.values():
                yield from _schemas(inner)
        elif key not in VALUES:
            yield from _schemas(value)


def _combines(schema: dict[str, Any]) -> bool:
    """Whether one object has to obey several schemas: then none of them may shut out what another names."""
    return "allOf" in schema or ("properties" in schema and any(key in schema for key in ("anyOf", "oneOf", "$ref")))


def _may_close(schema: dict[str, Any]) -> bool:
    """Clients of Ollama expect no properties but those they name, as its own grammars have it."""
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not properties or not isinstance(required, list):
        return False
    return not OPENERS & schema.keys() and all(name in properties for name in required)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")
