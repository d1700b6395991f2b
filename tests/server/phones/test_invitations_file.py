"""Invitations on disk: hashes only, and never in the way."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from server.phones.invitations import Invitation, Invitations
from server.phones.invitations_file import InvitationsFile, invitations_path


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = invitations_path(tmp_path / "phones.json")
    assert path == tmp_path / "phones.invitations.json"
    assert invitations_path(Path("/tmp/demo.a1B2c3")) == Path("/tmp/demo.a1B2c3.invitations.json")
    invitations = Invitations()
    for token in ("secret-a", "secret-b", "secret-c", "secret-d"):
        invitations.invite(token, 15, "smollm2:135m", 0.0)
    invitations.begin("secret-a", 5.0)
    invitations.use(invitations.claim("secret-b", 5.0))
    claimed = invitations.claim("secret-c", 5.0)
    invitations.withdraw(invitations.see("secret-d", 5.0).id, 5.0)
    InvitationsFile(path).write(invitations.kept)
    found = InvitationsFile(path).read()
    assert found == invitations.kept and claimed not in found
    states = [(5.0, "open"), (None, "used"), (None, "open"), (None, "withdrawn")]
    assert [(one.begun_at, one.state) for one in found] == states
    assert path.stat().st_mode & 0o777 == 0o600 and "secret" not in path.read_text()
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    Invitations(found).claim("secret-c", 6.0)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"invitations": 5}', '{"invitations": [5]}', "[" * 100_000])
def test_what_is_broken_is_nothing(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "i.json").write_text(text)
    assert InvitationsFile(tmp_path / "i.json").read() == []
    assert "invited anew" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "00"}, {"digest": 5}, {"made_at": float("nan")}, {"expires_at": "9"}, {"begun_at": True},
        {"model": 5}, {"state": "claimed"},
    ],
)  # fmt: skip
def test_of_a_broken_invitation_none_is_believed(tmp_path: Path, change: dict[str, object]) -> None:
    whole = {"digest": "00" * 32, "made_at": 0, "expires_at": 9, "model": None, "begun_at": None, "state": "open"}
    path = tmp_path / "i.json"
    path.write_text(json.dumps({"invitations": [whole]}))
    assert len(InvitationsFile(path).read()) == 1
    path.write_text(json.dumps({"invitations": [whole, whole | change]}))
    assert InvitationsFile(path).read() == []


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    file = InvitationsFile(tmp_path / "gone" / "i.json")
    for _ in range(3):
        file.write([Invitation(b"x" * 32, 0.0, 1.0)])
    assert caplog.text.count("a restart voids invitations") == 1 and file.read() == []
