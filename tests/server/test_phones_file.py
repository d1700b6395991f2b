"""The fleet file: what each entry means, where each mistake stands, and that the published schema says the same."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from server.adb.ports import preferred_port
from server.nodes import NodeId, NodeSpec
from server.phones_entry import FIELDS, EntryError, entry_of, spec_of
from server.phones_file import MAX_FILE_BYTES, FleetFileError, edit, load, parse

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "phones.schema.json").read_text())


def error(text: str) -> FleetFileError:
    with pytest.raises(FleetFileError) as caught:
        parse(text)
    return caught.value


def entry_error(**entry: Any) -> str:
    with pytest.raises(EntryError) as caught:
        spec_of(entry)
    return caught.value.message


def fits_schema(value: object) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(value))


# -- entries -----------------------------------------------------------------------------------------------------------


def test_a_phone_on_a_cable_needs_only_its_serial():
    spec = spec_of({"serial": "S1", "name": "shelf"})
    assert (spec.id, spec.host, spec.port, spec.serial) == ("S1", "127.0.0.1", preferred_port("S1"), "S1")
    assert entry_of(spec) == {"serial": "S1", "name": "shelf"} and spec_of(entry_of(spec)) == spec
    named = spec_of({"serial": "S1", "id": "x"})
    assert spec_of(entry_of(named)) == named and spec_of({"serial": "S1", "port": 11500}).port == 11500
    assert fits_schema([{"serial": "S1"}]) and not fits_schema([{"serial": "S1", "kind": "openai"}])


def test_an_entry_needs_only_a_host():
    assert spec_of({"host": "192.168.1.20"}) == NodeSpec(
        id=NodeId("192.168.1.20:11434"), name="192.168.1.20:11434", kind="ollama", host="192.168.1.20", port=11434
    )


def test_every_field():
    entry = {
        "host": "Phone.Local",
        "port": 8000,
        "id": "a",
        "name": "Kitchen",
        "kind": "openai",
        "model": ["x", "y", "x"],
        "weight": 2,
        "max_concurrency": 3,
        "serial": "S1",
        "tags": ["t"],
        "enabled": False,
        "api_key_env": "KEY",
        "continues_final_message": True,
        "details": {"chip": "SM8550", "ram_bytes": 8 << 30, "tokens_per_second": 12.5},
    }
    assert set(entry) == set(FIELDS) - {"tls", "warm_up", "keep_alive"}  # those stand in test_phones_entry.py
    assert spec_of(entry) == NodeSpec(
        id=NodeId("a"),
        name="Kitchen",
        kind="openai",
        host="phone.local",
        port=8000,
        models=("x", "y"),
        weight=2.0,
        max_concurrency=3,
        serial="S1",
        tags=("t",),
        enabled=False,
        api_key_env="KEY",
        continues_final_message=True,
        details={"chip": "SM8550", "ram_bytes": 8 << 30, "tokens_per_second": 12.5},
    )


def test_a_relay_node_has_a_port_and_perhaps_certificates_of_its_own():
    spec = spec_of({"host": "a", "kind": "relay"})
    assert (spec.id, spec.port, spec.tls, spec.tls_file, spec.api_key_env) == ("a:8765", 8765, False, None, None)
    spec = spec_of({"host": "a", "kind": "relay", "tls": True, "port": 9000})
    assert (spec.id, spec.port, spec.tls, spec.tls_file) == ("a:9000", 9000, True, None)
    spec = spec_of({"host": "a", "kind": "relay", "tls": " node.pem "})
    assert (spec.tls, spec.tls_file) == (True, "node.pem")


@pytest.mark.parametrize("weight", [0.001, 1000])
def test_the_farthest_weights(weight: float):
    assert spec_of({"host": "a", "weight": weight}).weight == weight and fits_schema([{"host": "a", "weight": weight}])


def test_the_automatic_weight_and_a_single_model():
    spec = spec_of({"host": "a", "weight": "auto", "model": "x"})
    assert (spec.weight, spec.models) == (None, ("x",))


@pytest.mark.parametrize(
    ("host", "kept", "identity"),
    [
        ("[::1]", "::1", "[::1]:11434"),
        ("::1", "::1", "[::1]:11434"),
        ("fe80::1%wlan0", "fe80::1%wlan0", "[fe80::1%wlan0]:11434"),
        ("phone.local.", "phone.local", "phone.local:11434"),
        ("täle.local", "xn--tle-qla.local", "xn--tle-qla.local:11434"),
        ("my_phone", "my_phone", "my_phone:11434"),
    ],
)
def test_hosts_have_one_spelling(host: str, kept: str, identity: str):
    spec = spec_of({"host": host})
    assert (spec.host, spec.id) == (kept, identity)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", ""),
        ("host", 5),
        ("host", "http://10.0.0.1"),
        ("host", "10.0.0.1:11434"),
        ("host", "10.0.0.300"),
        ("host", "a b"),
        ("host", "a\r\nX-Evil: 1"),
        ("host", "-a"),
        ("host", "a..b"),
        ("details", "SM8550"),
        ("details", {"chip": None}),
        ("details", {"chip": True}),
        ("details", {"chip": {}}),
        ("details", {"chip": "x" * 201}),
        ("details", {str(number): 1 for number in range(33)}),
        ("port", 0),
        ("port", 65536),
        ("port", "11434"),
        ("port", True),
        ("port", 1.5),
        ("id", ""),
        ("id", 7),
        ("name", "a\nb"),
        ("name", "x" * 201),
        ("kind", "vllm"),
        ("kind", None),
        ("model", []),
        ("model", [""]),
        ("model", 5),
        ("weight", 0),
        ("weight", -1),
        ("weight", 1e308),
        ("weight", 1000.5),
        ("weight", 0.0009),
        ("weight", float("nan")),
        ("weight", "heavy"),
        ("weight", True),
        ("max_concurrency", 0),
        ("max_concurrency", 1.5),
        ("serial", ""),
        ("tags", "kitchen"),
        ("tags", [""]),
        ("enabled", "yes"),
        ("api_key_env", "sk-1234"),
        ("api_key_env", ""),
        ("continues_final_message", 1),
        ("tls", 1),
        ("tls", " "),
        ("tls", None),
    ],
)
def test_a_wrong_value_is_refused_with_the_fields_name(field: str, value: object):
    assert f"'{field}'" in entry_error(**{"host": "10.0.0.1", field: value})


def test_what_a_message_says():
    assert entry_error(host="a", wieght=2) == "unknown field 'wieght': did you mean 'weight'?"
    assert "known are host, port" in entry_error(host="a", zzz=2)
    assert entry_error(host="a", port=True) == "'port' must be a whole number from 1 to 65535, not true"
    assert "'host' is missing" in entry_error(port=1)
    assert "only phones of kind 'ollama'" in entry_error(serial="S1", kind="openai")
    assert "'ollama', 'openai' or 'relay'" in entry_error(host="a", kind="vllm")
    assert "kind 'relay' only" in entry_error(host="a", tls=True)
    assert "kind 'openai' only" in entry_error(host="a", continues_final_message=True)
    assert "never the key itself" in entry_error(host="a", api_key_env="sk-12")


@pytest.mark.parametrize("entry", [5, None, "10.0.0.1", []])
def test_an_entry_that_is_no_object(entry: object):
    with pytest.raises(EntryError, match="an entry is an object"):
        spec_of(entry)


# -- the file ----------------------------------------------------------------------------------------------------------


def test_both_forms_of_the_file():
    entries = '[{"host": "a"}, {"host": "a", "port": 11435}]'
    assert [spec.id for spec in parse(entries)] == ["a:11434", "a:11435"]
    assert parse(f'{{"$schema": "x", "phones": {entries}}}') == parse(entries)
    assert parse("[]") == ()


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ('[\n  {"host": "a"},\n]', 2, 16, "comma"),
        ("[\n  // phones\n]", 2, 3, "comments"),
        ('[\n  {"host": "a"\n', 3, 1, "no JSON"),
        ("[{'host': 'a'}]", 1, 3, "no JSON"),
        ("", 1, 1, "empty"),
        ("  \n", 1, 1, "empty"),
        ("7", 1, 1, "must be a list"),
        ('{"phones": 7}', 1, 2, "'phones' must be a list"),
        ('{\n "phone": []}', 2, 2, "did you mean 'phones'?"),
        ("{}", 1, 1, "'phones' must be a list"),
        ('[\n {"host": "a",\n  "wieght": 2}]', 3, 3, "did you mean 'weight'?"),
        ('[{"host": "a"},\n {"host": "b", "port": 0}]', 2, 16, "'port'"),
        ('{"phones": [{"host": "a"},\n {"port": 1}]}', 2, 2, "'host' is missing"),
        ('[{"host": "a"},\n {"host": "A"}]', 2, 2, "same node as entry 1"),
        ('[{"host": "a", "id": "x"},\n {"host": "b", "id": "x"}]', 2, 2, "give one an 'id'"),
        ('[{"serial": "S1"},\n {"id": "x", "serial": "S1"}]', 2, 14, "the phone of entry 1 (serial S1)"),
        ('[{"host": "a",\n "host": "b"}]', 2, 2, "twice"),
        ('[{"host": "a",\n "weight": NaN}]', 2, 12, "no number"),
        ("[" * 100_000, 1, 1, "nested"),
        ("[" * 600 + "]" * 600, 1, 1, "nested"),
        ('[{"host": "a", "x": ' + "[" * 600 + "]" * 600 + "}]", 1, 1, "nested"),
        ('[{"host": "a",\n "port": ' + "1" * 5000 + "}]", 2, 10, "digits"),
        ('[{"host": "a",\n "weight": ' + "1" * 4000 + "}]", 2, 2, "'weight'"),
        ('[{"host": "a",\n "weight": 1e999}]', 2, 2, "'weight'"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, line: int, column: int, words: str):
    found = error(text)
    assert (found.line, found.column) == (line, column) and words in found.message
    assert str(found) == f"line {line}, column {column}: {found.message}"


def test_a_phone_may_stand_in_a_second_entry_that_is_switched_off():
    off = '{"host": "a", "serial": "S1", "enabled": false}'
    assert [spec.enabled for spec in parse(f'[{off}, {{"serial": "S1"}}]')] == [False, True]


def test_no_order_lists_a_phone_twice(tmp_path: Path):
    path = tmp_path / "phones.json"
    path.write_text('[{"host": "a", "serial": "S1", "enabled": false}, {"serial": "S1"}]')
    before = path.read_bytes()
    with pytest.raises(FleetFileError, match="list it once"):
        edit(path, lambda specs: [replace(spec, enabled=True) for spec in specs])
    assert path.read_bytes() == before


@pytest.mark.parametrize("depth", range(300, 520, 7))
def test_at_no_depth_is_it_an_exception(depth: int):
    """Finding where a mistake stands goes deeper than finding that there is one."""
    assert error('[{"host": "a", "x": ' + "[" * depth + "]" * depth + "}]").line == 1


def test_a_missing_file_has_no_nodes(tmp_path: Path):
    assert load(tmp_path / "phones.json") == ()


def test_a_mark_of_the_byte_order_does_not_matter(tmp_path: Path):
    path = tmp_path / "phones.json"
    path.write_bytes(b"\xef\xbb\xbf[]")
    assert load(path) == ()


@pytest.mark.parametrize(
    ("content", "place"), [(b'[\n "\xff"]', (2, 3)), (b"[" + b" " * MAX_FILE_BYTES + b"]", (None, None))]
)
def test_a_file_that_cannot_be_read_as_text(tmp_path: Path, content: bytes, place: tuple[int | None, int | None]):
    path = tmp_path / "phones.json"
    path.write_bytes(content)
    with pytest.raises(FleetFileError) as caught:
        load(path)
    assert (caught.value.line, caught.value.column) == place


def test_a_folder_is_no_file(tmp_path: Path):
    with pytest.raises(FleetFileError, match="cannot be read"):
        load(tmp_path)


# -- what is published -------------------------------------------------------------------------------------------------


def test_the_example_shows_every_field_and_is_taken():
    text = (ROOT / "phones.example.json").read_text()
    specs = parse(text)
    entries = json.loads(text)["phones"]
    assert len(specs) == len(entries) and {key for entry in entries for key in entry} == set(FIELDS)
    assert fits_schema(json.loads(text))


def test_the_file_as_shipped_is_empty():
    assert parse((ROOT / "phones.json").read_text()) == () and fits_schema([])


def test_the_schema_is_one_and_knows_the_same_fields():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["$defs"]["entry"]["properties"]) == set(FIELDS)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"host": ""},
        {"host": "http://a"},
        {"host": "a", "prot": 1},
        {"host": "a", "port": 0},
        {"host": "a", "kind": "vllm"},
        {"host": "a", "tls": True},
        {"host": "a", "kind": "openai", "tls": "a.pem"},
        {"host": "a", "kind": "relay", "tls": ""},
        {"host": "a", "weight": 0},
        {"host": "a", "weight": "heavy"},
        {"host": "a", "weight": 1e308},
        {"host": "a", "weight": 0.0009},
        {"host": "a", "model": []},
        {"host": "a", "max_concurrency": 0},
        {"host": "a", "tags": "x"},
        {"host": "a", "enabled": "yes"},
        {"host": "a", "api_key_env": "sk-12"},
        {"host": "a", "continues_final_message": True},
        {"host": "a", "name": " "},
        5,
    ],
)
def test_what_the_reader_refuses_the_schema_refuses_too(entry: object):
    with pytest.raises(EntryError):
        spec_of(entry)
    assert not fits_schema([entry]) and not fits_schema({"phones": [entry]})


def test_the_page_about_the_file_lists_every_field():
    page = (ROOT / "docs" / "fleet-file.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(FIELDS)
