"""The phones' tokens on disk: hashed, for the owner only, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.errors import FleetFileUnusable
from server.nodes import NodeId
from server.phones.secrets_file import Secrets, secrets_path

A, B = NodeId("a" * 32), NodeId("b" * 32)


def test_tokens_are_known_again_after_a_restart(tmp_path: Path) -> None:
    path = secrets_path(tmp_path / "phones.json")
    assert path == tmp_path / "phones.secrets.json"
    Secrets(path).give(A, "token-a")
    secrets = Secrets(path)
    secrets.give(B, "token-b")
    assert (secrets.holder("token-a"), secrets.holder("token-b"), secrets.holder("token-c")) == (A, B, None)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "token" not in path.read_text()
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    secrets.give(A, "newer")
    assert Secrets(path).holder("token-a") is None
    secrets.take(A)
    assert Secrets(path).holder("newer") is None and secrets.knows(B) and not secrets.knows(A)


def test_each_fleet_file_has_its_own(tmp_path: Path) -> None:
    assert secrets_path(Path("/tmp/demo.a1B2c3")) == Path("/tmp/demo.a1B2c3.secrets.json")
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "phones.secrets.json"
    link.symlink_to(tmp_path / "elsewhere" / "s.json")
    Secrets(link).give(A, "token-a")
    assert link.is_symlink() and Secrets(link).holder("token-a") == A


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"phones": {"a": 1}}', '{"phones": {"a": "zz"}}', '{"phones": []}'])
def test_a_broken_file_is_told_and_never_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "phones.secrets.json"
    path.write_text(text)
    secrets = Secrets(path)
    for way in (lambda: secrets.holder("x"), lambda: secrets.give(A, "x"), lambda: secrets.take(A)):
        with pytest.raises(FleetFileUnusable, match="broken"):
            way()
    assert path.read_text() == text


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path / "gone" / "phones.secrets.json")
    with pytest.raises(FleetFileUnusable, match="cannot be written"):
        secrets.give(A, "x")
    assert secrets.holder("x") is None


def test_an_empty_set_is_a_file_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    secrets = Secrets(path)
    secrets.give(A, "x")
    secrets.take(A)
    assert json.loads(path.read_text()) == {"phones": {}}


def test_what_another_gateway_writes_there_is_kept(tmp_path: Path) -> None:
    one, other = (Secrets(tmp_path / "s.json") for _ in range(2))
    one.give(A, "token-a")
    other.give(B, "token-b")
    assert (one.holder("token-b"), other.holder("token-a")) == (B, A)
    one.give(A, "newer")
    assert (other.holder("newer"), other.holder("token-a"), other.holder("token-b")) == (A, None, B)


def test_a_file_that_vanishes_sends_no_phone_away(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    secrets = Secrets(path)
    secrets.give(A, "token-a")
    path.unlink()
    assert secrets.holder("token-a") == A
    secrets.give(B, "token-b")
    assert Secrets(path).holder("token-a") == A


def test_a_token_that_came_to_nothing_leaves_the_one_before(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path / "s.json")
    assert secrets.give(A, "first") is None
    before = secrets.give(A, "second")
    secrets.restore(A, before)
    assert (secrets.holder("first"), secrets.holder("second")) == (A, None)
