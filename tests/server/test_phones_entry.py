"""What an entry says of its node's memory: `warm_up` and `keep_alive`, both ways, and the same by the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from server.phones_entry import EntryError, entry_of, spec_of

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs" / "phones.schema.json").read_text(encoding="utf-8"))


def fits_schema(entry: object) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid([entry]))


@pytest.mark.parametrize(
    ("value", "meant", "written"),
    [
        ("auto", None, None),
        (False, (), False),
        ("a:1b", ("a:1b",), "a:1b"),
        (["a:1b"], ("a:1b",), "a:1b"),
        (["a:1b", "b", "a:1b"], ("a:1b", "b"), ["a:1b", "b"]),
        (["auto"], ("auto",), ["auto"]),
    ],
)
def test_what_a_node_is_to_hold(value: Any, meant: tuple[str, ...] | None, written: Any) -> None:
    entry = {"host": "a", "warm_up": value}
    spec = spec_of(entry)
    assert spec.warm_up == meant and fits_schema(entry)
    assert entry_of(spec).get("warm_up") == written
    assert spec_of(entry_of(spec)) == spec


@pytest.mark.parametrize("value", ["1h30m", "-1s", -1, -0.5, 3600, 1, 1.5, "5m"])
def test_how_long_it_keeps_a_model(value: Any) -> None:
    entry = {"host": "a", "keep_alive": value}
    spec = spec_of(entry)
    assert spec.keep_alive == value and fits_schema(entry)
    assert entry_of(spec)["keep_alive"] == value and spec_of(entry_of(spec)) == spec


def test_neither_is_said_by_default() -> None:
    spec = spec_of({"host": "a", "keep_alive": "auto"})
    assert (spec.warm_up, spec.keep_alive) == (None, None)
    assert entry_of(spec) == {"host": "a"}
    assert fits_schema({"host": "a", "keep_alive": "auto"})


@pytest.mark.parametrize(
    ("field", "value", "by_schema_too"),
    [
        ("warm_up", True, True), ("warm_up", [], True), ("warm_up", "", True), ("warm_up", 3, True),
        ("warm_up", [1], True), ("warm_up", " ", True), ("keep_alive", 0, True), ("keep_alive", "0s", False),
        ("keep_alive", "0", True), ("keep_alive", "soon", True), ("keep_alive", True, True), ("keep_alive", "", True),
        ("keep_alive", [5], True), ("keep_alive", 1e300, False), ("keep_alive", "9" * 300 + "h", False),
        ("keep_alive", "5", True), ("keep_alive", "-1", True), ("keep_alive", 0.5, True), ("keep_alive", "1ns", False),
        ("keep_alive", "-0s", False), ("keep_alive", "1d", True), ("keep_alive", "1h 30m", True),
        ("keep_alive", float("nan"), False), ("warm_up", ["a" * 257], True),
        ("warm_up", [f"m:{number}" for number in range(33)], True), ("warm_up", "a" * 257, True),
    ],
)  # fmt: skip
def test_what_nobody_can_mean(field: str, value: Any, by_schema_too: bool) -> None:
    with pytest.raises(EntryError) as caught:
        spec_of({"host": "a", field: value})
    assert caught.value.field == field and field in caught.value.message
    if by_schema_too:
        assert not fits_schema({"host": "a", field: value})


def test_kinds_that_have_no_say() -> None:
    for field, value, kinds in (("warm_up", "m", ("openai", "relay")), ("keep_alive", "5m", ("openai",))):
        for kind in kinds:
            entry = {"host": "a", "kind": kind, field: value}
            with pytest.raises(EntryError, match="of"):
                spec_of(entry)
            assert not fits_schema(entry)
    assert spec_of({"host": "a", "kind": "relay", "keep_alive": "5m"}).keep_alive == "5m"
    assert fits_schema({"host": "a", "kind": "relay", "keep_alive": "5m"})
    assert spec_of({"host": "a", "kind": "openai", "warm_up": "auto", "keep_alive": "auto"}).warm_up is None


def test_a_model_that_it_may_not_serve_cannot_be_held_either() -> None:
    with pytest.raises(EntryError, match="'b', which 'model' does not let it serve"):
        spec_of({"host": "a", "model": ["A", "c"], "warm_up": ["a:latest", "b"]})
    assert spec_of({"host": "a", "model": ["A", "c"], "warm_up": ["a:latest"]}).warm_up == ("a:latest",)
