"""The gateway's look at a phone, over real sockets: what counts as Ollama, and that no answer leads elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from server.backends import Backends
from server.errors import NodeError
from server.main import look_at_phones
from server.settings import Settings
from tests.potluck.loopback import Exchange, Loopback


def served(exchange: Exchange) -> None:
    bodies: dict[str, Any] = {"/api/version": {"version": "0.31.1"}, "/api/tags": {"models": [{"name": "a"}]}}
    exchange.send(200, bodies.get(exchange.asked.path, {"models": []}))


async def looked(server: Loopback) -> Any:
    backends = Backends({})
    try:
        return await look_at_phones(backends, Settings(connect_timeout_s=2.0))("127.0.0.1", port_of(server))
    finally:
        await backends.aclose()


def port_of(server: Loopback) -> int:
    return int(server.url.rpartition(":")[2])


async def test_ollama_is_known_by_version_and_models() -> None:
    with Loopback(served) as server:
        report = await looked(server)
        assert {asked.path for asked in server.requests} >= {"/api/version", "/api/tags"}
        assert all("authorization" not in asked.headers for asked in server.requests)
    assert report.version == "0.31.1" and [copy.name for copy in report.models] == ["a"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_nobody_is_led_elsewhere(status: int) -> None:
    with Loopback(served) as elsewhere:
        place = {"Location": f"{elsewhere.url}/api/version"}
        with Loopback(lambda exchange: exchange.send(status, {}, place)) as server:
            with pytest.raises(NodeError):
                await looked(server)
            assert server.requests
        assert elsewhere.requests == []


@pytest.mark.parametrize("body", [b"<html>", b"x" * (9 << 20), [], {"models": 5}])
async def test_what_is_no_ollama_is_none(body: Any) -> None:
    with Loopback(lambda exchange: exchange.send(200, body)) as server, pytest.raises(NodeError):
        await looked(server)
