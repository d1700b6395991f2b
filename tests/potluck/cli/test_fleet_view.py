import io

import pytest
from rich.console import Console

from potluck.cli.fleet_view import Canvas, fleet_view, no_gateway_view, rows_that_fit, span
from potluck.fleet import read_health, read_nodes
from tests.potluck.loopback import health, node

URL = "http://127.0.0.1:8000"


def drawn(view, width=80):
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(view)
    return out.getvalue()


def view(*nodes, width=80, height=None, trouble=None, plain=False, **facts):
    value = read_health(health(*nodes, **facts))
    return drawn(fleet_view(value, URL, Canvas(width, height, plain), trouble=trouble), width)


SICK = node("sick", breaker="open", last_error="connection reset")
SILENT = node("gone", status="silent", last_error="no answer to 3 probes")


def test_everything_is_there_at_80_columns():
    text = view(node("pixel-3"), SICK)
    for word in (URL, "ok", "1 of 2 nodes ready", "up 1 d 1 h", "pixel-3", "ollama", "● ready", "▪qwen2.5", "█░░ 1/4"):
        assert word in text
    for word in ("9.5", "31.0", "20/1", "queue 3 of 1024 from 2 callers", "cache hits 40%", "in flight 2"):
        assert word in text
    assert "fleet 10 tok/s" in text  # a node that gets nothing adds nothing
    assert "! sick: connection reset" in text


@pytest.mark.parametrize("width", [20, 40, 79, 80, 100, 200])
def test_no_line_is_longer_than_the_terminal(width):
    nodes = [node(f"a-phone-with-a-long-name-{number}", last_error="e" * 300, breaker="open") for number in range(5)]
    text = view(*nodes, width=width, fleet_file={"path": "p", "error": "broken " * 40})
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width


@pytest.mark.parametrize("height", range(9, 40, 3))
def test_it_is_never_higher_than_the_terminal(height):
    nodes = [node(f"n{number}") for number in range(30)]
    text = view(*nodes, SICK, SILENT, height=height, fleet_file={"path": "p", "error": "line 3"})
    assert len(text.splitlines()) < height
    assert "sick" in text


def test_a_phone_at_rest_is_neither_ready_nor_broken_and_says_why():
    hot = node("shelf", resting="hot: 46.0 °C, rests until 39 °C", last_error="an old one")
    text = view(node("pixel-3"), hot, status="degraded")
    assert "1 of 2 nodes ready" in text and "● resting" in text
    assert "! shelf rests: hot: 46.0 °C, rests until 39 °C" in text and "an old one" not in text
    assert "fleet 10 tok/s" in text
    alone = view(hot, embedded={"reason": "the embedded node is switched off"})
    assert "switched off" not in alone  # there is a phone, which serves where all others rest, too
    broken = view(node("shelf", resting="hot", breaker="open"))
    assert "● broken" in broken


def test_rows_that_fit_keep_trouble_and_work_in_the_fleets_order():
    first, third = node("a", in_flight=0), node("c", in_flight=0)
    fleet = read_nodes({"nodes": [first, node("b", in_flight=3), third, SICK, SILENT]})
    assert [entry.id for entry in rows_that_fit(fleet, 4)] == ["b", "sick", "gone"]
    assert rows_that_fit(fleet, 5) == fleet
    assert rows_that_fit(fleet, None) == fleet
    assert len(rows_that_fit(fleet, 0)) == 1


def test_what_did_not_fit_is_counted():
    assert "and 23 more" in view(*(node(f"n{number}") for number in range(30)), height=14)


def test_old_errors_of_healthy_nodes_are_not_trouble():
    assert "! " not in view(node("well", last_error="long ago"))


def test_a_broken_fleet_file_is_shown():
    assert "! fleet file: line 3, column 5" in view(fleet_file={"path": "p", "error": "line 3, column 5"})


def test_a_gateway_that_is_gone_keeps_the_last_table():
    text = view(node("pixel-3"), trouble="connection refused")
    assert "not reachable, retrying" in text
    assert "pixel-3" in text
    assert "not reachable, retrying" in drawn(no_gateway_view(URL, "refused"))


def test_an_empty_fleet_says_what_to_do():
    assert "potluck phones invite" in view()
    assert "the embedded node is starting" in view(embedded={"mode": "auto", "starting": True, "reason": None})


def test_why_the_last_resort_is_missing_matters_only_when_nothing_serves():
    embedded = {"mode": "off", "starting": False, "reason": "the embedded node is switched off"}
    assert "! the embedded node is switched off" in view(SILENT, embedded=embedded)
    assert "switched off" not in view(node("well"), embedded=embedded)


@pytest.mark.parametrize(
    ("cache", "words"),
    [({"enabled": False}, "cache off"), ({"enabled": True}, "cache unused"), ({"enabled": True, "hits": 1}, "100%")],
)
def test_cache(cache, words):
    assert words in view(cache=cache)


def test_plain_terminals_get_plain_marks():
    text = view(node("n" * 50), SICK, plain=True, width=60, status="s" * 80)
    assert "* ready" in text
    assert text.isascii()


def test_nodes_cannot_steer_the_terminal():
    sly = node("\x1b[2J", status="silent", last_error="\x1b]0;owned\x07")
    assert "\x1b" not in view(sly, status="\x1b[1m")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (45, "45 s"),
        (185, "3 min 5 s"),
        (3600, "1 h"),
        (7800, "2 h 10 min"),
        (352_800, "4 d 2 h"),
        (86_460, "1 d"),
    ],
)
def test_span(seconds, words):
    assert span(seconds) == words
