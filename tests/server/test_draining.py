"""How the gateway ends: streams get their time, then an honest last event; a second signal ends at once."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import httpx

from server.api.services import OpenRequests
from server.draining import Draining, server_address
from tests.fakes.phone import FakePhone, PhoneSettings
from tests.server.api.gateway import until
from tests.server.live_gateway import Program, program, started

LONG = {"prompt": "Tell me a long story.", "num_predict": 400, "temperature": 0}


class Dispatcher:
    def __init__(self) -> None:
        self.told: list[str] = []

    def cut_off(self) -> None:
        self.told.append("cut")


async def test_running_answers_get_their_time_and_no_more():
    dispatcher, requests = Dispatcher(), OpenRequests()
    draining = Draining(requests, dispatcher, 0.01)
    draining.start()
    assert (requests.draining, dispatcher.told) == (True, [])
    await until(lambda: draining.is_cut)
    assert dispatcher.told == ["cut"]
    draining.stop()


async def test_a_second_start_cuts_at_once_and_a_third_changes_nothing():
    dispatcher = Dispatcher()
    draining = Draining(OpenRequests(), dispatcher, 60.0)
    for _ in range(3):
        draining.start()
    assert dispatcher.told == ["cut"]
    draining.stop()


def test_the_servers_address_by_the_shape_of_its_handler():
    class Config:
        host, uds, fd = "0.0.0.0", None, None

    class Server:
        config: Any = Config

        def handle_exit(self, number: int, frame: Any) -> None: ...

    assert server_address(Server().handle_exit) == "0.0.0.0"
    assert server_address(None) is None
    assert server_address(lambda number, frame: None) is None
    on_socket = Server()
    on_socket.config = type("OnSocket", (Config,), {"uds": "/run/potluck"})
    assert server_address(on_socket.handle_exit) is None


async def test_handlers_are_passed_on_and_put_back():
    got: list[int] = []

    def server(number: int, frame: Any) -> None:
        got.append(number)

    before = signal.signal(signal.SIGTERM, server)
    try:
        dispatcher, requests = Dispatcher(), OpenRequests()
        draining = Draining(requests, dispatcher, 60.0)
        with draining.on_signals():
            signal.raise_signal(signal.SIGTERM)
            await until(lambda: requests.draining)
            signal.raise_signal(signal.SIGTERM)
            await until(lambda: dispatcher.told == ["cut"])
        assert got == [signal.SIGTERM], "the server hears of the first only"
        assert signal.getsignal(signal.SIGTERM) is server
        draining.stop()
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_a_client_that_reads_nothing_does_not_hold_the_end_up():
    got: list[int] = []

    def server(number: int, frame: Any) -> None:
        got.append(number)

    before = {number: signal.signal(number, server) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        draining = Draining(OpenRequests(), Dispatcher(), drain_seconds=0.0, force_seconds=0.01)
        with draining.on_signals():
            signal.raise_signal(signal.SIGTERM)
            await until(lambda: signal.SIGINT in got)  # uvicorn's word for "do not wait for connections"
        assert got == [signal.SIGTERM, signal.SIGINT]
        draining.stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# the program itself


async def told_by(http: httpx.AsyncClient, made: Program, lines: list[dict[str, Any]], **body: Any) -> None:
    async with http.stream("POST", f"{made.address}/ask_stream", json={**LONG, **body}) as answer:
        async for line in answer.aiter_lines():
            lines.append(json.loads(line))


def phone(tokens_per_second: float) -> FakePhone:
    return FakePhone(PhoneSettings(tokens_per_second=tokens_per_second, prompt_tokens_per_second=5_000))


async def test_sigterm_lets_streams_end_and_takes_nothing_new(tmp_path: Path):
    lines: list[dict[str, Any]] = []
    async with phone(2) as slow, program(tmp_path, slow) as made, httpx.AsyncClient(timeout=60) as http:
        await started(made)
        asking = asyncio.create_task(told_by(http, made, lines, num_predict=20))
        await until(lambda: lines)
        made.send(signal.SIGTERM)
        await made.read_until("stopping")
        await made.read_until("Waiting for connections")
        try:
            refused = await http.post(f"{made.address}/ask", json={"prompt": "hi"})
            assert refused.status_code == 503
        except httpx.TransportError:
            pass  # nobody listens any more
        slow.settings.tokens_per_second = 1000  # all that had to happen in mid-answer has happened
        await asking
        await made.end()
    assert lines[-1]["done"] is True
    assert lines[-1]["usage"]["completion_tokens"] == 20


async def test_sigterm_lets_a_whole_batch_end(tmp_path: Path):
    """Its later items begin while the gateway drains: they are running work too."""
    prompts = [f"question {index}" for index in range(14)]
    async with phone(300) as one, program(tmp_path, one) as made, httpx.AsyncClient(timeout=60) as http:
        await started(made)
        body = {"prompts": prompts, "num_predict": 30, "stream": True}
        results: list[dict[str, Any]] = []
        async with http.stream("POST", f"{made.address}/ask_batch", json=body, timeout=60) as answer:
            async for line in answer.aiter_lines():
                results.append(json.loads(line))
                if len(results) == 1:
                    made.send(signal.SIGTERM)
                    await made.read_until("stopping")
        await made.end()
    assert results.pop() == {"done": True}
    assert [result.get("error") for result in results] == [None] * 14


async def test_after_its_time_a_stream_ends_with_an_honest_event(tmp_path: Path):
    lines: list[dict[str, Any]] = []
    async with phone(20) as slow, program(tmp_path, slow, POTLUCK_DRAIN_S="0.3") as made:
        async with httpx.AsyncClient(timeout=60) as http:
            await started(made)
            asking = asyncio.create_task(told_by(http, made, lines))
            await until(lambda: lines)
            made.send(signal.SIGTERM)
            await asking
            await made.end()
        await slow.idle()
    assert lines[-1]["error"]["code"] == "draining"
    assert any("Application shutdown complete" in line for line in made.lines)


async def test_a_second_signal_ends_at_once_and_in_order(tmp_path: Path):
    for second in (signal.SIGTERM, signal.SIGINT):
        lines: list[dict[str, Any]] = []
        async with phone(20) as slow, program(tmp_path, slow) as made, httpx.AsyncClient(timeout=60) as http:
            await started(made)
            asking = asyncio.create_task(told_by(http, made, lines))
            await until(lambda lines=lines: lines)
            made.send(signal.SIGTERM)
            await made.read_until("stopping")
            made.send(second)
            await asking
            await made.end()
        assert lines[-1]["error"]["code"] == "draining"
        assert any("Application shutdown complete" in line for line in made.lines)
