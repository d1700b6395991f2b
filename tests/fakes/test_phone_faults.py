"""Every way in which a fake phone can fail, as it looks on the wire, and when it strikes."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from tests.fakes.phone import FakeModel, FakePhone, Fault, FaultRule, PhoneSettings, expected_answer
from tests.fakes.phone_faults import BUSY, KINDS, PROBES, RUNNER_DIED, FaultPlan, paths_named
from tests.fakes.phone_wire import WireAnswer, ask

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
CHAT: dict[str, Any] = {"model": "smollm2:135m", "messages": MESSAGES, "options": {"temperature": 0}}
PIECES = expected_answer(MESSAGES).pieces
# Long enough for an answer to come if one were to come, short enough for a test.
SOON = 0.05


async def chat(phone: FakePhone, *, stream: bool = True, path: str = "/api/chat") -> WireAnswer:
    return await ask(phone.port, "POST", path, {**CHAT, "stream": stream})


def told(answer: WireAnswer) -> list[str]:
    return [line["message"]["content"] for line in answer.lines if "message" in line and not line["done"]]


async def hangs(phone: FakePhone, method: str, path: str, body: Any = None, *, expect: bytes = b"") -> bytes:
    """What has come when, after what is expected, nothing more comes; the client leaves then."""
    struck = phone.counters.faults.total()
    reader, writer = await asyncio.open_connection("127.0.0.1", phone.port)
    try:
        data = orjson.dumps(body) if body else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        received = await reader.readuntil(expect) if expect else b""
        if phone.state.thawed.is_set():
            await phone.until(lambda counters: counters.faults.total() > struck)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON):
                while True:
                    part = await reader.read(65_536)
                    assert part, "the connection was closed"
                    received += part
        return received
    finally:
        writer.close()
        await writer.wait_closed()


async def test_refuse_and_reset_before_the_headers() -> None:
    async with FakePhone() as phone:
        for fault in (Fault.refuse(), Fault.reset()):
            phone.fail(fault, times=1)
            answer = await chat(phone)
            assert (answer.ended, answer.raw) == ("reset", b"")
        assert (await chat(phone)).last_chunk_seen


async def test_a_stopped_listener_refuses_and_comes_back_on_its_port() -> None:
    async with FakePhone() as phone:
        port = phone.port
        await phone.stop_listening()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await phone.start_listening()
        assert phone.port == port
        assert (await ask(port)).body == b"Ollama is running"


async def test_reset_inside_the_headers() -> None:
    async with FakePhone() as phone:
        phone.fail(Fault.reset_in_headers(), times=1)
        answer = await chat(phone)
        assert answer.ended == "reset"
        assert answer.raw.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\n\r\n" not in answer.raw


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        (Fault.error(), 500, RUNNER_DIED),
        (Fault.error(502, "bad gateway"), 502, "bad gateway"),
        (Fault.busy(), 503, BUSY),
        (Fault.too_many_requests("3"), 429, "too many requests"),
    ],
)
async def test_error_statuses(fault: Fault, status: int, message: str) -> None:
    async with FakePhone() as phone:
        phone.fail(fault, times=1)
        answer = await chat(phone)
        assert (answer.status, answer.json) == (status, {"error": message})
        assert answer.headers.get("Retry-After", "") == fault.retry_after
        phone.fail(fault, times=1, paths="v1")
        answer = await chat(phone, path="/v1/chat/completions")
        assert answer.json["error"]["message"] == message


@pytest.mark.parametrize("stream", [True, False])
async def test_hang_before_and_after_the_headers(stream: bool) -> None:
    async with FakePhone() as phone:
        phone.fail(Fault.hang(), times=1)
        assert await hangs(phone, "POST", "/api/chat", {**CHAT, "stream": stream}) == b""
        phone.fail(Fault.hang_after_headers(), times=1)
        received = await hangs(phone, "POST", "/api/chat", {**CHAT, "stream": stream}, expect=b"\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
        assert received.endswith(b"\r\n\r\n")
        await phone.idle()
        assert phone.counters.cancelled == 2
        assert phone.counters.generating == phone.counters.in_flight == 0


async def test_hang_after_k_tokens() -> None:
    async with FakePhone() as phone:
        phone.fail(Fault.hang(after_tokens=4))
        received = await hangs(phone, "POST", "/api/chat", CHAT, expect=PIECES[3].encode())
        assert received.count(b'"done":false') == 4
        assert b'"done":true' not in received


async def test_hang_in_the_render_call_and_on_probes() -> None:
    async with FakePhone() as phone:
        phone.fail(Fault.hang(), paths="render")
        phone.fail(Fault.hang(), paths="probes")
        assert await hangs(phone, "POST", "/api/chat", {**CHAT, "_debug_render_only": True}) == b""
        for path in ("/", "/api/version", "/api/tags", "/api/ps"):
            assert await hangs(phone, "GET", path) == b""
        assert (await chat(phone)).last_chunk_seen
        phone.settings.version = "0.6.8"  # which knows no rendering and answers
        answer = await ask(phone.port, "POST", "/api/chat", {**CHAT, "_debug_render_only": True})
        assert told(answer) == list(PIECES)


@pytest.mark.parametrize("tokens", [0, 1, 7])
async def test_cut_and_reset_after_k_tokens(tokens: int) -> None:
    async with FakePhone() as phone:
        for fault, ended in ((Fault.cut(tokens), "closed"), (Fault.reset(after_tokens=tokens), "reset")):
            phone.fail(fault, times=1)
            answer = await chat(phone)
            assert answer.ended == ended
            assert answer.status == 200
            assert answer.last_chunk_seen is False
            assert told(answer) == list(PIECES[:tokens])
        assert phone.counters.generating == 0


async def test_a_whole_answer_can_be_cut_and_reset_too() -> None:
    async with FakePhone() as phone:
        whole = (await chat(phone, stream=False)).body
        for fault, ended in ((Fault.cut(3), "closed"), (Fault.reset(after_tokens=3), "reset")):
            phone.fail(fault, times=1)
            answer = await chat(phone, stream=False)
            assert answer.ended == ended
            assert 0 < len(answer.body) < len(whole) - 20
            assert int(answer.headers["Content-Length"]) > len(answer.body)


async def test_an_error_line_ends_a_stream_well_and_the_runner_is_gone() -> None:
    async with FakePhone() as phone:
        phone.fail(Fault.error_line(3), times=1)
        answer = await chat(phone)
        assert answer.last_chunk_seen
        assert told(answer) == list(PIECES[:3])
        assert answer.lines[-1] == {"error": RUNNER_DIED}
        assert phone.resident() == []
        phone.fail(Fault.error_line(3), times=1)
        answer = await chat(phone, stream=False)
        assert (answer.status, answer.json) == (500, {"error": RUNNER_DIED})
        assert (await chat(phone)).lines[-1]["done"]


async def test_malformed_and_half_lines() -> None:
    async with FakePhone() as phone:
        phone.fail(Fault.malformed_line(2), times=1)
        lines = (await chat(phone)).body.splitlines()
        assert len(lines) == len(PIECES) + 2
        assert b"not json" in lines[2]
        phone.fail(Fault.half_line(2), times=1)
        answer = await chat(phone)
        assert answer.last_chunk_seen is False
        assert len(answer.chunks) == 3
        assert not answer.chunks[2].endswith(b"\n")
        phone.fail(Fault.malformed_line(0), times=1)
        answer = await chat(phone, stream=False)
        assert answer.status == 200
        with pytest.raises(ValueError, match="end of data"):
            orjson.loads(answer.body)


async def test_garbage_instead_of_http() -> None:
    async with FakePhone() as phone:
        phone.fail(Fault.garbage(), times=1)
        answer = await chat(phone)
        assert answer.status_line == ""
        assert b"\xff" in answer.raw
        phone.fail(Fault.garbage(after_tokens=2), times=1)
        answer = await chat(phone)
        assert answer.last_chunk_seen is False
        assert told(answer) == list(PIECES[:2])


async def test_a_trickle_is_whole_but_comes_byte_by_byte() -> None:
    async with FakePhone(PhoneSettings(answer_tokens=(2, 2))) as phone:
        phone.fail(Fault.trickle(), times=1)
        reader, writer = await asyncio.open_connection("127.0.0.1", phone.port)
        writer.write(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        reads = 0
        received = b""
        while part := await reader.read(65_536):
            reads += 1
            received += part
        writer.close()
        await writer.wait_closed()
        assert received.endswith(b'{"version":"0.24.0"}')
        assert reads > 20
        phone.fail(Fault.trickle(), times=1)
        answer = await chat(phone)
        assert answer.last_chunk_seen
        assert len(told(answer)) == 2


async def test_a_frozen_phone_goes_on_where_it_stood() -> None:
    async with FakePhone() as phone:
        phone.fail(Fault.freeze(60.0, after_tokens=5), times=1)
        first = asyncio.create_task(chat(phone))
        await phone.until(lambda counters: counters.tokens_sent >= 5)
        other = asyncio.create_task(ask(phone.port, "GET", "/api/version"))
        done, _ = await asyncio.wait({first, other}, timeout=0.01)
        assert not done, "nothing answers while it is frozen"
        phone.thaw()
        assert told(await first) == list(PIECES)
        assert (await other).status == 200


async def test_freeze_and_thaw_by_hand() -> None:
    async with FakePhone() as phone:
        phone.freeze()
        assert await hangs(phone, "GET", "/api/version") == b""
        phone.thaw()
        assert (await ask(phone.port, "GET", "/api/version")).status == 200


async def test_another_model_answers() -> None:
    async with FakePhone() as phone:
        phone.fail(Fault.wrong_model("evil:1b"), times=1)
        assert {line["model"] for line in (await chat(phone)).lines} == {"evil:1b"}
        assert {line["model"] for line in (await chat(phone)).lines} == {"smollm2:135m"}


async def test_flapping_by_requests() -> None:
    async with FakePhone() as phone:
        phone.fail(Fault.flap(up=2, down=1), paths="version")
        ends = [(await ask(phone.port, "GET", "/api/version")).ended for _ in range(6)]
        assert ends == ["closed", "closed", "reset"] * 2
        assert (await chat(phone)).last_chunk_seen


def test_flapping_by_seconds() -> None:
    plan = FaultPlan()
    plan.add(FaultRule(Fault.flap(up=10, down=5, unit="seconds"), began=100.0))
    assert [plan.at_accept(now) for now in (100.0, 109.9, 110.0, 114.9, 115.0)] == [False, False, True, True, False]
    assert [plan.for_request("chat", now) is not None for now in (100.0, 111.0)] == [False, True]


def test_times_skip_paths_and_order() -> None:
    plan = FaultPlan()
    plan.add(FaultRule(Fault.busy(), times=2, paths=("chat",), skip=1))
    plan.add(FaultRule(Fault.hang(), times=1, paths=("chat", "tags")))
    struck = [plan.for_request(path, 0.0) for path in ("version", "chat", "chat", "tags", "chat", "chat")]
    assert [fault.kind if fault else None for fault in struck] == [None, "hang", "status", None, "status", None]


def test_a_probability_is_repeatable_by_its_seed() -> None:
    def strikes(seed: int) -> list[bool]:
        plan = FaultPlan(seed)
        plan.add(FaultRule(Fault.busy(), probability=0.3))
        return [plan.for_request("chat", 0.0) is not None for _ in range(200)]

    assert strikes(1) == strikes(1) != strikes(2)
    assert 30 < sum(strikes(1)) < 90


def test_healing_ends_one_rule_or_all() -> None:
    plan = FaultPlan()
    first = plan.add(FaultRule(Fault.busy()))
    plan.add(FaultRule(Fault.hang()))
    plan.remove(first)
    assert [rule.fault.kind for rule in plan.rules] == ["hang"]
    plan.clear()
    assert plan.for_request("chat", 0.0) is None


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="chatt"):
        FaultPlan().add(FaultRule(Fault.busy(), paths=("chatt",)))
    with pytest.raises(ValueError, match="cutt"):
        Fault.from_json({"kind": "cutt"})
    with pytest.raises(TypeError):
        Fault.from_json({"kind": "cut", "tokens": 3})
    assert paths_named("probes") == PROBES
    assert paths_named(["probes", "chat"]) == (*PROBES, "chat")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/v1/chat/completions", "/api/tags", "/api/embed"])
async def test_every_fault_on_every_path_leaves_a_working_phone(kind: Any, path: str) -> None:
    """Whatever struck, the slot is free and the next request is answered."""
    small = PhoneSettings(models=(FakeModel(embedding_length=8),), answer_tokens=(4, 4))
    async with FakePhone(small) as phone:
        after = None if kind in ("refuse", "status", "reset_in_headers", "trickle", "wrong_model") else 1
        pause = 0.001 if kind == "freeze" else 0.0
        phone.fail(Fault(kind, after_tokens=after, seconds=pause, up=0), times=1)
        body = {**CHAT, "prompt": "hi", "input": "hi", "stream": True} if path != "/api/tags" else None
        method = "GET" if path == "/api/tags" else "POST"
        asked = asyncio.create_task(ask(phone.port, method, path, body))
        if kind.startswith("hang"):
            await phone.until(lambda counters: counters.faults[kind] == 1)
            await asyncio.wait({asked}, timeout=SOON)
            assert asked.cancel(), "it hangs, until its client leaves"
        await asyncio.wait({asked})
        await phone.idle()
        answer = await ask(phone.port, method, path, body)
        assert answer.status == 200
        assert answer.last_chunk_seen is not False
        assert (phone.counters.generating, phone.counters.in_flight) == (0, 0)
