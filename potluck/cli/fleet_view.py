"""The fleet as people look at it: a table that fits the width and height there is. Pure.

What a narrow terminal cannot hold goes column by column, the least needed first; what a low one cannot hold goes row by
row, and the nodes that need a look stay. Text from nodes is made harmless before it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

from potluck.cli.fleet_columns import columns_for
from potluck.cli.safe_text import one_line
from potluck.fleet import Health, NodeHealth

# Headline, names of the columns, line of the queue, a blank line on either side of the table, one for the cursor.
LINES_AROUND = 6
MOST_TROUBLES = 3
NO_NODES = "no nodes yet: bring phones in (potluck phones invite)"
STARTING = "no phones yet; the embedded node is starting"


@dataclass(frozen=True, slots=True)
class Canvas:
    """Where it is shown. `height` None: as long as it gets. `plain`: a terminal without Unicode."""

    width: int
    height: int | None = None
    plain: bool = False

    @property
    def overflow(self) -> OverflowMethod:
        """What becomes of a text that is too long; the dots are a character that a plain terminal lacks."""
        return "crop" if self.plain else "ellipsis"


def fleet_view(health: Health, url: str, canvas: Canvas, *, trouble: str | None = None) -> RenderableType:
    """`trouble` says that the gateway cannot be reached now; what was known last is then shown dimmed."""
    told = _troubles(health, canvas)
    shown = rows_that_fit(health.nodes, None if canvas.height is None else canvas.height - LINES_AROUND - len(told))
    parts: list[RenderableType] = [headline(health, url, canvas, unreachable=trouble is not None), Text()]
    if shown:
        parts.append(_table(shown, canvas, dim=trouble is not None))
    else:
        parts.append(Text(STARTING if health.embedded.starting else NO_NODES, "dim"))
    if left_out := len(health.nodes) - len(shown):
        parts.append(Text(f"and {left_out} more", "dim"))
    return Group(*parts, Text(), footline(health, canvas), *told)


def no_gateway_view(url: str, trouble: str) -> RenderableType:
    """Before the first answer."""
    line = Text(f"! {one_line(trouble)}", "red")
    return Group(Text.assemble(("potluck", "bold"), f"  {url}  ", ("not reachable, retrying", "bold red")), line)


def headline(health: Health, url: str, canvas: Canvas, *, unreachable: bool) -> Text:
    colour = {"ok": "green", "degraded": "yellow", "unavailable": "red"}.get(health.status, "default")
    state = ("not reachable, retrying", "bold red") if unreachable else (one_line(health.status), f"bold {colour}")
    ready = sum(node.serving for node in health.nodes)
    facts = [f"{ready} of {len(health.nodes)} nodes ready", f"up {span(health.uptime_seconds)}", f"v{health.version}"]
    head = Text.assemble(("potluck", "bold"), f"  {url}  ", state, no_wrap=True, overflow=canvas.overflow)
    return _extended(head, [Text(fact, "dim") for fact in facts], canvas.width)


def footline(health: Health, canvas: Canvas) -> Text:
    queue = health.queue
    waiting = f"queue {queue.waiting} of {queue.limit}"
    if queue.waiting:
        waiting += f" from {queue.callers} caller{'s' if queue.callers != 1 else ''}"
    busy = sum(node.in_flight for node in health.nodes)
    speed = sum(node.tokens_per_second or 0 for node in health.nodes if node.serving)
    facts = [cache_text(health), f"in flight {busy}", f"fleet {speed:.0f} tok/s"]
    line = Text(waiting, no_wrap=True, overflow=canvas.overflow)
    return _extended(line, [Text(fact) for fact in facts], canvas.width)


def _extended(line: Text, facts: Sequence[Text], width: int) -> Text:
    """The line with as many facts as fit: half a number would be a wrong one."""
    for fact in facts:
        if line.cell_len + 3 + fact.cell_len > width:
            break
        line.append("   ").append_text(fact)
    return line


def cache_text(health: Health) -> str:
    if not health.cache.enabled:
        return "cache off"
    rate = health.cache.hit_rate
    return "cache unused" if rate is None else f"cache hits {rate:.0%}"


def _troubles(health: Health, canvas: Canvas) -> list[Text]:
    """What the owner should see to. Old errors of nodes that are well again would only worry people."""
    told = [f"fleet file: {health.fleet_file.error}"] if health.fleet_file.error else []
    if health.embedded.reason and not any(node.serving or node.resting for node in health.nodes):
        told.append(health.embedded.reason)
    told += [f"{node.name}: {node.last_error}" for node in health.nodes if node.last_error and is_in_trouble(node)]
    told += [f"{node.name} rests: {node.resting}" for node in health.nodes if node.resting]
    most = len(told)
    if canvas.height is not None:
        most = max(1, min(MOST_TROUBLES, canvas.height // 6))
    lines = [Text(f"! {one_line(trouble)}", "red", no_wrap=True, overflow=canvas.overflow) for trouble in told[:most]]
    if len(told) > most:
        lines[-1].plain = f"! {len(told) - most + 1} more in trouble"
    return lines


def needs_a_look(node: NodeHealth) -> bool:
    return is_in_trouble(node) or node.resting is not None


def is_in_trouble(node: NodeHealth) -> bool:
    return node.status == "silent" or node.breaker != "closed"


def rows_that_fit(nodes: Sequence[NodeHealth], room: int | None) -> Sequence[NodeHealth]:
    """All, or as many as fit: first those in trouble, then the busiest; in the fleet's own order."""
    if room is None or len(nodes) <= room:
        return nodes
    wanted = sorted(nodes, key=lambda node: (not needs_a_look(node), -node.in_flight))[: max(1, room - 1)]
    kept = {node.id for node in wanted}
    return [node for node in nodes if node.id in kept]


def _table(nodes: Sequence[NodeHealth], canvas: Canvas, *, dim: bool) -> Table:
    columns, gap = columns_for(canvas.width, nodes, canvas.plain)
    table = Table(
        box=None,
        padding=(0, gap, 0, 0),
        pad_edge=False,
        row_styles=["dim"] if dim else None,
        header_style="bold bright_black",
    )
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow=canvas.overflow,
            max_width=column.width,
        )
    for node in nodes:
        table.add_row(*(column.cell(node, canvas.plain) for column in columns))
    return table


def span(seconds: float) -> str:
    """The largest unit and the next one: 45 s, 3 min 5 s, 2 h 10 min, 4 d 1 h."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    whole = int(seconds)
    first = next((index for index, (_, size) in enumerate(units) if whole >= size), len(units) - 1)
    parts: list[str] = []
    for unit, size in units[first : first + 2]:
        number, whole = divmod(whole, size)
        if number or not parts:
            parts.append(f"{number} {unit}")
    return " ".join(parts)
