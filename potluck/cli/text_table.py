"""Rows of text as the lines of a table, each column as wide as it has to be, or as there is room for.

Width is what a terminal shows: some characters take two cells and some none. Must not know what the cells mean.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

GAP = "  "


def terminal_width() -> int | None:
    """Of what stdout is shown in; None where it goes into a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def lines_of(
    rows: Sequence[Sequence[str]], width: int | None = None, gives: Sequence[tuple[int, int]] = ()
) -> list[str]:
    """One line for each row, two spaces between columns, none at the end. All rows have as many cells.

    Where that is wider than `width`, columns give way in the order of `gives`: (which, the least that it keeps; 0: it
    goes). What is left over in the end they get back in the same order.
    """
    from rich.cells import cell_len

    natural = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    widths = natural if width is None else _fitted(natural, width, gives)
    kept = [place for place, cells in enumerate(widths) if cells or not natural[place]]
    return [GAP.join(_cell(row[place], widths[place]) for place in kept).rstrip() for row in rows]


def _fitted(natural: Sequence[int], width: int, gives: Sequence[tuple[int, int]]) -> list[int]:
    widths = list(natural)
    for column, least in gives:
        over = -_room(widths, width)
        if over <= 0:
            break
        widths[column] = min(widths[column], max(least, widths[column] - over)) if least else 0
    for column, _ in gives:
        if widths[column]:
            widths[column] += max(0, min(natural[column] - widths[column], _room(widths, width)))
    return widths


def _room(widths: Sequence[int], width: int) -> int:
    shown = [cells for cells in widths if cells]
    return width - sum(shown) - len(GAP) * (len(shown) - 1)


def _cell(text: str, cells: int) -> str:
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) > cells:
        return set_cell_size(set_cell_size(text, cells - 1).rstrip() + "…", cells)
    return set_cell_size(text, cells)
