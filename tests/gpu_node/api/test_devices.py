"""The list of devices over HTTP: people's wishes, their refusals, and waiting for what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gpu_node.api.access import rules_of
from gpu_node.device_fleet import DeviceFleet
from gpu_node.devices import parse_devices
from tests.gpu_node.scripted import ScriptedRunner
from tests.gpu_node.serving import NAME, Fleet, Served, serving, until_true

MIB = 1 << 20
# The machine of these tests has 8,000 bytes free, which is less than the least budget: its devices are cards.
CARDS = "cuda:0:64MiB,cuda:1:64MiB,cpu:1MiB"


def fleet_of(text: str = CARDS) -> DeviceFleet:
    return DeviceFleet(parse_devices(text), lambda: 0.0, lambda: 1_800_000_000.0)


def states(record: Any) -> dict[str, str]:
    return {one["device"]: one["state"] for one in record["devices"]}


async def listed(served: Served) -> Any:
    reply = await served.client.get("/api/devices")
    assert reply.status_code == 200
    return reply.json()


async def test_all_that_is_known_of_each_device_is_listed() -> None:
    fleet = fleet_of()
    fleet.hold(NAME, {"cuda:0": 5 * MIB})
    fleet.lost("cuda:1", "its worker was killed")
    async with serving(devices=fleet) as served:
        found = await listed(served)
    assert found["split"] is True
    assert found["devices"][0] == {
        "device": "cuda:0", "kind": "cuda", "state": "present", "budget_bytes": 64 * MIB, "wanted_bytes": None,
        "speed": None, "free_bytes": None, "models": {NAME: 5 * MIB}, "losses": 0, "reason": None,
        "state_seconds": 0.0, "retry_seconds": None,
    }  # fmt: skip
    lost = found["devices"][1]
    assert (lost["state"], lost["reason"], lost["retry_seconds"]) == ("lost", "its worker was killed", 5.0)
    assert found["events"][-1] == {
        "at": 1_800_000_000.0, "device": "cuda:1", "what": "lost", "detail": "its worker was killed",
    }  # fmt: skip


async def test_a_node_that_splits_nothing_lists_its_device_and_says_how_to_split() -> None:
    async with serving() as served:
        found = await listed(served)
        refused = [
            await served.client.post("/api/devices", json={"device": "cpu:1GiB"}),
            await served.client.delete("/api/devices/cpu"),
        ]
    (only,) = found["devices"]
    assert (found["split"], only["device"], only["state"], only["kind"]) == (False, "cpu", "present", "cpu")
    assert only["models"][NAME] > 0
    for reply in refused:
        assert (reply.status_code, "--devices" in reply.json()["error"]) == (409, True)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, 'give "device" to add one'),
        ({"device": "cpu:1GiB", "name": "cpu:0"}, 400, 'give "device" to add one'),
        ({"device": "cpu:1GiB", "budget": "1GiB"}, 400, "in its text"),
        ({"device": "tpu:1GiB"}, 400, '"tpu:1GiB" names no device'),
        ({"device": "cpu:1GiB,cpu:1GiB"}, 400, "one device at a time"),
        ({"device": "cpu:oops"}, 400, "is no size"),
        ({"device": "cpu:1GiB"}, 409, "1.07 GB of main memory are not free: 0.01 MB are available"),
        ({"device": "cuda:0:1GiB@2"}, 400, "has no speed behind its @"),
        ({"device": "cuda:7"}, 404, "this machine has no cuda:7; cards: cuda:0"),
        ({"device": "rocm:0"}, 404, "this machine has no rocm:0; cards: none"),
        ({"device": "mps:1GiB"}, 404, "this machine has no mps:0; cards: none"),
        ({"device": "cuda:1"}, 409, "has the memory of cuda:1"),
        ({"name": "cpu:9"}, 404, "there is no device cpu:9 here"),
        ({"name": "cuda:0"}, 409, "cuda:0 is present already"),
        ({"name": "cuda:0", "budget": "much"}, 400, "budget:"),
        ({"name": "cuda:0", "budget": 7}, 400, "7 bytes hold nothing"),
        ({"name": "cuda:0", "size": 7}, 400, "size"),
    ],
)
async def test_what_cannot_be_is_refused_with_its_reason(body: dict[str, Any], status: int, words: str) -> None:
    fleet = fleet_of()
    async with serving(devices=fleet) as served:
        reply = await served.client.post("/api/devices", json=body)
    assert (reply.status_code, words in reply.json()["error"]) == (status, True), reply.text
    assert fleet.epoch == 0


@pytest.mark.parametrize("path", ["?wait=never", "?wait=-1", "?wait=601", "?wait=nan"])
async def test_waits_have_bounds(path: str) -> None:
    async with serving(devices=fleet_of()) as served:
        replies = [
            await served.client.post(f"/api/devices{path}", json={"name": "cuda:0"}),
            await served.client.delete(f"/api/devices/cuda:0{path}"),
        ]
    assert [reply.status_code for reply in replies] == [400, 400]


async def test_a_card_goes_and_comes_back() -> None:
    async with serving(devices=fleet_of()) as served:
        gone = await served.client.delete("/api/devices/cuda%3A1")
        again = await served.client.delete("/api/devices/cuda:1")
        back = await served.client.post("/api/devices", json={"device": "cuda:1:32MiB"})
        found = await listed(served)
    assert (gone.status_code, gone.json()["state"]) == (200, "gone")
    assert (again.status_code, again.json()["error"]) == (409, "cuda:1 has left already")
    assert (back.status_code, back.json()["budget_bytes"]) == (200, 32 * MIB)
    assert states(found) == {"cuda:0": "present", "cuda:1": "present", "cpu:0": "present"}


async def test_of_a_card_that_joins_it_is_known_what_is_free() -> None:
    fleet = fleet_of("cpu:1MiB")
    async with serving(devices=fleet) as served:
        reply = await served.client.post("/api/devices", json={"device": "cuda:0"})
    assert (reply.status_code, reply.json()["free_bytes"]) == (200, 20_000), "or no plan could count with it"


async def test_a_name_in_a_path_is_decoded_once() -> None:
    async with serving(devices=fleet_of(), real=True) as served:
        other = await served.client.delete("/api/devices/cuda%253A1")
        found = await listed(served)
    assert (other.status_code, other.json()["error"][:31]) == (404, "there is no device cuda%3A1 her")
    assert states(found)["cuda:1"] == "present"


async def test_a_lost_device_is_asked_back() -> None:
    fleet = fleet_of()
    fleet.lost("cuda:1", "killed")
    async with serving(devices=fleet) as served:
        reply = await served.client.post("/api/devices", json={"name": "cuda:1"})
    assert (reply.status_code, reply.json()["state"], reply.json()["losses"]) == (200, "present", 1)


async def test_the_last_device_stays() -> None:
    async with serving(devices=fleet_of("cpu:1MiB")) as served:
        reply = await served.client.delete("/api/devices/cpu:0?force=true")
        unknown = await served.client.delete("/api/devices/cpu:1")
        odd = await served.client.delete("/api/devices/cpu:0?force=perhaps")
    assert (reply.status_code, reply.json()["error"]) == (409, "cpu:0 is the last device, and models need one")
    assert (unknown.status_code, odd.status_code) == (404, 400)


async def while_it_waits(served: Served, fleet: DeviceFleet, ask: Any, then: Callable[[], None]) -> Any:
    """The answer, when something happens after the wish has arrived."""
    before = len(fleet.events)
    reply = asyncio.create_task(ask)
    await until_true(lambda: len(fleet.events) > before)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not reply.done()
    then()
    return await reply


async def test_a_removal_drains_and_is_answered_when_it_has() -> None:
    fleet = fleet_of()
    fleet.hold(NAME, {"cuda:0": MIB, "cuda:1": MIB})
    async with serving(devices=fleet) as served:
        at_once = await served.client.delete("/api/devices/cuda:0?wait=0")
        assert (at_once.status_code, at_once.json()["state"]) == (202, "leaving")
        await served.client.post("/api/devices", json={"name": "cuda:0"})
        ask = served.client.delete("/api/devices/cuda:0?wait=30")
        left = await while_it_waits(served, fleet, ask, lambda: fleet.hold(NAME, {"cuda:1": MIB}))
    assert (left.status_code, left.json()["state"]) == (200, "gone")


async def test_a_removal_that_is_refused_says_why_and_leaves_all_as_it_was() -> None:
    fleet = fleet_of()
    fleet.hold(NAME, {"cuda:0": MIB, "cuda:1": MIB})
    async with serving(devices=fleet) as served:
        ask = served.client.delete("/api/devices/cuda:0?wait=30")
        refused = await while_it_waits(served, fleet, ask, lambda: fleet.refuse("cuda:0", "short by 5 MB"))
        forced = served.client.delete("/api/devices/cuda:0?wait=30&force=true")
        gone = await while_it_waits(served, fleet, forced, lambda: fleet.refuse("cuda:0", "short by 5 MB"))
    assert (refused.status_code, refused.json()["error"]) == (409, "short by 5 MB")
    assert (gone.status_code, gone.json()["state"]) == (200, "gone")


class Split(ScriptedRunner):
    """Needs its first card."""

    def can_do_without(self, name: str) -> str | None:
        return "smollm2 does not fit without cuda:0: short by 5 MB." if name == "cuda:0" else None


async def test_what_a_model_needs_is_known_before_anything_moves() -> None:
    devices, fleet = fleet_of(), Fleet()
    async with serving(devices=devices, fleet=fleet, loaded=False) as served:
        fleet.files[NAME].runner = lambda wish: Split()
        await served.post("/api/generate", prompt="q", stream=False)
        refused = await served.client.delete("/api/devices/cuda:0")
        other = await served.client.delete("/api/devices/cuda:1")
        forced = await served.client.delete("/api/devices/cuda:0?force=true")
    said = "smollm2 does not fit without cuda:0: short by 5 MB; it is removed all the same with ?force=true"
    assert (refused.status_code, refused.json()["error"]) == (409, said)
    assert (other.status_code, forced.status_code) == (200, 200)


async def test_force_is_not_offered_where_it_would_not_help() -> None:
    devices, fleet = fleet_of("cuda:0:64MiB"), Fleet()
    async with serving(devices=devices, fleet=fleet, loaded=False) as served:
        fleet.files[NAME].runner = lambda wish: Split()
        await served.post("/api/generate", prompt="q", stream=False)
        refused = await served.client.delete("/api/devices/cuda:0")
    assert (refused.status_code, refused.json()["error"]) == (409, "cuda:0 is the last device, and models need one")


async def test_a_new_size_waits_for_a_plan() -> None:
    fleet = fleet_of()
    fleet.hold(NAME, {"cuda:0": 40 * MIB})
    body = {"name": "cuda:0", "budget": "30MiB"}
    async with serving(devices=fleet) as served:
        at_once = await served.client.post("/api/devices", json=body)
        ask = served.client.post("/api/devices?wait=30", json=body)
        done = await while_it_waits(served, fleet, ask, lambda: fleet.hold(NAME, {"cuda:0": 30 * MIB}))
        ask = served.client.post("/api/devices?wait=30", json={"name": "cuda:0", "budget": "20MiB"})
        refused = await while_it_waits(served, fleet, ask, lambda: fleet.refuse("cuda:0", "short by 5 MB"))
    assert (at_once.json()["budget_bytes"], at_once.json()["wanted_bytes"]) == (64 * MIB, 30 * MIB)
    assert (done.json()["budget_bytes"], done.json()["wanted_bytes"]) == (30 * MIB, None)
    assert (refused.status_code, refused.json()["error"]) == (409, "short by 5 MB")


@pytest.mark.parametrize("used", [True, False])
async def test_who_adds_a_device_may_wait_until_it_has_a_part(used: bool) -> None:
    fleet = fleet_of()
    fleet.remove("cuda:1")

    def decided() -> None:
        fleet.hold(NAME, {"cuda:1": MIB}) if used else fleet.refuse("cuda:1", "the plan is quicker without it")

    async with serving(devices=fleet) as served:
        ask = served.client.post("/api/devices?wait=30", json={"device": "cuda:1:64MiB"})
        reply = await while_it_waits(served, fleet, ask, decided)
    record = reply.json()
    expected: Any = ({NAME: MIB}, None) if used else ({}, "the plan is quicker without it")
    assert (reply.status_code, record["models"], record["reason"]) == (200, *expected)


async def test_a_wait_ends_with_its_time() -> None:
    fleet = fleet_of()
    async with serving(devices=fleet) as served:
        fleet.remove("cuda:1")
        reply = await served.client.post("/api/devices?wait=0.01", json={"name": "cuda:1"})
    assert (reply.status_code, reply.json()["models"]) == (200, {})


async def test_a_client_that_leaves_ends_its_wait_and_not_its_wish() -> None:
    fleet = fleet_of()
    fleet.hold(NAME, {"cuda:0": MIB})
    async with serving(devices=fleet, real=True) as served:
        ask = asyncio.create_task(served.client.delete("/api/devices/cuda:0?wait=600"))
        await until_true(lambda: "leaving" in [one.state for one in fleet.devices])
        ask.cancel()
        await asyncio.gather(ask, return_exceptions=True)
        await served.client.get("/api/devices")
    found = fleet.find("cuda:0")
    assert found is not None and found.state == "leaving"


async def test_who_may_not_call_may_not_change_devices() -> None:
    fleet = fleet_of()
    async with serving(devices=fleet, rules=rules_of(("anna:secret",), (), ())) as served:
        replies = [
            await served.client.get("/api/devices"),
            await served.client.post("/api/devices", json={"name": "cuda:0", "budget": "1MiB"}),
            await served.client.delete("/api/devices/cuda:0"),
        ]
        page = await served.client.delete("/api/devices/cuda:0", headers={"X-API-Key": "secret"})
    assert [reply.status_code for reply in replies] == [401, 401, 401]
    assert page.status_code == 200


async def test_methods_and_the_label_of_metrics() -> None:
    async with serving(devices=fleet_of()) as served:
        wrong = [await served.client.put("/api/devices"), await served.client.post("/api/devices/cuda:0")]
        await served.client.delete("/api/devices/cuda:0")
        told = (await served.client.get("/metrics")).text
    assert [(reply.status_code, reply.headers["allow"]) for reply in wrong] == [(405, "GET, POST"), (405, "DELETE")]
    assert 'route="/api/devices/{name}",status="200"' in told
    assert not any("cuda:0" in line for line in told.splitlines() if "http_responses" in line)
