"""The small HTTP server under the fake phone: who may come in, connections that stay, clients that do not read."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from tests.fakes.phone import FakePhone, PhoneSettings
from tests.fakes.phone_http import LONGEST_PIPELINE
from tests.fakes.phone_wire import ask

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
CHAT: dict[str, Any] = {"model": "smollm2:135m", "messages": MESSAGES, "options": {"temperature": 0}}


@pytest.mark.parametrize(
    ("headers", "host", "welcome"),
    [
        ({}, "127.0.0.1:11434", True),
        ({}, "localhost", True),
        ({}, "phone.local:11434", True),
        ({}, "192.168.1.7", True),
        ({}, "[::1]:11434", True),
        ({}, "evil.example", False),
        ({}, "8.8.8.8", False),
        ({"Origin": "http://localhost:3000"}, None, True),
        ({"Origin": "https://evil.example"}, None, False),
        ({"Origin": "null"}, None, False),
    ],
)
async def test_a_foreign_host_or_origin_is_forbidden_without_a_body(
    headers: dict[str, str], host: str | None, welcome: bool
) -> None:
    async with FakePhone() as phone:
        answer = await ask(phone.port, "POST", "/api/show", {"model": "smollm2:135m"}, host=host, headers=headers)
        assert answer.status == (200 if welcome else 403)
        assert phone.counters.refused == (0 if welcome else 1)
        if not welcome:
            assert answer.body == b""
            phone.settings.check_origin = False
            again = await ask(phone.port, "POST", "/api/show", {"model": "smollm2:135m"}, host=host, headers=headers)
            assert again.status == 200


async def test_one_connection_serves_many_requests_also_sent_ahead_and_byte_by_byte() -> None:
    async with FakePhone() as phone:
        reader, writer = await asyncio.open_connection("127.0.0.1", phone.port)
        request = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for byte in request:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        writer.write(request * 3)
        received = b""
        while received.count(b'{"version":"0.24.0"}') < 4:
            received += await reader.read(4096)
        writer.write(b"this is no HTTP\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        writer.close()
        await writer.wait_closed()
        assert phone.counters.connections == 1
        assert phone.counters.requests["version"] == 4


async def test_a_client_that_does_not_read_holds_the_speaking_up() -> None:
    """A slow reader must not fill the phone's memory."""
    async with FakePhone(PhoneSettings(answer_tokens=(200_000, 200_000), burst=64)) as phone:
        reader, writer = await asyncio.open_connection("127.0.0.1", phone.port, limit=1024)
        data = orjson.dumps(CHAT)
        writer.write(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data))
        await phone.until(lambda counters: counters.tokens_sent > 1000)
        before = -1
        while before != phone.counters.tokens_sent:
            before = phone.counters.tokens_sent
            await asyncio.sleep(0.1)
        assert before < 200_000
        assert await reader.read(100)
        writer.close()
        await writer.wait_closed()
        await phone.idle()
        assert phone.counters.cancelled == 1


async def test_a_client_that_asks_whether_to_go_on_is_told_to() -> None:
    async with FakePhone() as phone:
        reader, writer = await asyncio.open_connection("127.0.0.1", phone.port)
        data = orjson.dumps({"model": "smollm2:135m"})
        writer.write(b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(data))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(data)
        assert (await reader.readuntil(b"\r\n")) == b"HTTP/1.1 200 OK\r\n"
        writer.close()
        await writer.wait_closed()


async def test_too_many_requests_sent_ahead_end_the_connection() -> None:
    async with FakePhone() as phone:
        reader, writer = await asyncio.open_connection("127.0.0.1", phone.port)
        phone.freeze()
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * (LONGEST_PIPELINE + 2))
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_the_end_of_the_clients_side_is_its_leaving() -> None:
    """As in Go: a client that closes its half of the connection gets no answer any more."""
    async with FakePhone() as phone:
        phone.freeze()
        reader, writer = await asyncio.open_connection("127.0.0.1", phone.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await phone.until(lambda counters: counters.in_flight == 1)
        writer.write_eof()
        assert await reader.read() == b""
        assert phone.counters.cancelled == 1
        writer.close()
        await writer.wait_closed()


async def test_headers_can_be_added_and_head_has_no_body() -> None:
    async with FakePhone(PhoneSettings(headers={"Via": "1.1 somebody"})) as phone:
        answer = await ask(phone.port, "HEAD", "/api/tags")
        assert answer.headers["Via"] == "1.1 somebody"
        assert int(answer.headers["Content-Length"]) > 100
        assert answer.raw.endswith(b"\r\n\r\n")
