"""The owner's calls: list, drain, resume, rename, remove."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.care import Condition
from server.nodes import NodeId, NodeSpec, ProbeReport
from server.registry import NodeListed, NodeProbed
from tests.server.api.gateway import ask, gateway, get, post
from tests.server.phones.stand import ID, Stand

HEADERS = {"host": "192.168.1.2:8000"}
FROM_PAGE = {"client": ("192.168.1.7", 40_000), "server": ("192.168.1.2", 8000), "headers": HEADERS}


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


def app_of(stand: Stand, **settings: Any) -> Any:
    return gateway(joining=stand.joining, registry=stand.registry, **settings).app


async def test_a_phone_on_a_cable_gets_an_entry_with_the_first_order(stand: Stand) -> None:
    found = NodeSpec(
        NodeId("CABLE7"), "Pixel 7", "ollama", "127.0.0.1", 22143, weight=None, serial="CABLE7", origin="adb"
    )
    found = replace(found, details={"ollama": "0.1"})  # it will tell that anew
    stand.registry.emit(NodeListed(found, 0.0))
    app = app_of(stand)
    answer = await ask(app, "DELETE", "/api/phones/CABLE7")
    assert answer.status == 422 and "leaves when it is unplugged" in answer.json()["error"]["message"]
    answer = await post(app, "/api/phones/CABLE7/drain", {})
    told = answer.json()
    assert (told["drained"], told["origin"], told["serial"]) == (True, "file", "CABLE7")
    assert stand.entries == [{"name": "Pixel 7", "weight": "auto", "enabled": False, "serial": "CABLE7"}]
    assert (await post(app, "/api/phones/CABLE7/resume", {})).json()["drained"] is False
    assert stand.entries == [{"name": "Pixel 7", "weight": "auto", "serial": "CABLE7"}]


async def test_a_node_that_was_found_without_a_serial_is_nobodys_to_drain(stand: Stand) -> None:
    found = NodeSpec(NodeId("found"), "attic", "ollama", "10.0.0.8", 11434, origin="discovered")
    stand.registry.emit(NodeListed(found, 0.0))
    answer = await post(app_of(stand), "/api/phones/found/drain", {})
    assert answer.status == 422 and "has no serial to list it by" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/phones"), ("POST", f"/api/phones/{ID}/drain"),
        ("PATCH", f"/api/phones/{ID}"), ("DELETE", f"/api/phones/{ID}"),
    ],
)  # fmt: skip
async def test_where_keys_are_these_calls_need_one(stand: Stand, method: str, path: str) -> None:
    await stand.joined()
    assert (await ask(app_of(stand, api_keys="a:secret"), method, path, {}, **FROM_PAGE)).status == 401
    outside = {**FROM_PAGE, "client": ("203.0.113.7", 1)}
    assert (await ask(app_of(stand), method, path, {}, **outside)).status == 403
    assert stand.entries[0].get("enabled", True) and stand.entries[0]["name"] == "Pixel 5"


async def test_phones_are_listed_with_all_that_is_known(stand: Stand) -> None:
    await stand.joined(tokens_per_second=12.54)
    await stand.joining.report(NodeId(ID), Condition(80.0, False, 36.0, at=stand.now), -60, None)
    (told,) = (await get(app_of(stand), "/api/phones")).json()["phones"]
    assert (told["id"], told["name"], told["joined"], told["drained"]) == (ID, "Pixel 5", True, False)
    assert (told["signal_dbm"], told["tokens_per_second"]) == (-60, 12.5)
    assert told["condition"]["battery_percent"] == 80.0 and told["models"] == ["qwen2.5:0.5b"]
    assert told["details"]["chip"] == "SM8550" and told["address"] == "192.168.1.20:11434"
    assert told["reported_at"] == "1970-01-01T00:16:40Z" and told["joined_at"] == stand.now


async def test_drain_resume_rename_remove(stand: Stand) -> None:
    await stand.joined()
    app = app_of(stand)
    assert (await post(app, f"/api/phones/{ID}/drain", b"")).json()["drained"] is True
    assert stand.entries[0]["enabled"] is False
    assert (await post(app, f"/api/phones/{ID}/resume", b"")).json()["drained"] is False
    assert (await ask(app, "PATCH", f"/api/phones/{ID}", {"name": " Kitchen "})).json()["name"] == "Kitchen"
    gone = await ask(app, "DELETE", f"/api/phones/{ID}")
    assert gone.json() == {"id": ID, "name": "Kitchen", "removed": True}
    assert stand.entries == []


async def test_what_is_no_phone_of_the_file(stand: Stand) -> None:
    await stand.joined()
    app = app_of(stand)
    unknown = await post(app, "/api/phones/Pixel 5/drain", b"")
    assert unknown.status == 404 and ID in unknown.json()["error"]["hint"]
    assert (await post(app, f"/api/phones/{ID}", b"")).status == 405
    assert (await post(app, f"/api/phones/{ID}/dance", b"")).status == 404
    for name in ("", " ", "a\x1bb", "x" * 101, None):
        assert (await ask(app, "PATCH", f"/api/phones/{ID}", {"name": name})).status == 422
    plain = gateway()  # its node is one that no file lists
    assert (await ask(plain.app, "DELETE", "/api/phones/kitchen")).status == 404


async def test_other_nodes_are_none_of_its_business(stand: Stand) -> None:
    stand.path.write_text('[{"host": "10.0.0.9", "id": "tower", "kind": "relay"}]')
    stand.fleet_file.reload()
    app = app_of(stand)
    assert (await get(app, "/api/phones")).json() == {"phones": []}
    assert (await ask(app, "DELETE", "/api/phones/tower")).status == 404
    assert (await post(app, "/api/phones/tower/drain", b"")).status == 404
    assert [entry["id"] for entry in stand.entries] == ["tower"]


async def test_a_phone_does_not_hide_by_calling_itself_something_else(stand: Stand) -> None:
    await stand.joined()
    stand.registry.emit(NodeProbed(NodeId(ID), ProbeReport("1", (), slots=9999, gpu_node=True), stand.now))
    app = app_of(stand)
    assert [one["id"] for one in (await get(app, "/api/phones")).json()["phones"]] == [ID]
    assert (await ask(app, "DELETE", f"/api/phones/{ID}")).status == 200


async def test_phones_are_listed_while_their_secrets_cannot_be_read(stand: Stand) -> None:
    await stand.joined()
    (stand.folder / "phones.secrets.json").write_text("broken")
    (told,) = (await get(app_of(stand), "/api/phones")).json()["phones"]
    assert (told["id"], told["joined"]) == (ID, False)
