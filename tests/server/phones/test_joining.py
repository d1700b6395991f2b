"""Phones that join and are removed; the file on disk, and whom the gateway calls meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest

from server.errors import (
    CallerRefused,
    FleetFileUnusable,
    GatewayError,
    NodeBroken,
    NodeUnknown,
    PhoneUnreachable,
    RequestInvalid,
    TooManyTries,
)
from server.nodes import NodeId, NodeSpec, NodeStatus, ProbeReport
from server.phones.joining import WRONG_TOKENS, Joining
from server.phones.lookout import LOOKS
from server.phones_watch import FleetFile
from server.registry import NodeListed, ProbeFailed
from tests.server.phones.stand import FOUND, HOST, ID, OTHER, Stand, phone


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


async def test_a_phone_joins_without_a_restart(stand: Stand) -> None:
    joined = await stand.joining.join(stand.invited(), phone(), HOST)
    assert (joined.id, joined.name) == (ID, "Pixel 5") and len(joined.phone_token or "") >= 32
    assert stand.entries == [
        {"host": HOST, "id": ID, "name": "Pixel 5", "weight": "auto", "details": {"chip": "SM8550"}}
    ]
    node = stand.registry.fleet.nodes[NodeId(ID)]
    assert node.status is NodeStatus.READY and node.own_model == "qwen2.5:0.5b"
    assert stand.looked == [(HOST, 11434)]


async def test_nothing_of_a_token_is_on_disk_or_in_the_log(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = stand.invited()
    joined = await stand.joining.join(token, phone(), HOST)
    written = "".join(path.read_text() for path in stand.folder.iterdir()) + caplog.text
    assert token not in written and (joined.phone_token or token) not in written
    assert "has joined" in caplog.text


async def test_an_invitation_brings_one_phone(stand: Stand) -> None:
    token = stand.invited()
    await stand.joining.join(token, phone(), HOST)
    with pytest.raises(CallerRefused, match="has been used"):
        await stand.joining.join(token, phone(OTHER), HOST)
    assert len(stand.entries) == 1


async def test_one_that_is_withdrawn_while_the_phone_is_looked_at_lets_it_in_no_more(stand: Stand) -> None:
    async def look(host: str, port: int) -> ProbeReport:
        joining.withdraw(made.id)
        return FOUND

    joining = Joining(stand.registry, stand.fleet_file, look, lambda: stand.now)
    token, made = joining.invite(15, None)
    with pytest.raises(CallerRefused, match="was withdrawn"):
        await joining.join(token, phone(), HOST)
    assert not stand.path.exists() and not joining.has_token(NodeId(ID))


async def test_a_gateway_that_stops_in_the_middle_leaves_all_or_nothing(stand: Stand) -> None:
    tokens = iter(["invitation", "own"])

    def new_token() -> str:
        token = next(tokens)
        if token == "own":  # from here on it is written
            asyncio.get_running_loop().call_soon(coming.cancel)
        return token

    joining = Joining(stand.registry, stand.fleet_file, stand.look, lambda: stand.now, new_token)
    coming = asyncio.create_task(joining.join(joining.invite(15, None)[0], phone(), HOST))
    with pytest.raises(asyncio.CancelledError):
        await coming
    assert [entry["id"] for entry in stand.entries] == [ID] and stand.started().holder("own", HOST) == ID
    with pytest.raises(CallerRefused, match="has been used"):
        joining.begin("invitation", HOST)


async def test_no_two_invitations_go_by_one_name(stand: Stand) -> None:
    tokens = iter(["first", "first", "second"])
    joining = Joining(stand.registry, stand.fleet_file, stand.look, lambda: stand.now, lambda: next(tokens))
    assert [joining.invite(15, None)[0] for _ in range(2)] == ["first", "second"]


async def test_when_a_phone_registered_last_is_told(stand: Stand) -> None:
    own = await stand.joined()
    assert stand.joining.registered_at == {ID: 1_000.0}
    stand.now = 2_000.0
    await stand.joining.come_again(own, phone(), HOST)
    assert stand.joining.registered_at == {ID: 2_000.0}
    await stand.joining.remove(NodeId(ID))
    assert stand.joining.registered_at == {}


async def test_an_invitation_outlasts_a_restart_of_the_gateway(stand: Stand) -> None:
    first, second = stand.invited(), stand.invited()
    stand.joining.begin(first, HOST)
    await stand.joining.join(second, phone(), HOST)
    stand.now += 3600
    stand.joining = stand.started()
    with pytest.raises(CallerRefused, match="has been used"):
        await stand.joining.join(second, phone(OTHER), HOST)
    stand.there[(HOST, 11435)] = FOUND
    await stand.joining.join(first, phone(OTHER, port=11435), HOST)  # its script was fetched in time
    stand.joining = stand.started()
    with pytest.raises(CallerRefused, match="has been used"):
        await stand.joining.join(first, phone(OTHER), HOST)


async def test_of_two_phones_with_one_invitation_one_comes_in(stand: Stand) -> None:
    token = stand.invited()
    tries = [stand.joining.join(token, phone(name), HOST) for name in (ID, OTHER)]
    first, second = await asyncio.gather(*tries, return_exceptions=True)
    assert isinstance(second, CallerRefused) and not isinstance(first, BaseException)
    assert len(stand.entries) == 1


@pytest.mark.parametrize("peer", ["127.0.0.1", "::ffff:127.0.0.1", "8.8.8.8", "fe80::1", "::1", None])
async def test_nobody_is_called_but_who_asks_from_the_network(stand: Stand, peer: str | None) -> None:
    token = stand.invited()
    with pytest.raises(RequestInvalid):
        await stand.joining.join(token, phone(), peer)
    assert stand.looked == [] and not stand.path.exists()
    await stand.joining.join(token, phone(), HOST)  # the invitation is as good as before


@pytest.mark.parametrize("found", [None, ProbeReport("", ()), ProbeReport("1", (), slots=9999, gpu_node=True)])
async def test_a_phone_that_does_not_answer_is_not_let_in(stand: Stand, found: ProbeReport | None) -> None:
    stand.there = {(HOST, 11434): found} if found else {}
    token = stand.invited()
    with pytest.raises(PhoneUnreachable):
        await stand.joining.join(token, phone(), HOST)
    assert not stand.path.exists()
    stand.there = {(HOST, 11434): FOUND}
    await stand.joining.join(token, phone(), HOST)


async def test_what_answers_there_is_quoted_to_nobody(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stand.there = {(HOST, 11434): NodeBroken("answered 500: \x1b[31msecret\u202e\n" + "x" * 5000)}
    with pytest.raises(PhoneUnreachable, match="is no Ollama") as refused:
        await stand.joining.join(stand.invited(), phone(), HOST)
    assert "secret" not in refused.value.message + (refused.value.hint or "")
    assert "[31msecret" in caplog.text and "\x1b" not in caplog.text and "\u202e" not in caplog.text
    assert len(caplog.text) < 1000


class UnluckyFile(FleetFile):
    """An editor breaks it each time between writing and reading."""

    def reload(self) -> None:
        text = self.state.path.read_text()
        self.state.path.write_text("[{]")
        super().reload()
        self.state.path.write_text(text)


async def test_a_file_that_breaks_at_the_last_moment_costs_no_token(stand: Stand) -> None:
    unlucky = UnluckyFile(stand.path, stand.registry.emit, lambda: stand.now)
    joining = Joining(stand.registry, unlucky, stand.look, lambda: stand.now)
    joined = await joining.join(joining.invite(15, None)[0], phone(), HOST)
    assert joined.name == "Pixel 5" and stand.registry.node(NodeId(ID)) is None
    stand.fleet_file.reload()
    assert stand.started().holder(joined.phone_token or "", HOST) == ID


async def test_guessing_is_slowed_down_for_who_guesses(stand: Stand) -> None:
    for _ in range(WRONG_TOKENS):
        with pytest.raises(CallerRefused):
            await stand.joining.join("wrong", phone(), HOST)
    with pytest.raises(TooManyTries):
        stand.joining.begin(stand.invited(), HOST)
    with pytest.raises(TooManyTries):
        stand.joining.holder("wrong", HOST)
    stand.joining.begin(stand.invited(), "192.168.1.21")
    stand.now += 60
    stand.joining.begin(stand.invited(), HOST)
    assert stand.looked == []


async def test_calls_back_to_one_address_are_bounded(stand: Stand) -> None:
    stand.there = {}
    token = stand.invited()
    for port in range(5000, 5000 + LOOKS):
        with pytest.raises(PhoneUnreachable):
            await stand.joining.join(token, phone(port=port), HOST)
    with pytest.raises(TooManyTries):
        await stand.joining.join(token, phone(), HOST)
    assert len(stand.looked) == LOOKS


async def test_an_invitation_takes_the_place_of_no_phone_that_is_there(stand: Stand) -> None:
    own = await stand.joined()
    await stand.joining.rename(NodeId(ID), "Kitchen")
    stand.there[("192.168.1.66", 11434)] = FOUND
    token, before = stand.invited(), stand.entries
    with pytest.raises(RequestInvalid, match=r"same id answers at 192\.168\.1\.20") as refused:
        await stand.joining.join(token, phone(), "192.168.1.66")
    assert refused.value.http_status == 409 and "potluck phones remove" in (refused.value.hint or "")
    assert stand.entries == before and stand.joining.holder(own, HOST) == ID
    assert ("192.168.1.66", 11434) not in stand.looked
    for _ in range(3):
        stand.registry.emit(ProbeFailed(NodeId(ID), "no route", stand.now))
    await stand.joining.join(token, phone(), "192.168.1.66")  # the same phone, that has lost its token and moved
    assert (stand.entries[0]["host"], stand.entries[0]["name"]) == ("192.168.1.66", "Kitchen")


async def test_a_removed_phone_comes_back_with_an_invitation_only(stand: Stand) -> None:
    own = await stand.joined()
    await stand.joining.remove(NodeId(ID))
    assert stand.entries == []
    assert stand.registry.fleet.nodes[NodeId(ID)].status is NodeStatus.DRAINING
    with pytest.raises(CallerRefused) as refused:
        stand.joining.holder(own, HOST)
    assert refused.value.http_status == 401
    newer = await stand.joined()
    assert newer != own and stand.joining.holder(newer, HOST) == ID


async def test_a_phone_whose_token_was_lost_is_the_same_phone_with_a_new_one(stand: Stand) -> None:
    own, newer = await stand.joined(), await stand.joined()
    assert len(stand.entries) == 1 and stand.joining.holder(newer, HOST) == ID
    with pytest.raises(CallerRefused):
        stand.joining.holder(own, HOST)


async def test_draining_lasts_and_ends(stand: Stand) -> None:
    await stand.joined()
    await stand.joining.enable(NodeId(ID), False)
    assert stand.entries[0]["enabled"] is False
    assert stand.registry.fleet.nodes[NodeId(ID)].status is NodeStatus.DISABLED
    await stand.joining.enable(NodeId(ID), True)
    assert "enabled" not in stand.entries[0]
    assert stand.registry.fleet.nodes[NodeId(ID)].status is NodeStatus.READY


async def test_names_are_given_once(stand: Stand) -> None:
    stand.path.write_text('[{"host": "10.0.0.1", "id": "x", "name": "Attic"}]')
    await stand.joined()
    with pytest.raises(RequestInvalid, match="another node is called"):
        await stand.joining.rename(NodeId(ID), "Attic")
    await stand.joining.rename(NodeId(ID), "Cellar")
    assert [entry["name"] for entry in stand.entries] == ["Attic", "Cellar"]


async def test_what_is_not_in_the_file_cannot_be_changed(stand: Stand) -> None:
    for order in (stand.joining.remove(NodeId("x")), stand.joining.rename(NodeId("x"), "y")):
        with pytest.raises(NodeUnknown):
            await order


async def test_a_broken_file_is_left_as_it_is(stand: Stand) -> None:
    stand.path.write_text('[{"hots": "10.0.0.1"}]')
    token = stand.invited()
    with pytest.raises(FleetFileUnusable, match="line 1"):
        await stand.joining.join(token, phone(), HOST)
    assert stand.path.read_text() == '[{"hots": "10.0.0.1"}]'
    stand.path.write_text("[]")
    await stand.joining.join(token, phone(), HOST)


async def test_edits_of_the_owner_meanwhile_are_kept(stand: Stand) -> None:
    await stand.joined()
    stand.path.write_text(json.dumps([*stand.entries, {"host": "10.0.0.1"}]))
    stand.there[(HOST, 11435)] = FOUND
    await stand.joining.join(stand.invited(), phone(OTHER, port=11435), HOST)
    assert [entry["host"] for entry in stand.entries] == [HOST, "10.0.0.1", HOST]


async def test_a_phone_that_its_owner_has_listed_by_host_name_counts_once(stand: Stand) -> None:
    stand.path.write_text('[{"host": "pixel.lan"}, {"host": "gone.lan"}, {"host": "10.0.0.9", "port": 11435}]')
    stand.fleet_file.reload()
    stand.names = {"pixel.lan": ["fd00::1", HOST]}
    await stand.joined()
    first, *others = stand.entries
    assert (first["host"], first["id"], first["details"]["address"]) == ("pixel.lan", ID, HOST)
    assert others == [{"host": "gone.lan"}, {"host": "10.0.0.9", "port": 11435}]
    await stand.joined()  # it has lost its token, and is no stranger
    assert len(stand.entries) == 3


async def test_the_id_of_a_node_that_was_found_is_refused(stand: Stand) -> None:
    stand.registry.emit(NodeListed(NodeSpec(NodeId(ID), "tower", "relay", "10.0.0.9", 8765, origin="discovered"), 0.0))
    with pytest.raises(RequestInvalid):
        await stand.joining.join(stand.invited(), phone(), HOST)


async def test_many_phones_at_once_all_stand_in_the_file(stand: Stand) -> None:
    hosts = [f"192.168.2.{number}" for number in range(1, 31)]
    stand.there = {(host, 11434): FOUND for host in hosts}
    joins = [stand.joining.join(stand.invited(), phone(f"{number:032x}"), host) for number, host in enumerate(hosts)]
    done = await asyncio.gather(*joins)
    assert sorted(entry["host"] for entry in stand.entries) == sorted(hosts)
    assert len({one.name for one in done}) == len(hosts)
    assert all(stand.joining.holder(one.phone_token or "", HOST) == one.id for one in done)


async def test_no_phone_gets_in_whose_token_cannot_be_kept(stand: Stand) -> None:
    token, secrets = stand.invited(), stand.folder / "phones.secrets.json"
    secrets.mkdir()  # whatever the user's rights, no file replaces a folder
    with pytest.raises(FleetFileUnusable):
        await stand.joining.join(token, phone(), HOST)
    assert not stand.path.exists() and not stand.joining.has_token(NodeId(ID))
    secrets.rmdir()
    await stand.joining.join(token, phone(), HOST)


async def test_a_token_stays_good_where_the_file_cannot_be_changed(stand: Stand) -> None:
    own, text = await stand.joined(), stand.path.read_text()
    stand.path.write_text("[{]")
    with pytest.raises(FleetFileUnusable):
        await stand.joining.join(stand.invited(), phone(), HOST)
    stand.path.write_text(text)
    assert stand.joining.holder(own, HOST) == ID


async def test_an_unwritable_folder_is_told_and_leaves_the_invitation(stand: Stand, tmp_path: Path) -> None:
    token = stand.invited()
    stand.path.mkdir()  # whatever the user's rights, no file replaces a folder
    with pytest.raises(GatewayError):
        await stand.joining.join(token, phone(), HOST)
    stand.path.rmdir()
    await stand.joining.join(token, phone(), HOST)
