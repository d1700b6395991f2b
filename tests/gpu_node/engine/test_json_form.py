"""A schema may become narrower on its way to the guide, never wider."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpu_node.engine.json_form import ready_schema
from gpu_node.errors import RequestError

OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}}


def ready(schema: Any) -> Any:
    return ready_schema(json.dumps(schema))


def test_objects_hold_what_they_name() -> None:
    assert ready(OBJECT) == {**OBJECT, "additionalProperties": False}
    inner = ready({"type": "array", "items": OBJECT})["items"]
    assert inner["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {}},
        {**OBJECT, "additionalProperties": True},
        {**OBJECT, "additionalProperties": {"type": "integer"}},
        {**OBJECT, "patternProperties": {"^x": {}}},
        {**OBJECT, "required": ["b"]},
        {"allOf": [OBJECT, {"properties": {"b": {}}}]},
        {**OBJECT, "anyOf": [{"properties": {"b": {}}}, {"properties": {"c": {}}}]},
        {"enum": [OBJECT]},
        {"const": OBJECT},
    ],
)
def test_objects_that_others_add_to_stay_open(schema: Any) -> None:
    assert ready(schema) == schema


def test_a_format_that_nobody_knows_is_a_remark() -> None:
    assert ready({"type": "integer", "format": "int32"}) == {"type": "integer"}
    assert ready({"type": "string", "format": "date"}) == {"type": "string", "format": "date"}
    named = {"properties": {"format": {"type": "string"}}, "additionalProperties": False}
    assert ready(named) == named
    value = {"enum": [{"format": "int32"}]}
    assert ready(value) == value


def test_true_is_a_schema() -> None:
    assert ready(True) == {}


@pytest.mark.parametrize("text", ["", "nul", "[]", '"object"', "1", "null", "false", '{"a": Infinity}'])
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="JSON"):
        ready_schema(text)
