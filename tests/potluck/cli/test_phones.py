"""`potluck phones` against a server that plays the gateway: what is asked, what is shown, and how it ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from potluck.cli import app
from potluck.cli.phones import chosen_phone, remarks, table
from potluck.errors import Misuse
from tests.potluck.loopback import Loopback

runner = CliRunner()

PHONE: dict[str, Any] = {
    "id": "ab" * 16, "name": "Kitchen", "address": "192.168.1.20:11434", "origin": "file", "joined": True,
    "status": "ready", "drained": False, "in_flight": 0, "models": ["qwen2.5:0.5b"], "tokens_per_second": 12.5,
    "condition": {"battery_percent": 80.0, "charging": True, "temperature_c": 36.2}, "resting": None,
    "signal_dbm": -60, "last_error": None, "details": {},
}  # fmt: skip
BARE = {"id": "cd" * 16, "name": "At\x1b[2Jtic", "status": "silent", "last_error": "no route", "condition": None}


def gateway(*answers: tuple[int, Any]) -> Loopback:
    """Answers in turn."""
    left = list(answers)
    return Loopback(lambda exchange: exchange.send(*left.pop(0)))


def phones(server: Loopback, *arguments: str, **more: Any) -> Result:
    return runner.invoke(app, ["phones", *arguments, "--url", server.url], **more)


@pytest.mark.parametrize(
    ("phone_id", "shown"), [("ab" * 16, "abababab"), ("28161FDH2000QX", "28161FDH2000QX"), ("10.0.0.7:11434", "-")]
)
def test_the_shown_id_names_the_phone(phone_id: str, shown: str) -> None:
    _, row = table([BARE | {"id": phone_id, "name": "Attic", "address": "10.0.0.7:11434"}])
    assert row.split()[:2] == ["Attic", shown]


def test_phones_are_listed() -> None:
    with gateway((200, {"phones": [PHONE, BARE]}), (200, {"phones": []}), (200, {"phones": [PHONE]})) as server:
        done, nobody, as_json = phones(server, "list"), phones(server, "list"), phones(server, "list", "--json")
    head, first, second, remark = done.stdout.splitlines()
    assert head.split() == ["PHONE", "ID", "STATE", "BATTERY", "HEAT", "SIGNAL", "TOK/S", "MODELS", "ADDRESS"]
    assert first.split()[:7] == ["Kitchen", "abababab", "ready", "80%+", "36", "C", "-60"]
    assert first.split()[7:] == ["dBm", "12.5", "qwen2.5:0.5b", "192.168.1.20:11434"]
    assert "\x1b" not in done.stdout and second.split()[2:] == ["silent", "-", "-", "-", "-", "-", "-"]
    assert remark.endswith("no route")
    assert "potluck phones invite" in nobody.stdout
    assert json.loads(as_json.stdout) == {"phones": [PHONE]}


@pytest.mark.parametrize(
    ("width", "head"),
    [
        (120, "PHONE ID STATE BATTERY HEAT SIGNAL TOK/S MODELS ADDRESS"),
        (80, "PHONE ID STATE BATTERY HEAT TOK/S MODELS"),
        (60, "PHONE ID STATE BATTERY HEAT"),
        (40, "PHONE ID STATE"),
    ],
)
def test_a_narrow_terminal_leaves_out_what_is_needed_least(width: int, head: str) -> None:
    long = PHONE | {"name": "Samsung Galaxy S21 Ultra 5G 2", "models": ["qwen2.5:1.5b", "llama3.2:1b", "smollm2:135m"]}
    lines = table([long, BARE, PHONE | {"id": "28161FDH2000QX", "name": "厨房"}], width)
    assert lines[0].split() == head.split()
    assert max(map(cell_len, lines)) <= width
    assert lines[1].startswith("Samsung Gal")


def test_states_and_reasons() -> None:
    rows = [PHONE | {"drained": True}, PHONE | {"drained": True, "in_flight": 2}, PHONE | {"resting": "too hot"}]
    assert [line.split()[2] for line in table(rows)[1:]] == ["drained", "draining", "resting"]
    assert remarks(rows) == ["! Kitchen rests: too hot"]


@pytest.mark.parametrize(
    ("arguments", "asked", "said"),
    [
        (["drain", "kitchen"], ("POST", f"/api/phones/{PHONE['id']}/drain", None), "Kitchen gets nothing new"),
        (["resume", "abab"], ("POST", f"/api/phones/{PHONE['id']}/resume", None), "Kitchen is in service again"),
        (["rename", "Kitchen", "X"], ("PATCH", f"/api/phones/{PHONE['id']}", {"name": "X"}), "is called Kitchen now"),
        (["remove", PHONE["id"], "--yes"], ("DELETE", f"/api/phones/{PHONE['id']}", None), "Kitchen is removed"),
    ],
)  # fmt: skip
def test_orders(arguments: list[str], asked: tuple[str, str, Any], said: str) -> None:
    with gateway((200, {"phones": [PHONE]}), (200, PHONE)) as server:
        done = phones(server, *arguments)
        looked, ordered = server.requests
    assert (looked.method, looked.path) == ("GET", "/api/phones")
    assert (ordered.method, ordered.path, json.loads(ordered.body) if ordered.body else None) == asked
    assert done.stdout.endswith(f"{said}\n") and done.exit_code == 0


def test_removing_asks_first() -> None:
    with gateway((200, {"phones": [PHONE]})) as server:
        done = phones(server, "remove", "Kitchen", input="n\n")
        assert len(server.requests) == 1
    assert done.exit_code == 1


@pytest.mark.parametrize("wanted", ["nobody", "aba", "", "Twin"])
def test_a_phone_must_be_meant_clearly(wanted: str) -> None:
    twins = [PHONE | {"id": "ee" * 16, "name": "Twin"}, PHONE | {"id": "ef" * 16, "name": "Twin"}]
    with pytest.raises(Misuse):
        chosen_phone([PHONE, *twins], wanted)
    assert chosen_phone([PHONE, *twins], "ef" * 16) == twins[1]
    impostors = [PHONE | {"id": "ee" * 16, "name": PHONE["id"][:8]}, PHONE | {"id": "ef" * 16, "name": PHONE["id"]}]
    with pytest.raises(Misuse, match="means 3 phones"):
        chosen_phone([PHONE, *impostors, BARE | {"id": PHONE["id"][:8] + "0" * 24}], PHONE["id"][:8])
    assert chosen_phone([PHONE, *impostors], PHONE["id"]) == PHONE
    with gateway((200, {"phones": [PHONE]})) as server:
        assert phones(server, "drain", "nobody").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "asked", "said"),
    [
        (["--warm-up", "a:1b"], {"warm_up": "a:1b"}, "warmed with a:1b; keeps a model as long as it likes itself"),
        (["-w", "a", "-w", "b", "-k", "1h"], {"warm_up": ["a", "b"], "keep_alive": "1h"},
         "warmed with a, b; keeps a model for 1h after a request"),
        (["--no-warm-up", "--keep-alive", "-1"], {"warm_up": False, "keep_alive": -1.0},
         "given no model before somebody asks; keeps a model for ever after a request"),
        (["-k", "nan"], {"keep_alive": "nan"}, "warmed as POTLUCK_WARM_UP says; keeps a model for nan after a request"),
        (["-k", "300"], {"keep_alive": 300.0},
         "warmed as POTLUCK_WARM_UP says; keeps a model for 300 s after a request"),
    ],
)  # fmt: skip
def test_what_a_phone_keeps(arguments: list[str], asked: Any, said: str) -> None:
    kept = {"warm_up": "auto", "keep_alive": "auto", **asked}
    with gateway((200, {"phones": [PHONE]}), (200, PHONE | kept)) as server:
        done = phones(server, "keep", "Kitchen", *arguments)
        _, ordered = server.requests
    assert (ordered.method, ordered.path) == ("PATCH", f"/api/phones/{PHONE['id']}")
    assert json.loads(ordered.body) == asked
    assert done.stdout == f"Kitchen: {said}\n"


@pytest.mark.parametrize("arguments", [[], ["--warm-up", "a", "--no-warm-up"]])
def test_what_it_keeps_must_be_meant(arguments: list[str]) -> None:
    with gateway() as server:
        done = phones(server, "keep", "Kitchen", *arguments)
        assert done.exit_code == 2 and server.requests == []
