"""Phones that come again with their own token, from the same place or another, and report."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.care import Condition
from server.errors import CallerRefused, FleetFileUnusable, PhoneUnreachable, RequestInvalid, TooManyTries
from server.nodes import NodeId
from server.phones.joining import REPORTS
from server.phones.sightings import RETURN_SECONDS
from server.registry import ProbeFailed
from tests.server.phones.stand import FOUND, HOST, ID, OTHER, Stand, phone

WARM = Condition(level=80.0, temperature_c=38.0, at=1_000.0)


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


async def test_after_a_reboot_a_phone_is_known_by_its_id(stand: Stand) -> None:
    own = await stand.joined()
    await stand.joining.rename(NodeId(ID), "Kitchen")
    stand.there[("192.168.1.99", 11434)] = FOUND
    again = await stand.started().come_again(own, phone(ollama="0.32"), "192.168.1.99")
    assert (again.name, again.phone_token) == ("Kitchen", None)
    (entry,) = stand.entries
    assert (entry["host"], entry["name"], entry["details"]["ollama"]) == ("192.168.1.99", "Kitchen", "0.32")
    assert stand.registry.fleet.nodes[NodeId(ID)].spec.host == "192.168.1.99"


async def test_who_comes_from_the_same_place_costs_nothing(stand: Stand) -> None:
    own = await stand.joined()
    before = stand.path.stat().st_mtime_ns, stand.path.stat().st_ino
    await stand.joining.come_again(own, phone(), HOST)
    assert (stand.path.stat().st_mtime_ns, stand.path.stat().st_ino) == before
    assert len(stand.looked) == 1


async def test_the_token_of_one_phone_moves_no_other(stand: Stand) -> None:
    own = await stand.joined()
    with pytest.raises(CallerRefused) as refused:
        await stand.joining.come_again(own, phone(OTHER), HOST)
    assert refused.value.http_status == 401


async def test_two_copies_of_one_phone_do_not_take_turns(stand: Stand) -> None:
    own, copy = await stand.joined(), "192.168.1.77"
    stand.there[(copy, 11434)] = FOUND
    await stand.joining.come_again(own, phone(), copy)
    with pytest.raises(RequestInvalid, match=r"same id answers at 192\.168\.1\.77") as refused:
        await stand.joining.come_again(own, phone(), HOST)
    assert refused.value.http_status == 409, "a reporter that is told 401 would end"
    await stand.joining.report(NodeId(ID), WARM, None, HOST)
    assert stand.entries[0]["host"] == copy
    stand.registry.emit(ProbeFailed(NodeId(ID), "no route", stand.now))
    await stand.joining.come_again(own, phone(), HOST)  # one phone that went back
    assert stand.entries[0]["host"] == HOST
    stand.now += RETURN_SECONDS
    await stand.joining.come_again(own, phone(), copy)
    assert stand.entries[0]["host"] == copy


async def test_a_new_address_where_nobody_answers_is_not_taken(stand: Stand) -> None:
    own = await stand.joined()
    with pytest.raises(PhoneUnreachable):
        await stand.joining.come_again(own, phone(), "192.168.1.99")
    assert stand.entries[0]["host"] == HOST


async def test_a_report_tells_the_condition_and_renews_the_address(stand: Stand) -> None:
    own = await stand.joined()
    held = stand.joining.holder(own, HOST)
    await stand.joining.report(held, WARM, -60, HOST)
    node = stand.registry.fleet.nodes[NodeId(ID)]
    assert node.condition == WARM and stand.joining.news[held].signal_dbm == -60
    assert len(stand.looked) == 1
    stand.there[("192.168.1.99", 11434)] = FOUND
    await stand.joining.report(held, WARM, None, "192.168.1.99")
    assert stand.entries[0]["host"] == "192.168.1.99"


async def test_a_phone_by_host_name_notes_its_address_and_is_not_called_there(stand: Stand) -> None:
    own = await stand.joined()
    stand.path.write_text(stand.path.read_text().replace(HOST, "pixel.lan"))
    stand.fleet_file.reload()
    await stand.joining.come_again(own, phone(), HOST)
    assert (stand.entries[0]["host"], stand.entries[0]["details"]["address"]) == ("pixel.lan", HOST)
    await stand.joining.report(NodeId(ID), WARM, None, "192.168.1.99")
    assert (stand.entries[0]["host"], stand.entries[0]["details"]["address"]) == ("pixel.lan", "192.168.1.99")
    await stand.joining.report(NodeId(ID), WARM, None, "8.8.8.8")
    assert stand.entries[0]["details"]["address"] == "192.168.1.99"
    assert stand.looked == [(HOST, 11434)]
    before = stand.path.stat().st_ino
    await stand.joining.report(NodeId(ID), WARM, None, "192.168.1.99")
    assert stand.path.stat().st_ino == before, "written only where something is new"


@pytest.mark.parametrize("peer", ["127.0.0.1", "8.8.8.8", "192.168.1.99"])
async def test_a_report_from_elsewhere_counts_but_moves_nothing(stand: Stand, peer: str) -> None:
    held = stand.joining.holder(await stand.joined(), HOST)
    await stand.joining.report(held, WARM, None, peer)
    assert stand.registry.fleet.nodes[NodeId(ID)].condition == WARM
    assert stand.entries[0]["host"] == HOST
    assert set(stand.looked) <= {(HOST, 11434), ("192.168.1.99", 11434)}


async def test_why_an_address_is_not_renewed_is_said_once(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    held = stand.joining.holder(await stand.joined(), HOST)
    for _ in range(3):
        await stand.joining.report(held, WARM, None, "192.168.1.99")
    assert caplog.text.count("is not renewed") == 1
    await stand.joining.report(held, WARM, None, "8.8.8.8")
    assert caplog.text.count("is not renewed") == 2


async def test_reports_are_bounded(stand: Stand) -> None:
    held = stand.joining.holder(await stand.joined(), HOST)
    for _ in range(REPORTS):
        await stand.joining.report(held, WARM, None, HOST)
    with pytest.raises(TooManyTries):
        await stand.joining.report(held, WARM, None, HOST)


async def test_a_phone_cannot_have_the_file_written_again_and_again(stand: Stand) -> None:
    own = await stand.joined()
    for number in range(REPORTS):
        await stand.joining.come_again(own, phone(termux=str(number)), HOST)
    with pytest.raises(TooManyTries):
        await stand.joining.come_again(own, phone(termux="more"), HOST)
    stand.now += 60
    await stand.joining.come_again(own, phone(termux="more"), HOST)


async def test_while_the_file_is_broken_no_phone_is_sent_away(tmp_path: Path) -> None:
    before = Stand(tmp_path)
    own = await before.joined()
    text = before.path.read_text()
    before.path.write_text("[{]")
    stand = Stand(tmp_path)
    with pytest.raises(FleetFileUnusable):
        stand.joining.holder(own, HOST)
    stand.path.write_text(text)
    stand.fleet_file.reload()
    assert stand.joining.holder(own, HOST) == ID
