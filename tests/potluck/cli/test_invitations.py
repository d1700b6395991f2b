"""Invitations by `potluck phones`, against a server that plays the gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from potluck.cli import app
from potluck.cli.invitations import chosen_invitation, code_for, left_words
from potluck.cli.qr_code import drawn
from potluck.errors import Misuse
from tests.potluck.loopback import Loopback

runner = CliRunner()

COMMAND = "curl -sSL 'http://192.168.1.2:8000/join/secret' | bash"
INVITED = {
    "id": "3f9a0c1e", "token": "secret", "command": COMMAND, "expires_at": "2030-01-01T00:00:00Z",
    "links": [{"url": "http://192.168.1.2:8000/join/secret", "interface": "wlan0"},
              {"url": "http://10.0.0.2:8000/join/secret", "interface": "eth0"}],
}  # fmt: skip
OPEN = [
    {"id": "3f9a0c1e", "seconds_left": 7199, "fetched": True, "model": "smollm2:135m"},
    {"id": "3f9b\x1b[2J", "seconds_left": 61, "fetched": False},
]


def gateway(*answers: tuple[int, Any]) -> Loopback:
    """Answers in turn."""
    left = list(answers)
    return Loopback(lambda exchange: exchange.send(*left.pop(0)))


def phones(server: Loopback, *arguments: str, **more: Any) -> Result:
    return runner.invoke(app, ["phones", *arguments, "--url", server.url], **more)


def test_an_invitation_is_a_line_and_where_else_it_works() -> None:
    with gateway((200, INVITED)) as server:
        done = phones(server, "invite", "--minutes", "30", "--model", "smollm2:135m", env={"POTLUCK_API_KEY": "key"})
        (asked,) = server.requests
    assert (asked.method, asked.path) == ("POST", "/api/phones/invite")
    assert json.loads(asked.body) == {"minutes": 30.0, "model": "smollm2:135m"}
    assert asked.headers["authorization"] == "Bearer key"
    assert f"  {COMMAND}\n" in done.stdout and "one phone and 30 minutes" in done.stdout
    assert "http://10.0.0.2:8000/join/secret  (eth0)" in done.stdout
    assert "To take it back: potluck phones withdraw 3f9a0c1e\n" in done.stdout
    assert "█" not in done.stdout  # nobody's camera looks at a pipe


def test_the_code_where_it_is_wanted() -> None:
    with gateway((200, INVITED)) as server:
        assert "█" in phones(server, "invite", "--qr").stdout


def test_a_code_that_would_break_is_none() -> None:
    assert code_for(COMMAND, "utf-8", None) == code_for(COMMAND, "utf-8", 37) == drawn(COMMAND, "utf-8")
    assert max(map(len, drawn(COMMAND, "utf-8").splitlines())) == 37
    assert code_for(COMMAND, "utf-8", 36) == "(For the QR code this terminal has to be 37 columns wide.)"
    assert "74 columns" in code_for(COMMAND, "ascii", 73)


def test_a_gateway_on_loopback_refuses_in_its_own_words() -> None:
    error = {"error": {"code": "loopback_only", "message": "only this machine", "hint": "start it otherwise"}}
    with gateway((409, error)) as server:
        done = phones(server, "invite")
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr == "error: only this machine.\n       Start it otherwise.\n"


def test_open_ones_are_listed() -> None:
    with gateway(*[(200, {"invitations": found}) for found in (OPEN, [], OPEN)]) as server:
        done, nothing, as_json = (phones(server, "invitations", *more) for more in ([], [], ["--json"]))
    head, first, second = done.stdout.splitlines()
    assert head.split() == ["INVITATION", "GOOD", "FOR", "SCRIPT", "MODEL"]
    assert first.split() == ["3f9a0c1e", "1", "h", "59", "min", "fetched", "smollm2:135m"]
    assert second.split()[1:] == ["1", "min", "-", "-"] and "\x1b" not in done.stdout
    assert nothing.stdout == "no invitation is open; make one with: potluck phones invite\n"
    assert json.loads(as_json.stdout) == {"invitations": OPEN}


@pytest.mark.parametrize("name", ["3f9a", " 3F9A0C1E "])
def test_one_is_withdrawn(name: str) -> None:
    with gateway((200, {"invitations": OPEN}), (204, b"")) as server:
        done = phones(server, "withdraw", name)
        asked = [(one.method, one.path) for one in server.requests]
    assert asked == [("GET", "/api/phones/invitations"), ("DELETE", "/api/phones/invitations/3f9a0c1e")]
    assert (done.exit_code, done.stdout) == (0, "3f9a0c1e is withdrawn\n")


def test_all_are_withdrawn() -> None:
    with gateway((200, {"invitations": OPEN}), (204, b""), (204, b""), (200, {"invitations": []})) as server:
        done, again = phones(server, "withdraw", "--all"), phones(server, "withdraw", "--all")
        assert [one.path for one in server.requests[1:3]] == [
            "/api/phones/invitations/3f9a0c1e",
            "/api/phones/invitations/3f9b%1B%5B2J",
        ]
    assert done.stdout.count(" is withdrawn\n") == 2 and "\x1b" not in done.stdout
    assert (again.exit_code, again.stdout) == (0, "no invitation is open\n")


def test_one_that_has_just_been_used_cannot_be_withdrawn() -> None:
    error = {"error": {"code": "invitation_not_found", "message": "no invitation '3f9a0c1e' is open"}}
    with gateway((200, {"invitations": OPEN}), (404, error)) as server:
        done = phones(server, "withdraw", "3f9a")
    assert (done.exit_code, done.stdout) == (1, "") and "no invitation '3f9a0c1e' is open" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["3f9a", "--all"]])
def test_which_must_be_said(arguments: list[str]) -> None:
    with gateway() as server:
        done = phones(server, "withdraw", *arguments)
        assert done.exit_code == 2 and server.requests == [] and "--all" in done.stderr


@pytest.mark.parametrize(
    ("wanted", "words"), [("3f9", "is open; open are: 3f9a0c1e"), ("", "is open"), ("ffff", "is open")]
)
def test_an_invitation_must_be_meant_clearly(wanted: str, words: str) -> None:
    with pytest.raises(Misuse, match=words):
        chosen_invitation(OPEN, wanted)
    with pytest.raises(Misuse, match="means 2 invitations"):
        chosen_invitation([*OPEN, {"id": "3f9a1111"}], "3f9a")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h 0 min"), (86399, "23 h 59 min"), (-5, "0 s"),
     (None, "-"), (True, "-"), ("5", "-")],
)  # fmt: skip
def test_the_time_that_is_left(seconds: object, words: str) -> None:
    assert left_words(seconds) == words
