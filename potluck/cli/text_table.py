"""Rows of text as the lines of a table, each column as wide as it has to be. Must not know what the cells mean."""

from __future__ import annotations

from collections.abc import Sequence


def lines_of(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line for each row, two spaces between columns, none at the end. All rows have as many cells."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
