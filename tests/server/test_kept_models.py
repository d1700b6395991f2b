"""The whole gateway over a fake phone: it is warmed by itself, keeps models as its entry says, and pulls are found."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.main import running
from server.settings import Settings
from tests.fakes.phone import FakeModel, FakePhone, PhoneSettings
from tests.server.api.gateway import served, until

A, B = FakeModel("a:1b"), FakeModel("b:1b")


@asynccontextmanager
async def gateway_of(folder: Path, entry: dict[str, Any], phone: FakePhone, **settings: Any) -> AsyncIterator[Any]:
    path = folder / "phones.json"
    path.write_text(json.dumps([{"host": phone.host, "port": phone.port, "id": "kitchen", "name": "Kitchen", **entry}]))
    values = Settings(**{"phones_file": path, "embedded_node": "off", "discovery": "off", "adb": "off", **settings})
    async with running(values, {}) as gateway, served(gateway.app) as address, httpx.AsyncClient(timeout=60) as http:
        registry = gateway.services.registry
        await until(lambda: any(node.models for node in registry.fleet.nodes.values()))
        http.base_url = httpx.URL(address)
        yield http


def asked(phone: FakePhone, *names: str) -> list[Any]:
    return [seen.json for seen in phone.log if seen.name in names]


async def test_a_joined_phone_is_warmed_by_itself(tmp_path: Path) -> None:
    async with FakePhone(PhoneSettings(models=(A, B))) as phone:
        async with gateway_of(tmp_path, {"details": {"model": "b:1b"}}, phone) as http:
            await until(lambda: phone.resident() == ["b:1b"])
            await until(lambda: not phone.counters.in_flight)
            (told,) = (await http.get("/api/phones")).json()["phones"]
            assert told["warm_up"] == "auto"
        assert [body["prompt"] for body in asked(phone, "generate")] == [""]


@pytest.mark.parametrize(
    ("entry", "settings"),
    [({"details": {"model": "a:1b"}}, {"warm_up": "off"}), ({"details": {"x": 1}, "warm_up": False}, {}), ({}, {})],
)
async def test_nobody_is_warmed_who_should_not_be(tmp_path: Path, entry: Any, settings: Any) -> None:
    async with FakePhone(PhoneSettings(models=(A,))) as phone, gateway_of(tmp_path, entry, phone, **settings) as http:
        for _ in range(5):  # who is to be warmed is asked in the moment in which it answers its first probe
            await http.get("/health")
        assert asked(phone, "generate") == []


async def test_requests_keep_the_model_as_long_as_the_phones_entry_says(tmp_path: Path) -> None:
    entry = {"keep_alive": "2h"}
    async with FakePhone(PhoneSettings(models=(A,))) as phone, gateway_of(tmp_path, entry, phone) as http:
        own = {"keep_alive": "7m"}
        assert (await http.post("/ask", json={"prompt": "one"})).status_code == 200
        assert (await http.post("/ask", json={"prompt": "two", **own})).status_code == 200
        chat = {"messages": [{"role": "user", "content": "three"}]}
        assert (await http.post("/v1/chat/completions", json=chat)).status_code == 200
        assert (await http.post("/api/embed", json={"model": "a:1b", "input": "x"})).status_code == 200
        assert (await http.post("/api/generate", json={"model": "a:1b"})).status_code == 200  # loads
        assert (await http.post("/api/models/load", json={"model": "a:1b"})).status_code == 200
        kept = [body.get("keep_alive") for body in asked(phone, "chat", "generate", "embed")]
        assert kept == ["2h", "7m", "2h", "2h", "2h", "2h"]
        (loaded,) = phone.state.runner.resident()
        assert loaded.expires_at - phone.state.clock() > 7000
        assert (await http.post("/api/models/unload", json={"model": "a:1b"})).status_code == 200
        assert asked(phone, "generate")[-1]["keep_alive"] == 0  # whoever says so himself is not contradicted


async def test_without_an_entry_the_phone_has_its_own_way(tmp_path: Path) -> None:
    async with FakePhone(PhoneSettings(models=(A,))) as phone, gateway_of(tmp_path, {}, phone) as http:
        await http.post("/ask", json={"prompt": "one"})
        assert "keep_alive" not in asked(phone, "chat", "generate")[0]


async def test_what_was_pulled_is_warmed_and_answers(tmp_path: Path) -> None:
    settings = PhoneSettings(models=(A,), library=(B,))
    async with FakePhone(settings) as phone, gateway_of(tmp_path, {"warm_up": "b:1b"}, phone) as http:
        pulled = await http.post("/api/models/pull", json={"model": "b:1b", "nodes": ["Kitchen"], "stream": False})
        assert pulled.json()["pulled"] == ["Kitchen"]
        answer = await http.post("/ask", json={"prompt": "hi", "model": "b:1b"})
        assert (answer.status_code, answer.json()["node"]) == (200, "Kitchen")
        await until(lambda: phone.resident() == ["b:1b"])
