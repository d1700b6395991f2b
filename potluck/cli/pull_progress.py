"""A pull on many phones, as it is shown: what each phone's records add up to, bars at a terminal, lines elsewhere.

`Phones` takes records and knows no terminal. Only phones that are at it have a bar, so that a fleet of hundreds fits a
screen; each that has ended is one line above the bars. Text from phones is made harmless before it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from potluck.cli.safe_text import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn, TaskID

SUCCESS, FAILED, WAITING, AGAIN, DONE = "success", "error", "waiting", "trying again", "done"
WIDE = 90  # columns of a terminal
STEP_PERCENT = 10  # without a terminal: a line for each of these


@dataclass(slots=True)
class PhonePull:
    """What one phone has told. `parts`: bytes that are there and bytes in all, by digest."""

    name: str
    status: str = WAITING
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    reason: str | None = None

    @property
    def completed(self) -> int:
        return sum(completed for completed, _ in self.parts.values())

    @property
    def total(self) -> int:
        return sum(total for _, total in self.parts.values())

    @property
    def percent(self) -> int:
        return 100 * self.completed // self.total if self.total else 0

    @property
    def has_begun(self) -> bool:
        """Nothing is shown of one that has never had its turn; one that lost it says why."""
        return self.status != WAITING or self.reason is not None

    @property
    def words(self) -> str:
        """What it is at. The names of parts say nothing to people: the bytes do."""
        if self.status.startswith("pulling ") and self.parts:
            return "pulling"
        if self.status in (AGAIN, WAITING) and self.reason:
            return f"{self.status}: {self.reason}"
        return self.status

    def take(self, record: Mapping[str, Any]) -> None:
        self.status = one_line(str(record.get("status", "")))
        reason = record.get("error") or record.get("reason")
        self.reason = one_line(str(reason)) if reason else None
        total, completed = _count(record.get("total")), _count(record.get("completed", 0))
        if "digest" in record and total is not None and completed is not None:
            kept = self.parts.get(str(record["digest"]), (0, 0))[0]
            self.parts[str(record["digest"])] = (max(kept, min(completed, total)), total)


@dataclass(slots=True)
class Phones:
    """All phones of one pull, and the summary once it has come."""

    phones: dict[str, PhonePull] = field(default_factory=dict)
    summary: Mapping[str, Any] | None = None

    def take(self, record: Mapping[str, Any]) -> PhonePull | None:
        """The phone that the record is about; None for the summary and for what is about none."""
        if "node" not in record:
            self.summary = record if record.get("status") == DONE else self.summary
            return None
        name = one_line(str(record["node"]))
        phone = self.phones.setdefault(name, PhonePull(name))
        phone.take(record)
        return phone

    @property
    def failed(self) -> list[str]:
        told = (self.summary or {}).get("failed")
        return [one_line(str(name)) for name in told] if isinstance(told, dict) else []

    def last_line(self) -> str:
        pulled, had = (len((self.summary or {}).get(word) or ()) for word in ("pulled", "had"))
        if not had:
            return f"pulled onto {pulled}"
        return f"pulled onto {pulled}, {had} had it already" if pulled else f"{had} had it already"


class Lines:
    """Without a terminal: a line for each change, and for each tenth of the way."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._told: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, phone: PhonePull) -> None:
        told = (phone.words, phone.percent // STEP_PERCENT)
        if not phone.has_begun or self._is_told(phone.name, *told):
            return
        self._told[phone.name] = told
        self._write(f"{phone.name}: {ending(phone) or _way(phone)}")

    def _is_told(self, name: str, words: str, step: int) -> bool:
        """A small part that comes late takes a percent back, which is no news; one that takes a tenth is."""
        known, furthest = self._told.get(name, ("", 0))
        return known == words and furthest - 1 <= step <= furthest


class Bars:
    """At a terminal: a bar for each phone that is at it."""

    def __init__(self, console: Console) -> None:
        from rich.progress import Progress

        self._console = console
        self._progress = Progress(*_columns(console.width), console=console)
        self._bars: dict[str, TaskID] = {}
        self._reasons: dict[str, str] = {}  # why each was tried again, as told last

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, phone: PhonePull) -> None:
        if not phone.has_begun:
            return
        ended, words = ending(phone), phone.words
        if ended is not None or phone.status == WAITING:
            if phone.name in self._bars:
                self._progress.remove_task(self._bars.pop(phone.name))
            self._tell(f"{phone.name}: {ended or words}")
            return
        if phone.status == AGAIN:  # a reason beside the bar would leave no room for the bar
            if self._reasons.get(phone.name) != words:
                self._reasons[phone.name] = words
                self._tell(f"{phone.name}: {words}")
            words = AGAIN
        if phone.name not in self._bars:
            self._bars[phone.name] = self._progress.add_task(phone.name, total=None, words=words)
        self._progress.update(self._bars[phone.name], completed=phone.completed, total=phone.total or None, words=words)

    def _tell(self, line: str) -> None:
        """A line above the bars."""
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _columns(width: int) -> list[ProgressColumn]:
    """One row for each phone, however long its name and its words: a narrow terminal shows neither speed nor time."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.table import Column

    def text(template: str) -> TextColumn:
        column = Column(no_wrap=True, overflow="ellipsis", max_width=max(width // 4, 1))
        return TextColumn(template, markup=False, table_column=column)

    def whole() -> Column:
        return Column(no_wrap=True)

    name, words = text("{task.description}"), text("{task.fields[words]}")
    if width < WIDE:
        return [name, BarColumn(bar_width=None), DownloadColumn(table_column=whole()), words]
    speed, rest = TransferSpeedColumn(table_column=whole()), TimeRemainingColumn(compact=True, table_column=whole())
    return [name, BarColumn(bar_width=24), DownloadColumn(table_column=whole()), speed, rest, words]


def ending(phone: PhonePull) -> str | None:
    """How it ended, in words; None while it has not."""
    if phone.status == SUCCESS:
        return f"done ({size_text(phone.total)})" if phone.total else "done"
    return f"failed: {phone.reason or 'it did not say why'}" if phone.status == FAILED else None


def _way(phone: PhonePull) -> str:
    if phone.words == "pulling":
        return f"{phone.percent} % of {size_text(phone.total)}"
    return phone.words


def size_text(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
