"""The fleet as people look at it: a table that fits the width and height there is. Pure.

What a narrow terminal cannot hold goes column by column, the least needed first; what a low one cannot hold goes row by
row, and the nodes that need a look stay. Text from nodes is made harmless before it is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from potluck.cli.safe_text import one_line
from potluck.fleet import Health, NodeHealth

BAR_CELLS = 4
# Header, column names and their rule, queue line and a blank line on either side of the table.
LINES_AROUND = 7
TROUBLES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Canvas:
    """Where it is shown. `height` None: as long as it gets. `plain`: a terminal without Unicode."""

    width: int
    height: int | None = None
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """`rank` 0 is always shown; higher ones go first. `width` is the most it takes."""

    title: str
    rank: int
    width: int
    cell: Callable[[NodeHealth, bool], Text]
    right: bool = False


def fleet_view(health: Health, url: str, canvas: Canvas, *, trouble: str | None = None) -> RenderableType:
    """`trouble` says that the gateway cannot be reached now; what was known last is then shown dimmed."""
    shown = rows_that_fit(health.nodes, canvas.height)
    parts: list[RenderableType] = [headline(health, url, trouble), Text()]
    if shown:
        parts.append(_table(shown, canvas, dim=trouble is not None))
    else:
        parts.append(Text("no nodes yet: add phones to phones.json, or wait for the embedded one", style="dim"))
    if left_out := len(health.nodes) - len(shown):
        parts.append(Text(f"and {left_out} more nodes", style="dim"))
    parts += [Text(), footline(health)]
    if health.fleet_file.error:
        parts.append(Text(f"! fleet file: {one_line(health.fleet_file.error)}", style="red"))
    parts += troubles(health.nodes)
    return Group(*parts)


def no_gateway_view(url: str, trouble: str) -> RenderableType:
    """Before the first answer."""
    return Group(
        Text.assemble(("potluck", "bold"), f"  {url}"), Text(), Text(f"! {one_line(trouble)}; retrying", style="red")
    )


def headline(health: Health, url: str, trouble: str | None) -> Text:
    colour = {"ok": "green", "degraded": "yellow", "unavailable": "red"}.get(health.status, "white")
    state = ("not reachable, retrying", "bold red") if trouble else (one_line(health.status), f"bold {colour}")
    ready = sum(node.serving for node in health.nodes)
    facts = f"  {ready} of {len(health.nodes)} nodes ready   up {span(health.uptime_seconds)}   v{health.version}"
    line = Text.assemble(("potluck", "bold"), f"  {url}  ", state, (facts, "dim"), no_wrap=True, overflow="ellipsis")
    return line


def footline(health: Health) -> Text:
    queue = health.queue
    waiting = f"queue {queue.waiting} of {queue.limit}"
    if queue.waiting:
        waiting += f" from {queue.callers} caller{'s' if queue.callers != 1 else ''}"
    busy = sum(node.in_flight for node in health.nodes)
    speed = sum(node.tokens_per_second or 0 for node in health.nodes if node.serving)
    parts = [waiting, f"in flight {busy}", f"fleet {speed:.0f} tok/s", _cache_text(health)]
    return Text("   ".join(parts), no_wrap=True, overflow="ellipsis")


def _cache_text(health: Health) -> str:
    if not health.cache.enabled:
        return "cache off"
    rate = health.cache.hit_rate
    return "cache empty" if rate is None else f"cache hits {rate:.0%}"


def troubles(nodes: tuple[NodeHealth, ...]) -> list[Text]:
    """The last error of the nodes that are in trouble; old errors of healthy nodes would only worry people."""
    told = [node for node in nodes if node.last_error and needs_a_look(node)]
    lines = [
        Text(f"! {one_line(node.name)}: {one_line(node.last_error or '')}", "red", no_wrap=True, overflow="ellipsis")
        for node in told[:TROUBLES_SHOWN]
    ]
    if len(told) > TROUBLES_SHOWN:
        lines.append(Text(f"! and {len(told) - TROUBLES_SHOWN} more in trouble", style="red"))
    return lines


def needs_a_look(node: NodeHealth) -> bool:
    return node.status == "silent" or node.breaker != "closed"


def rows_that_fit(nodes: tuple[NodeHealth, ...], height: int | None) -> tuple[NodeHealth, ...]:
    """All, or as many as fit: first those in trouble, then the busiest; in the fleet's own order."""
    if height is None:
        return nodes
    in_trouble = sum(bool(node.last_error) and needs_a_look(node) for node in nodes)
    room = max(1, height - LINES_AROUND - min(in_trouble, TROUBLES_SHOWN + 1))
    if len(nodes) <= room:
        return nodes
    wanted = sorted(nodes, key=lambda node: (not needs_a_look(node), -node.in_flight))[: max(1, room - 1)]
    kept = {node.id for node in wanted}
    return tuple(node for node in nodes if node.id in kept)


def columns_for(width: int) -> list[Column]:
    """The columns that fit, in their order on the screen; two spaces stand between them."""
    kept = list(COLUMNS)
    while len(kept) > 1 and sum(column.width + 2 for column in kept) - 2 > width:
        least = max(kept, key=lambda column: column.rank)
        if least.rank == 0:
            break
        kept.remove(least)
    return kept


def _table(nodes: tuple[NodeHealth, ...], canvas: Canvas, *, dim: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, style="dim" if dim else "", header_style="bold dim")
    columns = columns_for(canvas.width)
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            max_width=column.width,
        )
    for node in nodes:
        table.add_row(*(column.cell(node, canvas.plain) for column in columns))
    return table


def _name(node: NodeHealth, plain: bool) -> Text:
    return Text(one_line(node.name), "bold")


def state_of(node: NodeHealth) -> tuple[str, str]:
    """One word for status and breaker, and its colour."""
    if node.status == "ready":
        return {"open": ("broken", "red"), "half_open": ("on trial", "yellow")}.get(node.breaker, ("ready", "green"))
    colour = {"silent": "red", "draining": "yellow"}.get(node.status, "bright_black")
    return one_line(node.status), colour


def _state(node: NodeHealth, plain: bool) -> Text:
    word, colour = state_of(node)
    return Text(f"{'*' if plain else '●'} {word}", colour)


def _models(node: NodeHealth, plain: bool) -> Text:
    """Loaded models first, each with its mark; then the others."""
    mark = "*" if plain else "▪"
    resident = set(node.resident)
    others = [model for model in node.models if model not in resident]
    text = Text(" ".join(f"{mark}{one_line(model)}" for model in node.resident), "cyan")
    return text.append((" " if resident and others else "") + " ".join(map(one_line, others)), "default")


def _slots(node: NodeHealth, plain: bool) -> Text:
    full, empty = ("#", "-") if plain else ("█", "░")
    share = node.in_flight / node.slots if node.slots else 0.0
    cells = min(BAR_CELLS, round(share * BAR_CELLS) or (1 if node.in_flight else 0))
    colour = "green" if share < 1 else "yellow"
    bar = Text(full * cells, colour).append(empty * (BAR_CELLS - cells), "bright_black")
    return bar.append(f" {node.in_flight}/{node.slots}", "default")


def _number(value: float | None) -> Text:
    if value is None:
        return Text("-", "bright_black")
    return Text(f"{value:.1f}" if value < 100 else compact(value))


def _answered(node: NodeHealth, plain: bool) -> Text:
    failed = Text(f"/{compact(node.failed)}", "red" if node.failed else "bright_black")
    return Text(compact(node.answered)).append_text(failed)


def compact(value: float) -> str:
    """At most four characters: 950, 12k, 3M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 10 * size or (value >= size and unit != "k"):
            return f"{value / size:.0f}{unit}"
    return f"{value:.0f}"


def span(seconds: float) -> str:
    """The two largest units: 45 s, 3 min 5 s, 2 h 10 min, 4 d 1 h."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    rest = int(seconds)
    parts: list[str] = []
    for unit, size in units:
        number, rest = divmod(rest, size)
        if number or parts or unit == "s":
            parts.append(f"{number} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 ") or len(parts) == 1)


# Widths add up to 78 with everything of rank 3 and lower: a terminal of 80 columns shows all that matters.
COLUMNS = (
    Column("NODE", 0, 12, _name),
    Column("KIND", 3, 6, lambda node, plain: Text(one_line(node.kind), "bright_black")),
    Column("STATE", 0, 10, _state),
    Column("MODEL", 2, 14, _models),
    Column("SLOTS", 1, 9, _slots),
    Column("TOK/S", 1, 5, lambda node, plain: _number(node.tokens_per_second), right=True),
    Column("READ/S", 3, 6, lambda node, plain: _number(node.prompt_tokens_per_second), right=True),
    Column("OK/BAD", 2, 7, _answered, right=True),
    Column("HELD", 3, 4, lambda node, plain: Text(compact(node.held_conversations)), right=True),
    Column("ADDRESS", 4, 24, lambda node, plain: Text(one_line(node.address), "bright_black")),
    Column("LAST ERROR", 5, 40, lambda node, plain: Text(one_line(node.last_error or ""), "bright_black")),
)
