"""Columns as wide as their widest cell."""

from __future__ import annotations

import pytest

from potluck.cli.text_table import lines_of


def test_cells_stand_below_each_other_without_space_at_the_end() -> None:
    assert lines_of([("A", "LONG", "C"), ("bcd", "e", "")]) == ["A    LONG  C", "bcd  e"]
    assert lines_of([]) == []


def test_a_row_that_lacks_a_cell_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="shorter"):
        lines_of([("A", "B"), ("c",)])
