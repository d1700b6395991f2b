"""The tracker and the whole gateway against Debian's own adb daemon: what the fake one is held to."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import orjson
import pytest

from server.adb.ports import preferred_port
from server.adb.states import Transport
from server.adb.sync_service import push, size_of
from server.errors import AdbRefused
from server.main import running
from server.nodes import NodeStatus
from server.settings import Settings
from tests.fakes.adb_server import RealAdbServer
from tests.fakes.adbd_of_debian import RealAdbd, why_not
from tests.fakes.adbd_services import BATTERY
from tests.fakes.phone import FakePhone, PhoneSettings, verify_answer
from tests.fakes.ports import own_serial
from tests.server.adb.lab import Lab, until
from tests.server.api.gateway import served

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "never")
REAL1 = own_serial("REAL")  # it gets the first of its ports
SLOW = PhoneSettings(template="open", tokens_per_second=40, time_scale=1.0)


@pytest.fixture
async def phone(tmp_path: Path) -> AsyncIterator[RealAdbd]:
    async with FakePhone() as ollama, RealAdbd(tmp_path / "one", REAL1, ollama.port) as adbd:
        yield adbd


async def test_a_phone_joins_tells_what_it_is_and_leaves(the_lab: Lab, phone: RealAdbd) -> None:
    phone.dump("battery", BATTERY.format(usb="true", status=2, level=61, tenths=305))
    await the_lab.server.link.connect(phone.address)
    await until(lambda: the_lab.is_ready(REAL1))
    node = the_lab.node(REAL1)
    assert (node.name, node.spec.port, node.spec.details["android"]) == ("Pixel 6", preferred_port(REAL1), "13")
    assert int(node.spec.details["ram_bytes"]) > 1 << 28  # of /proc/meminfo, as on a phone
    await until(lambda: the_lab.node(REAL1).condition is not None)
    condition = the_lab.node(REAL1).condition
    assert (condition.level, condition.temperature_c, condition.charging) == (61.0, 30.5, True)

    await phone.die()
    await until(lambda: the_lab.node(REAL1) is None)
    assert await the_lab.local_ports() == {}


async def test_forwards_are_made_again_after_every_return(the_lab: Lab, phone: RealAdbd) -> None:
    await the_lab.server.link.connect(phone.address)
    await until(lambda: the_lab.is_ready(REAL1))
    for _ in range(2):
        await phone.die()
        await until(lambda: the_lab.node(REAL1) is None)
        await phone.start()
        await the_lab.server.link.connect(phone.address)
        await until(lambda: the_lab.is_ready(REAL1))
        assert await the_lab.local_ports() == {phone.address: [preferred_port(REAL1)]}


async def test_a_dead_link_that_nobody_tells_of_is_found_and_its_return(the_lab: Lab, phone: RealAdbd) -> None:
    await the_lab.server.link.connect(phone.address)
    await until(lambda: the_lab.is_ready(REAL1))
    phone.pause()
    await until(lambda: the_lab.node(REAL1).status is NodeStatus.SILENT)
    assert (await the_lab.server.link.transports())[0].state == "device"
    phone.go_on()
    await until(lambda: the_lab.is_ready(REAL1))


async def test_files_are_pushed_as_to_a_phone(server: RealAdbServer, phone: RealAdbd, tmp_path: Path) -> None:
    await server.link.connect(phone.address)
    here, there = tmp_path / "model.gguf", tmp_path / "pushed" / "model.gguf"
    here.write_bytes(bytes(range(256)) * 1000)
    there.parent.mkdir()
    transport, counted = Transport(phone.address, "device"), list[int]()
    assert await size_of(server.link, transport, str(there)) is None
    await push(server.link, transport, here, str(there), counted.append)
    assert sum(counted) == await size_of(server.link, transport, str(there)) == 256_000
    assert there.read_bytes() == here.read_bytes()
    with pytest.raises(AdbRefused, match="directory"):  # the phone's own words
        await push(server.link, transport, here, str(there.parent), counted.append)


async def test_an_answer_goes_on_elsewhere_when_its_daemon_is_killed(server: RealAdbServer, tmp_path: Path) -> None:
    values = Settings(
        phones_file=tmp_path / "phones.json", embedded_node="off", discovery="off",
        adb_server=f"127.0.0.1:{server.port}",
    )  # fmt: skip
    async with (
        FakePhone(SLOW) as one,
        FakePhone(SLOW) as two,
        RealAdbd(tmp_path / "one", REAL1, one.port) as first,
        RealAdbd(tmp_path / "two", "REAL2", two.port) as second,
        running(values, {}, io.StringIO()) as gateway,
        served(gateway.app) as address,
        httpx.AsyncClient(base_url=address, timeout=60) as client,
    ):
        registry = gateway.services.registry
        for adbd in (first, second):
            await server.link.connect(adbd.address)
        await until(lambda: [node.status for node in registry.fleet.nodes.values()] == [NodeStatus.READY] * 2)
        model = next(iter(registry.fleet.nodes.values())).report.models[0].name

        text, killed = "", None
        question = {"model": model, "prompt": "tell me a story"}
        async with client.stream("POST", "/api/generate", json=question) as reply:
            async for line in reply.aiter_lines():
                record = orjson.loads(line)
                assert "error" not in record, record
                text += record["response"]
                if len(text) > 60 and killed is None:
                    killed = first if one.counters.generating else second
                    await killed.die()
        verdict = verify_answer(text, prompt="tell me a story", settings=SLOW)
        assert verdict.ok and verdict.complete, verdict
        await until(lambda: len(registry.fleet.nodes) == 1)

        assert killed is not None
        await killed.start()
        await server.link.connect(killed.address)
        await until(lambda: [node.status for node in registry.fleet.nodes.values()] == [NodeStatus.READY] * 2)
        assert {forward.serial for forward in await server.link.forwards()} == {first.address, second.address}
