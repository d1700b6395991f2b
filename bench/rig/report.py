"""Tables for people, JSON for later, and the small statistics behind both.

A result is one file in `bench/results/`: command, date, machine, load before and after, figures, and what was to be
reached with a verdict for each. Knows nothing of what is measured.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.rig.machine import load_average, machine_facts

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True, slots=True)
class Target:
    """One figure that was promised, and whether it was reached. `wanted` is a sentence, `got` the figure."""

    name: str
    wanted: str
    got: float | None
    reached: bool

    @property
    def line(self) -> str:
        verdict = "reached" if self.reached else "MISSED"
        got = "not measured" if self.got is None else rounded(self.got)
        return f"{verdict:8} {self.name}: {got} (wanted: {self.wanted})"


def at_least(name: str, got: float | None, bound: float, unit: str = "") -> Target:
    return Target(name, f"at least {rounded(bound)}{unit}", got, got is not None and got >= bound)


def at_most(name: str, got: float | None, bound: float, unit: str = "") -> Target:
    return Target(name, f"at most {rounded(bound)}{unit}", got, got is not None and got <= bound)


def rounded(value: Any) -> str:
    """Three significant digits for small numbers, whole ones for large."""
    if isinstance(value, bool) or not isinstance(value, float):
        return "-" if value is None else str(value)
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all values do not exceed (nearest rank)."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(round(share * len(ordered), 9)) - 1)]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """How much y grows with one x: the least-squares line through the points."""
    if len(points) < 2:
        return 0.0
    middle_x = statistics.fmean(x for x, _ in points)
    middle_y = statistics.fmean(y for _, y in points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread if spread else 0.0


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns as wide as they need to be; the first one to the left, numbers to the right."""
    cells = [list(head), *[[rounded(value) for value in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(_row(row, widths) for row in cells)


def _row(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = [
        cell.ljust(width) if not at else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join([first, *others]).rstrip()


class Report:
    """One run's result: begun before the measurement, written when it is over."""

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        self._name = name
        self._arguments = {key: _plain(value) for key, value in arguments.items()}
        self._began = datetime.now(UTC)
        self._load_before = load_average()
        self.figures: dict[str, Any] = {}
        self.targets: list[Target] = []
        self.notes: list[str] = []

    def finish(self, *, write: bool = True, folder: Path = RESULTS) -> dict[str, Any]:
        """Print the verdicts and write the file; returns what it holds."""
        result = self._result()
        for target in self.targets:
            print(target.line)
        for note in self.notes:
            print(f"note: {note}")
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{self._name}.json"
            path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(f"written: bench/results/{path.name}")
        return result

    def _result(self) -> dict[str, Any]:
        return {
            "name": self._name,
            "command": " ".join(["python -m", f"bench.{self._name}", *(_local(word) for word in sys.argv[1:])]),
            "arguments": self._arguments,
            "date": self._began.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - self._began).total_seconds(), 1),
            "machine": machine_facts(),
            "load_average": {"before": self._load_before, "after": load_average()},
            "figures": _plain(self.figures),
            "targets": [asdict(target) for target in self.targets],
            "notes": self.notes,
        }


def _local(word: str) -> str:
    """A path by its last part: where it lies on this machine is nobody's business."""
    return Path(word).name if "/" in word else word


def _plain(value: Any) -> Any:
    """What JSON can hold, with floats cut to what they mean."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.name
    return value if isinstance(value, str | int | bool | None) else str(value)
