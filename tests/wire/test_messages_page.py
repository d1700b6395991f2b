"""The page of messages says what the code does, field by field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.wire.page import all_enumerations, all_records, headline, row_start
from wire.codec import record_fields
from wire.tensors import DType

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "protocol-messages.md").read_text()
SECTIONS = {head: text for head, text in re.findall(r"^(### [^\n]+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)}


@pytest.mark.parametrize("record", all_records(), ids=lambda record: record.__name__)
def test_every_record_is_told_field_by_field(record: type[Any]) -> None:
    rows = [line for line in SECTIONS[headline(record)].splitlines() if re.match(r"\| \d", line)]
    fields = record_fields(record)
    assert len(rows) == len(fields)
    for number, (row, field) in enumerate(zip(rows, fields, strict=True), 1):
        start = row_start(number, field)
        assert row.startswith(start)
        assert len(row.removeprefix(start).rstrip(" |")) > 1, f"{field.name} has no meaning"


@pytest.mark.parametrize("enumeration", all_enumerations(), ids=lambda each: each.__name__)
def test_every_number_of_an_enumeration_is_told(enumeration: Any) -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (.+) \|$", SECTIONS[f"### {enumeration.__name__}"], re.MULTILINE)
    assert [(int(number), name) for number, name, _ in rows] == [(int(each), each.name) for each in enumeration]
    if enumeration is DType:
        assert [int(size) for *_, size in rows] == [each.size for each in DType]


def test_the_page_tells_of_nothing_else() -> None:
    known = {headline(record) for record in all_records()} | {f"### {each.__name__}" for each in all_enumerations()}
    assert set(SECTIONS) == known
