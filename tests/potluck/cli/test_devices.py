"""`potluck devices` against a server that plays a node: what is asked, what is shown, and how it ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from potluck.cli import app
from potluck.cli.devices import event_lines, remarks, table
from tests.potluck.loopback import Loopback

runner = CliRunner()

DEVICE = {
    "device": "cpu:0", "kind": "cpu", "state": "present", "budget_bytes": 231_000_000, "wanted_bytes": None,
    "speed": 0.5, "free_bytes": 9_870_000_000, "models": {"smollm2:135m": 229_600_000}, "losses": 0, "reason": None,
    "state_seconds": 5.0, "retry_seconds": None,
}  # fmt: skip
LOST = DEVICE | {
    "device": "cpu:1",
    "state": "lost",
    "models": {},
    "reason": "its worker \x1b[2Jwas killed",
    "speed": None,
}


def node(status: int, body: Any) -> Loopback:
    return Loopback(lambda exchange: exchange.send(status, body))


def devices(server: Loopback, *arguments: str, **environment: str) -> Result:
    return runner.invoke(app, ["devices", *arguments, "--node", server.url], env=environment)


def test_devices_are_listed_with_what_is_wrong() -> None:
    told = {"devices": [DEVICE, LOST | {"retry_seconds": 4.2}], "events": []}
    with node(200, told) as server:
        done = devices(server, "list", POTLUCK_API_KEY="secret")
        as_json = devices(server, "list", "--json")
        assert [asked.path for asked in server.requests] == ["/api/devices"] * 2
        assert server.requests[0].headers["authorization"] == "Bearer secret"
    assert done.stdout.splitlines() == [
        "DEVICE  STATE    BUDGET  FREE     SPEED  HELD    MODELS",
        "cpu:0   present  231 MB  9.87 GB  0.5    230 MB  smollm2:135m",
        "cpu:1   lost     231 MB  9.87 GB  -      -       -",
        "! cpu:1: its worker �[2Jwas killed; it is tried again in 4 s",
    ]
    assert json.loads(as_json.stdout) == told


def test_remarks_say_what_to_do() -> None:
    assert remarks([DEVICE]) == []
    assert remarks([DEVICE | {"wanted_bytes": 10**8}]) == ["! cpu:0: 100 MB is asked for"]
    (line,) = remarks([LOST])
    assert line.endswith("it comes back when it is asked for: potluck devices add cpu:1")
    assert table([DEVICE | {"budget_bytes": None, "free_bytes": None}])[1].startswith(
        "cpu:0   present  what is free  -"
    )


def test_events_are_shown_when_asked_for() -> None:
    told = {"devices": [], "events": [{"at": 0, "device": "cpu:1", "what": "lost", "detail": "killed"}] * 50}
    with node(200, told) as server:
        plain, done = devices(server, "list"), devices(server, "list", "--events")
    assert len(plain.stdout.splitlines()) == 1
    assert len(done.stdout.splitlines()) == 21
    assert done.stdout.splitlines()[-1].endswith("cpu:1 lost  killed")
    assert event_lines([]) == []


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["add", "cpu:1GiB@0.5"], ("POST", "/api/devices?wait=0", {"device": "cpu:1GiB@0.5"})),
        (["add", "cuda:1", "--wait", "30"], ("POST", "/api/devices?wait=30", {"device": "cuda:1"})),
        (["add", "cpu:1"], ("POST", "/api/devices?wait=0", {"name": "cpu:1"})),
        (["add", "cpu:123456"], ("POST", "/api/devices?wait=0", {"name": "cpu:123456"})),
        (["add", "cpu:1048576"], ("POST", "/api/devices?wait=0", {"device": "cpu:1048576"})),
        (["add", "cuda:0.1"], ("POST", "/api/devices?wait=0", {"name": "cuda:0.1"})),
        (["resize", "cpu:1", "1GiB"], ("POST", "/api/devices?wait=0", {"name": "cpu:1", "budget": "1GiB"})),
        (["remove", "cpu:1"], ("DELETE", "/api/devices/cpu:1?wait=2", None)),
        (["remove", "cpu/1", "--force", "-w", "1.5"], ("DELETE", "/api/devices/cpu%2F1?force=true&wait=1.5", None)),
    ],
)
def test_each_wish_is_one_request(arguments: list[str], asked: tuple[str, str, Any]) -> None:
    with node(202, DEVICE) as server:
        done = devices(server, *arguments)
        (request,) = server.requests
    assert (done.exit_code, done.stdout.splitlines()[1].split()[0]) == (0, "cpu:0"), done.stderr
    assert (request.method, request.path, request.json if request.body else None) == asked


def test_a_refusal_is_one_sentence() -> None:
    said = "smollm2 does not fit without cpu:1: short by 5 MB"
    with node(409, {"error": said}) as server:
        refused = devices(server, "remove", "cpu:1")
    assert (refused.exit_code, refused.stdout, refused.stderr) == (1, "", f"error: {said}.\n")
    with node(400, {"error": '"tpu:1" names no device'}) as server:
        wrong = devices(server, "add", "tpu:1")
    assert (wrong.exit_code, wrong.stderr) == (2, 'error: "tpu:1" names no device.\n')
    with node(401, {"error": "a valid API key is required"}) as server:
        locked = devices(server, "list")
    assert (locked.exit_code, "POTLUCK_API_KEY" in locked.stderr) == (1, True)


def test_what_is_no_node_is_told() -> None:
    for status, body in ((404, b"404 page not found"), (200, b"<html>"), (200, [])):
        with node(status, body) as server:
            done = devices(server, "list")
        assert (done.exit_code, "does not speak of devices" in done.stderr) == (1, True)
    with node(404, {"error": "there is no /api/devices here"}) as server:
        gateway = devices(server, "add", "cpu:1GiB")
    assert (gateway.exit_code, "the gateway perhaps: --node takes" in gateway.stderr) == (1, True)
    gone = devices(server, "list")
    assert (gone.exit_code, "no node answers at" in gone.stderr, "potluck node" in gone.stderr) == (1, True, True)
    nonsense = runner.invoke(app, ["devices", "list", "--node", "ftp://here"])
    assert nonsense.exit_code == 2
    nameless = runner.invoke(app, ["devices", "list", "--node", "a..b"])
    assert (nameless.exit_code, "that is no name of a host" in nameless.stderr) == (2, True)
