"""The fake phone as a phone: speed, slots, loading, conversations that are held, clients that leave, and its knobs."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.fakes.phone import FakePhone, Fault, PhoneSettings, expected_answer, fake_fleet, verify_answer
from tests.fakes.phone_wire import WireAnswer, ask

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
CHAT: dict[str, Any] = {"model": "smollm2:135m", "messages": MESSAGES, "options": {"temperature": 0}}
ROOT = Path(__file__).parent.parent.parent


async def chat(phone: FakePhone, **changes: Any) -> WireAnswer:
    return await ask(phone.port, "POST", "/api/chat", {**CHAT, "stream": False, **changes})


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions"])
async def test_what_is_told_is_what_is_expected(path: str) -> None:
    async with FakePhone() as phone:
        body = {**CHAT, "prompt": "hi", "temperature": 0}
        whole = (await ask(phone.port, "POST", path, {**body, "stream": False})).json
        streamed = await ask(phone.port, "POST", path, {**body, "stream": True})
        if path.startswith("/api"):
            text = whole["message"]["content"] if path == "/api/chat" else whole["response"]
            told = "".join(
                line["message"]["content"] if "chat" in path else line["response"] for line in streamed.lines
            )
        else:
            choice = whole["choices"][0]
            text = choice["message"]["content"] if "chat" in path else choice["text"]
            told = ""
        right = expected_answer(MESSAGES) if "chat" in path else expected_answer(prompt="hi")
        assert text == right.text
        assert streamed.last_chunk_seen
        assert told in ("", text)
        assert phone.counters.answers == 2
        assert phone.counters.tokens_sent == 2 * right.tokens


async def test_nothing_is_sent_before_the_first_token() -> None:
    """While a model loads, a prompt is read or another request has the slot, not a byte comes."""
    settings = PhoneSettings(tokens_per_second=200, prompt_tokens_per_second=1000, load_seconds=0.03)
    async with FakePhone(settings) as phone:
        body = {**CHAT, "options": {"temperature": 0, "num_predict": 8}}
        loop = asyncio.get_running_loop()

        async def first_and_last_byte() -> tuple[float, float]:
            reader, writer = await asyncio.open_connection("127.0.0.1", phone.port)
            data = orjson.dumps(body)
            writer.write(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
            first = await reader.read(4096)
            began = loop.time()
            assert first.startswith(b"HTTP/1.1 200 OK")
            assert b'"done":false' in first, "the headers come with the first token"
            ended = began
            while await reader.read(4096):
                ended = loop.time()
            writer.close()
            await writer.wait_closed()
            return began, ended

        started = loop.time()
        spans = await asyncio.gather(*[first_and_last_byte() for _ in range(3)])
        assert spans[0][0] - started >= 0.03
        assert phone.counters.max_generating == 1
        ordered = sorted(spans)
        assert all(later[0] >= earlier[1] for earlier, later in itertools.pairwise(ordered))


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_speaking(stream: bool) -> None:
    async with FakePhone(PhoneSettings(tokens_per_second=100, answer_tokens=(1000, 1000))) as phone:
        leaving = asyncio.create_task(chat(phone, stream=stream))
        await phone.until(lambda counters: counters.generating == 1)
        if stream:
            await phone.until(lambda counters: counters.tokens_sent > 1)
        waiting = asyncio.create_task(chat(phone, options={"temperature": 0, "num_predict": 1}))
        await phone.until(lambda counters: counters.waiting == 1)
        leaving.cancel()
        assert (await waiting).status == 200, "the slot is free at once"
        assert phone.counters.cancelled == 1
        assert phone.counters.tokens_sent < 1000


async def test_times_can_be_scaled() -> None:
    settings = PhoneSettings(tokens_per_second=1, prompt_tokens_per_second=100, time_scale=0.01, answer_tokens=(20, 20))
    async with FakePhone(settings) as phone:
        answer = (await chat(phone)).json
        assert 0.18e9 <= answer["eval_duration"] < 19e9, "20 tokens at one a second, a hundred times faster"
        assert answer["total_duration"] >= answer["eval_duration"] + answer["prompt_eval_duration"]


async def test_a_restart_cuts_and_forgets() -> None:
    async with FakePhone(PhoneSettings(tokens_per_second=100, answer_tokens=(1000, 1000))) as phone:
        running = asyncio.create_task(chat(phone, stream=True))
        await phone.until(lambda counters: counters.tokens_sent >= 2)
        port = phone.port
        await phone.restart()
        answer = await running
        assert (answer.ended, answer.last_chunk_seen) == ("closed", False)
        assert phone.resident() == []
        assert phone.port == port
        assert (await chat(phone, options={"num_predict": 1})).status == 200


async def test_context_comes_back() -> None:
    async with FakePhone() as phone:
        body = {"model": "smollm2:135m", "prompt": "hi", "stream": False, "options": {"temperature": 0}}
        first = (await ask(phone.port, "POST", "/api/generate", body)).json
        second = (await ask(phone.port, "POST", "/api/generate", {**body, "context": first["context"]})).json
        assert second["prompt_eval_count"] > first["prompt_eval_count"] + first["eval_count"]
        assert second["response"] != first["response"]
        kept = len(first["context"]) - 1  # the last token may join what follows it
        assert second["context"][:kept] == first["context"][:kept]


@pytest.mark.parametrize(("mode", "status"), [("on", 200), ("refused", 400), ("ignored", 200)])
async def test_raw_can_be_switched_off(mode: Any, status: int) -> None:
    async with FakePhone(PhoneSettings(raw=mode)) as phone:
        prompt = expected_answer(MESSAGES).rendered
        body = {"model": "smollm2:135m", "prompt": prompt, "raw": True, "stream": False, "options": {"temperature": 0}}
        answer = await ask(phone.port, "POST", "/api/generate", body)
        assert answer.status == status
        if status == 200:
            assert (answer.json["response"] == expected_answer(MESSAGES).text) == (mode == "on")


async def test_the_log_shows_what_reached_the_phone() -> None:
    async with FakePhone(PhoneSettings(log_size=2)) as phone:
        await ask(phone.port, "GET", "/api/tags", headers={"X-Trace": "7"})
        await chat(phone)
        await ask(phone.port, "GET", "/api/tags", headers={"X-Trace": "8"})
        assert [seen.name for seen in phone.log] == ["chat", "tags"]
        assert phone.log[0].json["messages"] == MESSAGES
        assert phone.log[1].headers["x-trace"] == "8"


async def test_render_answers_without_generating() -> None:
    async with FakePhone(PhoneSettings(template="open")) as phone:
        told = [*MESSAGES, {"role": "assistant", "content": "The <b>"}]
        answer = await chat(phone, messages=told, _debug_render_only=True)
        assert answer.json["_debug_info"]["rendered_template"].endswith("assistant\nThe <b>")
        assert b"\\u003cb\\u003e" in answer.body
        assert phone.counters.requests == {"render": 1}
        assert phone.counters.tokens_sent == phone.counters.answers == 0
        assert phone.resident() == ["smollm2:135m"], "rendering loads the model"


async def test_a_fleet_of_fifty_each_with_its_own_settings() -> None:
    async with fake_fleet(50, PhoneSettings(seed=10)) as phones:
        assert len({phone.port for phone in phones}) == 50
        phones[0].settings.template = "open"
        phones[3].fail(Fault.refuse())
        assert phones[1].settings.template == "closed"
        assert [phone.settings.seed for phone in phones[:3]] == [10, 11, 12]
        answers = await asyncio.gather(*[chat(phone, options={}) for phone in phones])
        assert [answer.status for answer in answers].count(200) == 49
        texts = {answer.json["message"]["content"] for answer in answers if answer.status == 200}
        assert len(texts) == 49, "unseeded answers differ from phone to phone"
        assert all(verify_answer(text, MESSAGES) for text in texts)


async def test_the_command_says_when_a_port_is_taken() -> None:
    async with FakePhone() as phone:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.fakes.phone", "--port", str(phone.port)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, error = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 1
        assert error.decode().startswith(f"cannot listen on 127.0.0.1, port {phone.port}")
        assert b"Traceback" not in error


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_serves_and_ends_cleanly(ending: signal.Signals, unused_tcp_port: int) -> None:
    arguments = ("-m", "tests.fakes.phone", "--port", str(unused_tcp_port), "--count", "1", "--demo", "--control")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, "--time-scale", "0.001", cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        assert line.decode() == f"1 fake phone(s) ready on 127.0.0.1, port {unused_tcp_port}\n"
        answer = await ask(unused_tcp_port, "POST", "/api/chat", {**CHAT, "stream": False})
        assert "Why is the sky blue?" in answer.json["message"]["content"]
        assert (await ask(unused_tcp_port, "GET", "/_control")).json["counters"]["answers"] == 1
    finally:
        process.send_signal(ending)
        code = await asyncio.wait_for(process.wait(), 30)
    assert code == 0
    assert await process.stdout.read() == b""
