"""The tracker over a real adb server and fake phones: joining, leaving, forwards, death and silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from server.adb.plan import Forward
from server.adb.ports import preferred_port
from server.adb.states import SILENT
from server.adb.tracker import AdbOptions, AdbTracker
from server.health import CABLE_INTERVAL_SECONDS, ProbePace
from server.nodes import Node, NodeId, NodeSpec, NodeStatus
from server.registry import NodeListed, Registry
from tests.fakes.adb_server import RealAdbServer
from tests.fakes.adbd import FakeAdbd
from tests.fakes.phone import FakePhone
from tests.fakes.ports import own_serial
from tests.server.adb.lab import Lab, following, following_server, until, until_ports

SERIAL = own_serial("28161FDH")
MOST_TRIES = 12


@pytest.fixture
async def phone(the_lab: Lab, ollama: FakePhone) -> AsyncIterator[FakeAdbd]:
    async with FakeAdbd(SERIAL, ports={11434: ollama.port}) as adbd:
        yield adbd


async def test_a_phone_that_answers_joins_within_three_seconds_and_leaves_when_it_is_unplugged(
    the_lab: Lab, phone: FakeAdbd
) -> None:
    """The best of many: a busy machine may be slow for a while."""
    joined, left = [], []
    while max(map(min, (joined or [3.0], left or [3.0]))) >= 3.0 and len(left) < MOST_TRIES:
        await the_lab.plug(phone)
        joined.append(await until(lambda: the_lab.is_ready(SERIAL)))
        node = the_lab.node(SERIAL)
        assert node.spec.origin == "adb" and node.spec.serial == SERIAL and node.name == "Pixel 7"
        assert (node.spec.host, node.spec.port) == ("127.0.0.1", preferred_port(SERIAL))
        assert await the_lab.local_ports() == {phone.address: [preferred_port(SERIAL)]}

        await phone.die()
        left.append(await until(lambda: the_lab.node(SERIAL) is None))
        await phone.start()
    assert min(joined) < 3.0 and min(left) < 3.0


async def test_a_phone_without_ollama_is_explained_and_joins_when_it_is_started(the_lab: Lab) -> None:
    async with FakeAdbd(SERIAL) as adbd, FakePhone() as ollama:
        await the_lab.plug(adbd)
        await until(lambda: "nothing answers at its port 11434" in the_lab.tracker.problems.get(SERIAL, ""))
        assert the_lab.node(SERIAL) is None and await the_lab.local_ports() == {}
        adbd.services.ports[11434] = ollama.port
        await until(lambda: the_lab.is_ready(SERIAL) and SERIAL not in the_lab.tracker.problems)


async def test_a_phone_that_does_not_trust_us_is_explained_and_not_listed(the_lab: Lab, ollama: FakePhone) -> None:
    async with FakeAdbd(SERIAL, trust=False, ports={11434: ollama.port}) as adbd:
        await the_lab.plug(adbd)
        await until(lambda: "tap Allow" in the_lab.tracker.problems.get(adbd.address, ""))
        assert not the_lab.registry.fleet.nodes
        record = the_lab.tracker.status()["phones"][0]
        assert record["state"] == "unauthorized" and record["node"] is None


async def test_the_forward_is_made_again_at_the_same_port_after_every_reconnect(the_lab: Lab, phone: FakeAdbd) -> None:
    await the_lab.plug(phone)
    await until(lambda: the_lab.is_ready(SERIAL))
    for _ in range(2):
        before = phone.connections
        await phone.unplug()
        await until(lambda before=before: phone.connections > before and the_lab.is_ready(SERIAL))
        await the_lab.until_ports({phone.address: [preferred_port(SERIAL)]})


async def test_a_persons_forward_is_adopted_with_its_entry_and_the_phone_counts_once(
    the_lab: Lab, phone: FakeAdbd, unused_tcp_port: int
) -> None:
    theirs = unused_tcp_port
    the_lab.enter(NodeSpec(NodeId("desk"), "desk", "ollama", "127.0.0.1", theirs))
    await the_lab.plug(phone)
    await the_lab.server.link.create(Forward(phone.address, theirs))
    await until(lambda: [one["node"] for one in the_lab.tracker.status()["phones"]] == ["desk"])
    await until(lambda: the_lab.ready() == {"desk"})
    await the_lab.until_ports({phone.address: [theirs]})
    assert SERIAL not in the_lab.registry.fleet.nodes or the_lab.node(SERIAL).status is NodeStatus.DRAINING

    await phone.die()  # and with it goes the forward, which is made again
    await the_lab.until_ports({})
    await phone.start()
    await the_lab.until_ports({phone.address: [theirs]})
    await until(lambda: the_lab.ready() == {"desk"})


async def test_a_persons_forward_outlives_the_gateway_and_ours_does_not(
    server: RealAdbServer, ollama: FakePhone, unused_tcp_port: int
) -> None:
    registry = Registry()
    async with (
        FakeAdbd("S1", ports={11434: ollama.port}) as one,
        FakeAdbd("S2", ports={11434: ollama.port}) as two,
    ):
        await server.link.connect(one.address)
        await server.link.connect(two.address)
        await server.link.create(Forward(one.address, unused_tcp_port))
        async with following(registry, server.port):
            await until(lambda: {"S1", "S2"} <= set(registry.fleet.nodes))
            assert registry.node(NodeId("S1")).spec.port == unused_tcp_port
            assert len(await server.link.forwards()) == 2
        assert await server.link.forwards() == (Forward(one.address, unused_tcp_port),)


async def test_a_real_server_takes_a_connections_number_for_its_serial(
    server: RealAdbServer, unused_tcp_port: int
) -> None:
    async with FakeAdbd("S1") as adbd:
        await server.link.connect(adbd.address)
        (transport,) = await server.link.transports()
        forward = Forward(adbd.address, unused_tcp_port)
        await server.link.create(forward, transport.number)
        assert transport.number > 0 and await server.link.forwards() == (forward,)
        await server.link.remove(forward, transport.number)
        assert await server.link.forwards() == ()


async def test_of_stale_forwards_only_ours_are_removed(server: RealAdbServer, ollama: FakePhone) -> None:
    """Left by a run that was killed: ours by its port, somebody's to another port of the phone."""
    registry = Registry()
    registry.emit(NodeListed(NodeSpec(NodeId("w"), "w", "ollama", "10.9.9.9", 11434, serial=SERIAL), 0.0))
    async with FakeAdbd(SERIAL, ports={11434: ollama.port}) as adbd:
        await server.link.connect(adbd.address)
        ours, other = (
            Forward(adbd.address, preferred_port(SERIAL)),
            Forward(adbd.address, preferred_port(SERIAL, 100), 8080),
        )
        await server.link.create(ours)
        await server.link.create(other)
        async with following(registry, server.port):
            await until_ports(server, {adbd.address: [other.local_port]})
        assert await server.link.forwards() == (other,)


async def test_an_entry_with_a_serial_gets_its_forward_by_itself(
    the_lab: Lab, phone: FakeAdbd, unused_tcp_port: int
) -> None:
    spec = NodeSpec(NodeId("shelf"), "shelf", "ollama", "127.0.0.1", unused_tcp_port, serial=SERIAL)
    the_lab.enter(spec)
    await the_lab.plug(phone)
    await until(lambda: the_lab.ready() == {"shelf"})
    assert await the_lab.local_ports() == {phone.address: [unused_tcp_port]}
    assert set(the_lab.registry.fleet.nodes) == {"shelf"}


async def test_one_phone_by_two_ways_counts_once(the_lab: Lab, phone: FakeAdbd, ollama: FakePhone) -> None:
    async with FakeAdbd(SERIAL, ports={11434: ollama.port}) as same:
        await the_lab.plug(phone, same)
        await until(lambda: the_lab.is_ready(SERIAL))
        await until(lambda: len(the_lab.tracker.phones) == 1)
        assert set(the_lab.registry.fleet.nodes) == {SERIAL}
        (used,) = await the_lab.local_ports()
        first, second = (phone, same) if used == phone.address else (same, phone)
        await first.die()
        await the_lab.until_ports({second.address: [preferred_port(SERIAL)]})
        await until(lambda: the_lab.is_ready(SERIAL))


async def test_a_port_that_another_program_has_is_stepped_over(the_lab: Lab, phone: FakeAdbd) -> None:
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", preferred_port(SERIAL)):
        await the_lab.plug(phone)
        await until(lambda: the_lab.is_ready(SERIAL))
        assert the_lab.node(SERIAL).spec.port == preferred_port(SERIAL, 1)


async def test_the_servers_death_is_survived(the_lab: Lab, phone: FakeAdbd) -> None:
    await the_lab.plug(phone)
    await until(lambda: the_lab.is_ready(SERIAL))
    await the_lab.server.kill()
    await until(lambda: the_lab.node(SERIAL) is None)
    await until(lambda: "no adb server answers" in the_lab.tracker.server_problem)
    await the_lab.server.start()
    await the_lab.plug(phone)
    await until(lambda: the_lab.is_ready(SERIAL) and the_lab.tracker.server_problem is None)


async def test_another_programs_restart_of_the_server_brings_every_forward_back_and_then_all_is_quiet(
    the_lab: Lab, phone: FakeAdbd, ollama: FakePhone, unused_tcp_port: int
) -> None:
    the_lab.enter(NodeSpec(NodeId("shelf"), "shelf", "ollama", "127.0.0.1", unused_tcp_port, serial="S2"))
    async with FakeAdbd("S2", ports={11434: ollama.port}) as other:
        wanted = {phone.address: [preferred_port(SERIAL)], other.address: [unused_tcp_port]}
        for _ in range(2):
            await the_lab.plug(phone, other)
            await until(lambda: the_lab.ready() == {SERIAL, "shelf"})
            await the_lab.until_ports(wanted)
            await the_lab.server.link.kill()  # as `adb kill-server` does
            await until(lambda: the_lab.node(SERIAL) is None)
            await the_lab.server.start()
        await the_lab.plug(phone, other)
        await until(lambda: the_lab.ready() == {SERIAL, "shelf"})
        await the_lab.until_ports(wanted)

        # What a phone tells of itself comes to its entry a moment after its forward.
        await until(lambda: "ollama" in the_lab.node("shelf").spec.details)
        specs = {node_id: the_lab.node(node_id).spec for node_id in (SERIAL, "shelf")}
        changed: list[Node | None] = []
        the_lab.registry.listen(lambda _, after: changed.append(after))
        for number in range(3):  # each is a reason to look again at everything
            the_lab.enter(NodeSpec(NodeId(f"x{number}"), f"x{number}", "ollama", "10.9.9.9", 11434, enabled=False))
            await asyncio.sleep(0.3)
        assert None not in changed
        assert all(specs.get(after.id, after.spec) is after.spec for after in changed)
        await the_lab.until_ports(wanted)


async def test_what_phones_tell_of_themselves_is_with_their_nodes_and_what_the_owner_wrote_stays(
    the_lab: Lab, phone: FakeAdbd, ollama: FakePhone, unused_tcp_port: int
) -> None:
    written = {"chip": "my chip", "tokens_per_second": 7.5}
    spec = NodeSpec(NodeId("shelf"), "shelf", "ollama", "127.0.0.1", unused_tcp_port, serial="S2", details=written)
    the_lab.enter(spec)
    async with FakeAdbd("S2", ports={11434: ollama.port}) as other:
        await the_lab.plug(phone, other)
        await until(lambda: the_lab.ready() == {SERIAL, "shelf"})
        version = the_lab.node(SERIAL).report.version
        told = {"chip": "gs201", "ram_bytes": 8 << 30, "android": "14", "ollama": version, "mode": "usb"}
        assert the_lab.node(SERIAL).spec.details == told
        await until(lambda: the_lab.node("shelf").spec.details == {**told, **written})

        other.services.properties["ro.build.version.release"] = "15"  # updated, and back after its restart
        await other.unplug()
        await until(lambda: the_lab.node("shelf").spec.details == {**told, **written, "android": "15"})


async def test_phones_of_one_model_have_names_that_differ_and_stay(the_lab: Lab, ollama: FakePhone) -> None:
    ports = {11434: ollama.port}
    async with FakeAdbd("AAAA1234", ports=ports) as one, FakeAdbd("BBBB1234", ports=ports) as two:
        await the_lab.plug(one)
        await until(lambda: the_lab.is_ready("AAAA1234"))
        await the_lab.plug(two)
        await until(lambda: the_lab.is_ready("BBBB1234"))
        assert (the_lab.node("AAAA1234").name, the_lab.node("BBBB1234").name) == ("Pixel 7", "Pixel 7 1234")
        await one.die()
        await until(lambda: the_lab.node("AAAA1234") is None)
        the_lab.enter(NodeSpec(NodeId("x"), "x", "ollama", "10.9.9.9", 11434, enabled=False))
        await asyncio.sleep(0.3)
        assert the_lab.node("BBBB1234").name == "Pixel 7 1234"


async def test_an_entry_whose_phone_has_no_ollama_is_told_so(the_lab: Lab, unused_tcp_port: int) -> None:
    the_lab.enter(NodeSpec(NodeId("shelf"), "shelf", "ollama", "127.0.0.1", unused_tcp_port, serial="S2"))
    async with FakeAdbd("S2") as other:
        await the_lab.plug(other)
        await until(lambda: "nothing answers at its port" in the_lab.tracker.problems.get("S2", ""))
        assert the_lab.tracker.status()["phones"][0]["node"] == "shelf"


async def test_a_silent_phone_that_stays_listed_is_found_by_probes_and_returns(
    server: RealAdbServer, ollama: FakePhone
) -> None:
    """Within how many seconds is told by an injected clock, in test_health."""
    quick = ProbePace(interval_seconds=0.2, timeout_seconds=1.0, retry_seconds=0.2)
    async with (
        following_server(server, quick) as the_lab,
        FakeAdbd(SERIAL, ports={11434: ollama.port}) as phone,
    ):
        await the_lab.plug(phone)
        await until(lambda: the_lab.is_ready(SERIAL))
        phone.silence()
        await until(lambda: the_lab.node(SERIAL).status is NodeStatus.SILENT)
        assert (await the_lab.server.link.transports())[0].state == "device"
        await until(lambda: the_lab.tracker.problems.get(SERIAL) == SILENT)
        assert ProbePace().of(the_lab.node(SERIAL).spec).interval_seconds == CABLE_INTERVAL_SECONDS
        phone.heal()
        await until(lambda: the_lab.is_ready(SERIAL) and SERIAL not in the_lab.tracker.problems)


async def test_battery_and_heat_are_read(the_lab: Lab, phone: FakeAdbd) -> None:
    phone.services.tell_battery(level=55, celsius=44.5, charging=False)
    await the_lab.plug(phone)
    await until(lambda: the_lab.node(SERIAL) is not None and the_lab.node(SERIAL).condition is not None)
    await until(lambda: the_lab.node(SERIAL).condition.thermal_status == 0)
    condition = the_lab.node(SERIAL).condition
    assert (condition.level, condition.temperature_c, condition.charging) == (55.0, 44.5, False)
    assert the_lab.node(SERIAL).resting is not None


async def test_off_follows_nobody(server: RealAdbServer) -> None:
    tracker = AdbTracker(Registry(), AdbOptions("off", port=server.port))
    await asyncio.wait_for(tracker.run(), 60.0)
    told = {"mode": "off", "server": f"127.0.0.1:{server.port}", "problem": None, "phones": []}
    assert tracker.status() == told


async def test_auto_starts_no_server_and_on_does(server: RealAdbServer) -> None:
    started: list[int] = []

    async def start(port: int) -> None:
        started.append(port)
        await server.start()

    await server.kill()
    async with following(Registry(), server.port, start=start) as tracker:
        await until(lambda: "no adb server answers" in (tracker.server_problem or ""))
    assert not started
    async with following(Registry(), server.port, "on", start=start) as tracker:
        await until(lambda: tracker.server_problem is None)
    assert started == [server.port]
