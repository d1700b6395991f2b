"""The fleet file and the tokens beside it, changed together."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from server.errors import FleetFileUnusable, NodeUnknown, RequestInvalid
from server.nodes import NodeId, NodeSpec
from server.phones.ledger import Ledger, edited
from server.phones_watch import FleetFile
from server.registry import Registry

A, B = NodeId("a" * 32), NodeId("b" * 32)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    registry = Registry()
    fleet_file = FleetFile(tmp_path / "phones.json", registry.emit, lambda: 0.0)
    fleet_file.reload()
    return Ledger(fleet_file)


def adding(phone_id: NodeId, host: str = "10.0.0.1"):
    return lambda specs: [*specs, NodeSpec(phone_id, "phone", "ollama", host, 11434)]


def ids(folder: Path) -> list[str]:
    return [entry["id"] for entry in json.loads((folder / "phones.json").read_text())]


async def test_phones_come_and_go_with_their_tokens(ledger: Ledger, tmp_path: Path) -> None:
    await ledger.admit(A, "token-a", adding(A))
    await ledger.admit(B, "token-b", adding(B, "10.0.0.2"))
    assert ids(tmp_path) == [A, B] and ledger.holder("token-b") == B and ledger.knows(A)
    await ledger.dismiss(A)
    assert ids(tmp_path) == [B] and ledger.holder("token-a") is None
    with pytest.raises(NodeUnknown):
        await ledger.dismiss(A)


async def test_who_is_not_written_down_has_no_token(ledger: Ledger, tmp_path: Path) -> None:
    def refused(specs: Sequence[NodeSpec]) -> Sequence[NodeSpec]:
        raise RequestInvalid("no")

    with pytest.raises(RequestInvalid):
        await ledger.admit(A, "token-a", refused)
    assert not ledger.knows(A)
    await ledger.admit(A, "token-a", adding(A))
    with pytest.raises(RequestInvalid):
        await ledger.admit(A, "newer", refused)
    assert (ledger.holder("token-a"), ledger.holder("newer")) == (A, None)


async def test_many_changes_at_once_are_all_made(ledger: Ledger, tmp_path: Path) -> None:
    phones = [NodeId(f"{number:032x}") for number in range(20)]
    await asyncio.gather(*(ledger.admit(one, one, adding(one, f"10.0.0.{n}")) for n, one in enumerate(phones)))
    assert sorted(ids(tmp_path)) == phones and all(ledger.holder(one) == one for one in phones)
    await asyncio.gather(*(ledger.dismiss(one) for one in phones))
    assert ids(tmp_path) == []


async def test_a_change_that_has_begun_is_made_whole(ledger: Ledger, tmp_path: Path) -> None:
    begun, go_on, admitted = threading.Event(), threading.Event(), []

    def slowly(specs: Sequence[NodeSpec]) -> Sequence[NodeSpec]:
        begun.set()
        go_on.wait()
        return adding(A)(specs)

    joining = asyncio.create_task(ledger.admit(A, "token-a", slowly, lambda: admitted.append(A)))
    await asyncio.to_thread(begun.wait)
    joining.cancel()
    other = asyncio.create_task(ledger.admit(B, "token-b", adding(B, "10.0.0.2")))
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await joining
    await other
    assert ids(tmp_path) == [A, B] and ledger.holder("token-a") == A and admitted == [A]


async def test_what_fails_after_its_caller_has_gone_leaves_nothing(ledger: Ledger) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def refused(specs: Sequence[NodeSpec]) -> Sequence[NodeSpec]:
        begun.set()
        go_on.wait()
        raise RequestInvalid("no")

    joining = asyncio.create_task(ledger.admit(A, "token-a", refused))
    await asyncio.to_thread(begun.wait)
    joining.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await joining
    assert not ledger.knows(A)


async def test_a_broken_file_is_told(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "phones.json").write_text("[")
    with pytest.raises(FleetFileUnusable, match="cannot be changed while it is broken"):
        await ledger.change(adding(A))
    assert not ledger.is_broken  # what was read last was good


def test_edits_are_for_those_who_are_there() -> None:
    spec = NodeSpec(A, "phone", "ollama", "10.0.0.1", 11434)
    assert edited([spec], A, lambda one: replace(one, name="x"))[0].name == "x"
    with pytest.raises(NodeUnknown):
        edited([spec], B, lambda one: one)
