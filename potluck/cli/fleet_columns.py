"""The columns of the fleet's table: what each shows of a node, and which of them fit a width. Pure.

Text from nodes is made harmless before it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.text import Text

from potluck.cli.safe_text import one_line
from potluck.fleet import NodeHealth

BAR_CELLS = 3
GREY = "bright_black"


@dataclass(frozen=True, slots=True)
class Column:
    """`rank` 0 is always shown, higher ones go first. `width` is what it gets at least, `longest` at most."""

    title: str
    rank: int
    width: int
    cell: Callable[[NodeHealth, bool], Text]  # the flag: a terminal without Unicode
    right: bool = False
    longest: int = 0


def columns_for(width: int, nodes: Sequence[NodeHealth] = (), plain: bool = False) -> tuple[list[Column], int]:
    """The columns that fit, in their order on the screen, and the gap between them."""
    kept = list(COLUMNS)
    while _total(kept, 1) > width and (least := max(kept, key=lambda column: column.rank)).rank > 0:
        kept.remove(least)
    gap = 2 if _total(kept, 2) <= width else 1
    return _widened(kept, nodes, plain, width - _total(kept, gap)), gap


def _total(columns: Sequence[Column], gap: int) -> int:
    return sum(column.width for column in columns) + gap * (len(columns) - 1)


def _widened(columns: Sequence[Column], nodes: Sequence[NodeHealth], plain: bool, room: int) -> list[Column]:
    """Give what is left to those whose cells can use it, from the left."""
    widened = []
    for column in columns:
        needed = max((column.cell(node, plain).cell_len for node in nodes), default=0)
        more = max(0, min(room, column.longest - column.width, needed - column.width))
        widened.append(replace(column, width=column.width + more))
        room -= more
    return widened


def state_of(node: NodeHealth) -> tuple[str, str]:
    """One word for status, breaker and care, and its colour."""
    if node.status == "ready" and node.breaker == "closed" and node.resting:
        return "resting", "yellow"
    if node.status == "ready":
        return {"open": ("broken", "red"), "half_open": ("on trial", "yellow")}.get(node.breaker, ("ready", "green"))
    colour = {"silent": "red", "draining": "yellow"}.get(node.status, GREY)
    return one_line(node.status), colour


def _name(node: NodeHealth, plain: bool) -> Text:
    return Text(one_line(node.name), "bold")


def _kind(node: NodeHealth, plain: bool) -> Text:
    return Text(one_line(node.kind), GREY)


def _state(node: NodeHealth, plain: bool) -> Text:
    word, colour = state_of(node)
    return Text(f"{'*' if plain else '●'} {word}", colour)


def _models(node: NodeHealth, plain: bool) -> Text:
    """Loaded models first, each with its mark; then the others."""
    mark = "*" if plain else "▪"
    others = [model for model in node.models if model not in node.resident]
    text = Text(" ".join(f"{mark}{one_line(model)}" for model in node.resident), "cyan")
    return text.append((" " if node.resident and others else "") + " ".join(map(one_line, others)), "default")


def _slots(node: NodeHealth, plain: bool) -> Text:
    full, empty = ("#", "-") if plain else ("█", "░")
    share = node.in_flight / node.slots if node.slots else 0.0
    cells = min(BAR_CELLS, max(round(share * BAR_CELLS), min(1, node.in_flight)))
    bar = Text(full * cells, "green" if share < 1 else "yellow").append(empty * (BAR_CELLS - cells), GREY)
    return bar.append(f" {compact(node.in_flight)}/{compact(node.slots)}", "default")


def _answered(node: NodeHealth, plain: bool) -> Text:
    return Text(compact(node.answered)).append(f"/{compact(node.failed)}", "red" if node.failed else GREY)


def _held(node: NodeHealth, plain: bool) -> Text:
    return Text(compact(node.held_conversations))


def _speed(node: NodeHealth, plain: bool) -> Text:
    return _number(node.tokens_per_second)


def _prompt_speed(node: NodeHealth, plain: bool) -> Text:
    return _number(node.prompt_tokens_per_second)


def _address(node: NodeHealth, plain: bool) -> Text:
    return Text(one_line(node.address), GREY)


def _last_error(node: NodeHealth, plain: bool) -> Text:
    return Text(one_line(node.last_error or ""), GREY)


def _number(value: float | None) -> Text:
    if value is None:
        return Text("-", GREY)
    return Text(f"{value:.1f}" if value < 100 else compact(value))


def compact(value: float) -> str:
    """At most four characters: 950, 9999, 12k, 340k, 3M."""
    if value < 10_000:
        return f"{value:.0f}"
    thousands = value / 1000
    return f"{thousands:.0f}k" if thousands < 1000 else f"{thousands / 1000:.0f}M"


# Everything up to rank 3 adds up to 79 with single gaps: a terminal of 80 columns shows all that matters.
COLUMNS = (
    Column("NODE", 0, 12, _name, longest=30),
    Column("KIND", 3, 6, _kind),
    Column("STATE", 0, 10, _state),
    Column("MODEL", 2, 13, _models, longest=34),
    Column("SLOTS", 1, 9, _slots),
    Column("TOK/S", 1, 5, _speed, right=True),
    Column("READ/S", 3, 6, _prompt_speed, right=True),
    Column("OK/BAD", 2, 6, _answered, right=True),
    Column("HELD", 3, 4, _held, right=True),
    Column("ADDRESS", 4, 21, _address),
    Column("LAST ERROR", 5, 24, _last_error, longest=80),
)
