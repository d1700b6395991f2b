"""What the records of a pull add up to, and how they are shown, without a gateway."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from potluck.cli.pull_progress import Bars, Lines, Phones, ending


def record(node: str, status: str, **more: Any) -> dict[str, Any]:
    return {"node": node, "status": status, **more}


def shown(records: list[dict[str, Any]], width: int) -> str:
    """What a terminal of this width is sent."""
    out, phones = io.StringIO(), Phones()
    console = Console(file=out, force_terminal=True, width=width, height=24, highlight=False, color_system=None)
    with Bars(console) as bars:
        for one in records:
            phone = phones.take(one)
            assert phone is not None
            bars.show(phone)
    return out.getvalue()


def test_words_of_a_phone_are_no_pictures_and_no_markup() -> None:
    words = "dial [fe80::1:a:b]:443: [red]refused[/red]"
    told = shown([record("Kitchen :fire:", "pulling", digest="d", total=5, completed=1), record("x", "y")], 110)
    assert "Kitchen :fire:" in told
    assert f"Kitchen: failed: {words}" in shown([record("Kitchen", "error", error=words)], 110)


@pytest.mark.parametrize("width", [1, 10, 30, 40])
def test_a_narrow_terminal_is_no_fault(width: int) -> None:
    told = shown(
        [record("K" * 100, "pulling x", digest="d", total=5_000_000_000, completed=1), record("K", "y")], width
    )
    assert told


@pytest.mark.parametrize("width", [40, 60, 89, 90, 120])
@pytest.mark.parametrize("status", ["pulling x", "verifying sha256 digest", "w" * 200])
@pytest.mark.parametrize("name", ["Pixel 5", "n" * 100])
def test_a_bar_is_one_row_however_narrow_the_terminal(width: int, status: str, name: str) -> None:
    far = {"digest": "d", "total": 5_000_000_000, "completed": 2_000_000_000}
    records = [record(f"{number} {name}", status, **far) for number in range(3)]
    out, phones = io.StringIO(), Phones()
    console = Console(file=out, force_terminal=False, width=width, height=24, highlight=False, color_system=None)
    with Bars(console) as bars:
        for one in records:
            phone = phones.take(one)
            assert phone is not None
            bars.show(phone)
    rows = [line for line in out.getvalue().splitlines() if line.strip()]
    assert len(rows) == 3 and all(len(row) <= width for row in rows)
    assert all(f"{number} " in row and "2.0/5.0 GB" in row for number, row in enumerate(rows))


@pytest.mark.parametrize("odd", ["5", -1, 1.5, True, None, [1], float("nan")])
def test_odd_counts_are_passed_over(odd: Any) -> None:
    phones = Phones()
    phone = phones.take(record("x", "pulling", digest="d", total=odd, completed=odd))
    assert phone is not None and (phone.total, phone.completed, phone.percent) == (0, 0, 0)
    phone.take(record("x", "pulling", digest="d", total=2, completed=2**63))
    assert phone.percent == 100


def test_an_error_without_a_reason_has_words() -> None:
    phone = Phones().take(record("x", "error"))
    assert phone is not None and ending(phone) == "failed: it did not say why"


def test_what_does_not_change_is_one_line() -> None:
    told: list[str] = []
    lines, phones = Lines(told.append), Phones()
    for _ in range(50):
        phone = phones.take(record("x", "pulling", digest="d", total=100, completed=5))
        assert phone is not None
        lines.show(phone)
    assert told == ["x: 5 % of 0 kB"]


STILL = "it brought nothing more for 60 s"
TURNS = [
    record("Attic", "waiting"),
    record("Attic", "pulling x", digest="d", total=50_000_000, completed=5_000_000),
    record("Attic", "waiting", reason=STILL),
]


def test_one_that_others_go_before_says_why_and_has_no_bar() -> None:
    told = shown(TURNS, 100)
    assert f"Attic: waiting: {STILL}" in told
    out, phones = io.StringIO(), Phones()
    with Bars(Console(file=out, width=100, height=24, highlight=False, color_system=None)) as bars:
        for one in TURNS:
            phone = phones.take(one)
            assert phone is not None
            bars.show(phone)
    assert out.getvalue().strip() == f"Attic: waiting: {STILL}", "the bar is gone"
    resumed = [*TURNS, record("Attic", "pulling x", digest="d", total=50_000_000, completed=9_000_000)]
    assert "9.0/50.0 MB" in shown(resumed, 100)


def test_the_same_in_lines() -> None:
    told: list[str] = []
    lines, phones = Lines(told.append), Phones()
    for one in [*TURNS, *TURNS[1:]]:
        phone = phones.take(one)
        assert phone is not None
        lines.show(phone)
    assert told == ["Attic: 10 % of 50 MB", f"Attic: waiting: {STILL}"] * 2


def test_small_parts_that_come_late_are_no_steps_back() -> None:
    """A model's licence and template are told of when the weights are there."""
    told: list[str] = []
    lines, phones = Lines(told.append), Phones()
    for digest, total in (("weights", 9000), ("template", 50), ("licence", 40), ("pictures", 3000)):
        for completed in (0, total // 2, total):
            phone = phones.take(record("x", "pulling", digest=digest, total=total, completed=completed))
            assert phone is not None
            lines.show(phone)
    assert [line.split(" of ")[0] for line in told] == [
        "x: 0 %",
        "x: 50 %",
        "x: 100 %",
        "x: 75 %",
        "x: 87 %",
        "x: 100 %",
    ]
