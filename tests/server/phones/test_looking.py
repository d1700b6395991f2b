"""The gateway's look at a phone, over real sockets: what counts as Ollama, and that no answer leads elsewhere."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from server.backends import Backends
from server.backends.ollama import MAX_BODY_BYTES
from server.errors import NodeBroken, NodeError, NodeStalled
from server.main import look_at_phones
from server.settings import Settings
from tests.potluck.loopback import Exchange, Loopback


def served(exchange: Exchange) -> None:
    bodies: dict[str, Any] = {"/api/version": {"version": "0.31.1"}, "/api/tags": {"models": [{"name": "a"}]}}
    exchange.send(200, bodies.get(exchange.asked.path, {"models": []}))


async def looked(server: Loopback, patience_seconds: float = 2.0) -> Any:
    backends = Backends({})
    try:
        return await look_at_phones(backends, Settings(connect_timeout_s=patience_seconds))(
            "127.0.0.1", port_of(server)
        )
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


async def test_an_answer_without_an_end_is_not_read_to_its_end() -> None:
    told = [0]

    def endless(exchange: Exchange) -> None:
        exchange.begin()
        with contextlib.suppress(OSError):
            while not exchange.stop.is_set():
                exchange.chunk(b" " * 65536)
                told[0] += 65536

    with Loopback(endless) as server, pytest.raises(NodeBroken, match="more than"):
        await looked(server)
    assert told[0] < 3 * MAX_BODY_BYTES  # what was read, and what the sockets held


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"])
async def test_who_answers_for_ever_is_left(head: bytes) -> None:
    def dripping(exchange: Exchange) -> None:
        with contextlib.suppress(OSError):
            exchange.connection.sendall(head)
            while head and not exchange.stop.wait(0.02):
                exchange.connection.sendall(b"A: b\r\n" if head.count(b"\n") == 1 else b" ")
        exchange.wait_until_left()

    with Loopback(dripping) as server, pytest.raises(NodeStalled):
        await looked(server, 0.2)
