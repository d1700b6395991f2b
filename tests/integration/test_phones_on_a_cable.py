"""The whole gateway over a real adb server: two phones on cables answer, and one is unplugged in mid-answer."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import orjson

from server.main import running
from server.nodes import NodeId, NodeStatus
from server.settings import Settings
from tests.fakes.adb_server import RealAdbServer
from tests.fakes.adbd import FakeAdbd
from tests.fakes.phone import FakePhone, PhoneSettings, verify_answer
from tests.server.adb.lab import until
from tests.server.api.gateway import served

SLOW = PhoneSettings(template="open", tokens_per_second=40, time_scale=1.0)


def settings_of(server: RealAdbServer, folder: Path) -> Settings:
    return Settings(
        phones_file=folder / "phones.json",
        embedded_node="off",
        discovery="off",
        adb_server=f"127.0.0.1:{server.port}",
    )


async def test_an_answer_goes_on_elsewhere_when_its_phone_is_unplugged(server: RealAdbServer, tmp_path: Path) -> None:
    values = settings_of(server, tmp_path)
    async with (
        FakePhone(SLOW) as one,
        FakePhone(SLOW) as two,
        FakeAdbd("CABLE1", ports={11434: one.port}) as first,
        FakeAdbd("CABLE2", ports={11434: two.port}) as second,
        running(values, {}, io.StringIO()) as gateway,
        served(gateway.app) as address,
        httpx.AsyncClient(base_url=address, timeout=60) as client,
    ):
        await server.link.connect(first.address)
        await server.link.connect(second.address)
        ready = [NodeStatus.READY] * 2
        registry = gateway.services.registry
        await until(lambda: [node.status for node in registry.fleet.nodes.values()] == ready)

        health = (await client.get("/health")).json()
        problems = {phone["serial"]: phone["problem"] for phone in health["adb"]["phones"]}
        assert problems == {"CABLE1": None, "CABLE2": None}
        assert {node["origin"] for node in health["nodes"]} == {"adb"}

        text, unplugged = "", False
        question = {"model": health["nodes"][0]["models"][0], "prompt": "tell me a story"}
        async with client.stream("POST", "/api/generate", json=question) as reply:
            assert reply.status_code == 200
            async for line in reply.aiter_lines():
                record = orjson.loads(line)
                assert "error" not in record, record
                text += record["response"]
                if len(text) > 60 and not unplugged:
                    unplugged = True
                    assert one.counters.generating + two.counters.generating == 1
                    await (first if one.counters.generating else second).die()
        assert unplugged
        verdict = verify_answer(text, prompt="tell me a story", settings=SLOW)
        assert verdict.ok and verdict.complete, verdict
        await until(lambda: len(registry.fleet.nodes) == 1)


async def test_a_phone_on_a_cable_is_drained_and_comes_back(server: RealAdbServer, tmp_path: Path) -> None:
    values = settings_of(server, tmp_path)
    async with (
        FakePhone(SLOW) as ollama,
        FakeAdbd("CABLE1", ports={11434: ollama.port}) as phone,
        running(values, {}, io.StringIO()) as gateway,
        served(gateway.app) as address,
        httpx.AsyncClient(base_url=address, timeout=60) as client,
    ):
        await server.link.connect(phone.address)

        def states() -> list[NodeStatus]:
            return [node.status for node in gateway.services.registry.fleet.nodes.values()]

        await until(lambda: states() == [NodeStatus.READY])
        assert gateway.services.registry.fleet.nodes[NodeId("CABLE1")].spec.origin == "adb"
        drained = (await client.post("/api/phones/CABLE1/drain")).json()
        assert (drained["drained"], drained["origin"]) == (True, "file")
        await until(lambda: states() == [NodeStatus.DISABLED])
        assert [entry["serial"] for entry in orjson.loads(values.phones_file.read_bytes())] == ["CABLE1"]
        assert (await client.post("/api/generate", json={"model": "smollm2:135m", "prompt": "x"})).status_code >= 400
        await client.post("/api/phones/CABLE1/resume")
        await until(lambda: states() == [NodeStatus.READY])
        answer = await client.post("/ask", json={"prompt": "Are you back?"})
        assert answer.status_code == 200 and answer.json()["response"]
