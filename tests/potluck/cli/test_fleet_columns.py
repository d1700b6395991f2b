from itertools import pairwise

import pytest

from potluck.cli.fleet_columns import COLUMNS, columns_for, compact, state_of
from potluck.fleet import read_nodes
from tests.potluck.loopback import node


def read(**facts):
    return read_nodes({"nodes": [node("a", **facts)]})[0]


def titles(width):
    return [column.title for column in columns_for(width)[0]]


def cell(title, plain=False, **facts):
    column = next(column for column in COLUMNS if column.title == title)
    return column.cell(read(**facts), plain)


def test_eighty_columns_hold_all_that_matters():
    assert titles(80) == ["NODE", "KIND", "STATE", "MODEL", "SLOTS", "TOK/S", "READ/S", "OK/BAD", "HELD"]


@pytest.mark.parametrize("width", range(10, 220, 7))
def test_what_is_shown_fits(width):
    columns, gap = columns_for(width, [read(name="n" * 50, models=["m" * 50], last_error="e" * 200)])
    used = sum(column.width for column in columns) + gap * (len(columns) - 1)
    assert used <= width or [column.rank for column in columns] == [0, 0]


def test_wider_terminals_never_show_less():
    shown = [set(titles(width)) for width in range(20, 200)]
    assert all(less <= more for less, more in pairwise(shown))
    assert shown[0] == {"NODE", "STATE"}
    assert shown[-1] == {column.title for column in COLUMNS}


def test_room_that_is_left_goes_where_it_is_needed():
    long_name = [read(name="a-phone-with-a-long-name")]
    assert columns_for(100, long_name)[0][0].width == 24
    assert columns_for(100, [read()])[0][0].width == 12


@pytest.mark.parametrize(
    ("status", "breaker", "word", "colour"),
    [
        ("ready", "closed", "ready", "green"),
        ("ready", "open", "broken", "red"),
        ("ready", "half_open", "on trial", "yellow"),
        ("silent", "open", "silent", "red"),
        ("draining", "closed", "draining", "yellow"),
        ("disabled", "closed", "disabled", "bright_black"),
        ("unknown", "closed", "unknown", "bright_black"),
    ],
)
def test_state_in_one_word(status, breaker, word, colour):
    assert state_of(read(status=status, breaker=breaker)) == (word, colour)
    assert cell("STATE", status=status, breaker=breaker).plain == f"● {word}"


def test_resident_models_come_first_and_are_marked():
    assert cell("MODEL", models=["a", "b", "c"], resident=["b"]).plain == "▪b a c"
    assert cell("MODEL", models=["a"], resident=[]).plain == "a"
    assert cell("MODEL", plain=True, models=["a"], resident=["a"]).plain == "*a"


@pytest.mark.parametrize(
    ("in_flight", "slots", "bar"),
    [
        (0, 4, "░░░ 0/4"),
        (1, 16, "█░░ 1/16"),
        (2, 4, "██░ 2/4"),
        (4, 4, "███ 4/4"),
        (9, 4, "███ 9/4"),
        (0, 0, "░░░ 0/0"),
    ],
)
def test_slots_as_a_bar(in_flight, slots, bar):
    assert cell("SLOTS", in_flight=in_flight, slots=slots).plain == bar
    plain = cell("SLOTS", plain=True, in_flight=in_flight, slots=slots).plain
    assert plain == bar.replace("█", "#").replace("░", "-")


def test_numbers_nobody_knows_yet():
    assert cell("TOK/S", tokens_per_second=None).plain == "-"
    assert cell("READ/S", prompt_tokens_per_second=12345.0).plain == "12k"
    assert cell("TOK/S", tokens_per_second=9.456).plain == "9.5"


def test_failures_stand_out():
    text = cell("OK/BAD", answered=12, failed=3)
    assert text.plain == "12/3"
    assert any(span.style == "red" for span in text.spans)
    assert not any(span.style == "red" for span in cell("OK/BAD", failed=0).spans)


def test_text_from_nodes_is_harmless():
    facts = {"name": "a\x1b[2J", "kind": "\x1b", "address": "\x1b", "last_error": "\x1b\n", "models": ["\x1b"]}
    for column in COLUMNS:
        assert "\x1b" not in cell(column.title, **facts).plain
        assert "\n" not in cell(column.title, **facts).plain


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (9999, "9999"), (12_345, "12k"), (340_000, "340k"), (3_200_000, "3M")]
)
def test_compact(value, text):
    assert compact(value) == text
