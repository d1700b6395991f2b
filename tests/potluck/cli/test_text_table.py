"""Columns as wide as their widest cell."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from potluck.cli.text_table import lines_of


def test_cells_stand_below_each_other_without_space_at_the_end() -> None:
    assert lines_of([("A", "LONG", "C"), ("bcd", "e", "")]) == ["A    LONG  C", "bcd  e"]
    assert lines_of([]) == []


def test_characters_of_two_cells_and_of_none() -> None:
    lines = lines_of([("Küche 厨房 📱", "x"), ("Ku\u0308che", "x"), ("0123456789ab", "x")])
    assert [cell_len(line) for line in lines] == [16, 16, 16]


ROWS = [("NAME", "STATE", "MODELS"), ("0123456789", "ready", "厨房厨房厨房"), ("", "", "")]


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (None, ["NAME        STATE  MODELS", "0123456789  ready  厨房厨房厨房", ""]),
        (31, ["NAME        STATE  MODELS", "0123456789  ready  厨房厨房厨房", ""]),
        (30, ["NAME        STATE  MODELS", "0123456789  ready  厨房厨房厨…", ""]),
        (21, ["NAME        STATE", "0123456789  ready", ""]),  # the last had to go, and the first gets all back
        (14, ["NAME     STATE", "012345…  ready", ""]),
        (5, ["NAME  STATE", "012…  ready", ""]),
    ],
)
def test_columns_give_way_in_their_order(width: int | None, lines: list[str]) -> None:
    assert lines_of(ROWS, width, [(2, 6), (0, 8), (2, 0), (0, 4)]) == lines


def test_an_empty_column_stays_one() -> None:
    assert lines_of([("", "b"), ("", "c")], 80) == ["  b", "  c"]


def test_a_row_that_lacks_a_cell_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="shorter"):
        lines_of([("A", "B"), ("c",)])
