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

from tests.fakes.phone import FakeModel, FakePhone, Fault, PhoneSettings, expected_answer, fake_fleet, verify_answer
from tests.fakes.phone_faults import BUSY
from tests.fakes.phone_wire import WireAnswer, ask

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
CHAT: dict[str, Any] = {"model": "smollm2:135m", "messages": MESSAGES, "options": {"temperature": 0}}
ROOT = Path(__file__).parent.parent.parent


async def chat(phone: FakePhone, **changes: Any) -> WireAnswer:
    return await ask(phone.port, "POST", "/api/chat", {**CHAT, "stream": False, **changes})


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


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
            while await reader.read(4096):
                pass
            writer.close()
            await writer.wait_closed()
            return began, loop.time()

        started = loop.time()
        spans = await asyncio.gather(*[first_and_last_byte() for _ in range(3)])
        assert spans[0][0] - started >= 0.03
        assert phone.counters.max_generating == 1
        ordered = sorted(spans)
        assert all(later[0] >= earlier[1] for earlier, later in itertools.pairwise(ordered))


async def test_slots_are_as_many_as_set_and_change_at_run_time() -> None:
    async with FakePhone(PhoneSettings(tokens_per_second=1000, num_parallel=3)) as phone:
        answers = await asyncio.gather(*[chat(phone) for _ in range(7)])
        assert {answer.status for answer in answers} == {200}
        assert phone.counters.max_generating == 3
        assert phone.counters.max_in_flight == 7
        phone.settings.num_parallel = 1
        phone.counters.max_generating = 0
        await asyncio.gather(*[chat(phone) for _ in range(3)])
        assert phone.counters.max_generating == 1


async def test_a_full_queue_refuses_at_once() -> None:
    """Only while another model must be loaded: two are served, the rest gets 503, as recorded."""
    models = (FakeModel(), FakeModel("other:1b"))
    settings = PhoneSettings(models=models, max_queue=1, tokens_per_second=500, answer_tokens=(20, 20))
    async with FakePhone(settings) as phone:
        running = asyncio.create_task(chat(phone))
        await phone.until(lambda counters: counters.generating == 1)
        answers = await asyncio.gather(*[chat(phone, model="other:1b") for _ in range(5)])
        assert sorted(answer.status for answer in answers) == [200, 200, 503, 503, 503]
        refused = next(answer for answer in answers if answer.status == 503)
        assert refused.json == {"error": BUSY}
        assert "Retry-After" not in refused.headers
        assert (await running).status == 200
        assert phone.counters.loads == 2


async def test_requests_for_the_loaded_model_wait_without_limit() -> None:
    async with FakePhone(PhoneSettings(max_queue=0)) as phone:
        assert (await chat(phone)).status == 200
        answers = await asyncio.gather(*[chat(phone) for _ in range(20)])
        assert {answer.status for answer in answers} == {200}


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
        assert phone.counters.tokens_sent < 100


async def test_who_leaves_the_queue_leaves_no_trace() -> None:
    async with FakePhone(PhoneSettings(tokens_per_second=200, answer_tokens=(10, 10))) as phone:
        first = asyncio.create_task(chat(phone))
        await phone.until(lambda counters: counters.generating == 1)
        second = asyncio.create_task(chat(phone))
        await phone.until(lambda counters: counters.waiting == 1)
        second.cancel()
        assert (await chat(phone)).status == 200
        assert (await first).status == 200
        assert (phone.counters.answers, phone.counters.cancelled) == (2, 1)


async def test_a_held_conversation_is_read_much_faster() -> None:
    """The second turn reads only what is new; after another conversation, a phone that holds one reads all of it."""
    settings = PhoneSettings(prompt_tokens_per_second=20_000, prompt_cache=1)
    long = user("once upon a time " * 200)

    def seconds(answer: dict[str, Any]) -> float:
        return answer["prompt_eval_duration"] / 1e9

    async with FakePhone(settings) as phone:
        first = (await chat(phone, messages=long)).json
        assert seconds(first) >= first["prompt_eval_count"] / 20_000
        turn = [*long, first["message"], *user("and then?")]
        read = phone.counters.tokens_read
        second = (await chat(phone, messages=turn)).json
        assert phone.counters.tokens_read - read < 20
        assert second["prompt_eval_count"] > first["prompt_eval_count"], "all tokens are counted, held or not"
        await chat(phone, messages=user("something else"))
        again = (await chat(phone, messages=turn)).json
        assert seconds(again) >= 0.9 * again["prompt_eval_count"] / 20_000
        assert second["prompt_eval_count"] >= first["prompt_eval_count"] + first["eval_count"] - 1


async def test_a_larger_cache_holds_several_conversations() -> None:
    settings = PhoneSettings(prompt_cache=3)
    long = [user(f"{name} " * 300) for name in ("one", "two", "three", "four")]

    async def unread(messages: list[dict[str, str]]) -> int:
        before = phone.counters.tokens_read
        await chat(phone, messages=messages)
        return phone.counters.tokens_read - before

    async with FakePhone(settings) as phone:
        for messages in long[:3]:
            assert await unread(messages) > 300
        for messages in long[:3]:
            assert await unread(messages) < 20
        assert await unread(long[3]) > 300
        assert await unread(long[1]) < 20
        assert await unread(long[0]) > 300, "the oldest one has made room"
        settings.prompt_cache = 0
        assert await unread(long[0]) > 300


async def test_another_num_ctx_reloads_and_forgets() -> None:
    async with FakePhone() as phone:
        long = user("again " * 300)
        await chat(phone, messages=long)
        before = phone.counters.tokens_read
        answer = (await chat(phone, messages=long, options={"temperature": 0, "num_ctx": 2048})).json
        assert phone.counters.tokens_read - before == answer["prompt_eval_count"]
        assert phone.counters.loads == 2
        listed = (await ask(phone.port, "GET", "/api/ps")).json["models"]
        assert [model["context_length"] for model in listed] == [2048]


async def test_load_time_is_told_once() -> None:
    async with FakePhone(PhoneSettings(load_seconds=2.0, time_scale=0.01)) as phone:
        durations = [(await chat(phone)).json["load_duration"] for _ in range(2)]
        assert durations[0] >= 20_000_000 > durations[1]
        assert phone.counters.loads == 1


async def test_a_load_goes_on_when_its_client_leaves() -> None:
    async with FakePhone(PhoneSettings(load_seconds=0.03)) as phone:
        impatient = asyncio.create_task(chat(phone))
        await phone.until(lambda counters: counters.waiting == 1)
        impatient.cancel()
        await phone.idle()
        assert (await chat(phone)).status == 200
        assert phone.counters.loads == 1


async def test_ps_answers_while_a_model_loads() -> None:
    async with FakePhone(PhoneSettings(load_seconds=0.03)) as phone:
        loading = asyncio.create_task(chat(phone))
        await phone.until(lambda counters: counters.waiting == 1)
        assert (await ask(phone.port, "GET", "/api/ps")).json == {"models": []}
        await loading
        assert phone.resident() == ["smollm2:135m"]


async def test_keep_alive() -> None:
    async with FakePhone(PhoneSettings(version="0.33.0-rc2")) as phone:
        for keep_alive, stays in ((0, False), ("0s", False), ("10m0s", True), (-1, True), ("0.001s", False)):
            await chat(phone, keep_alive=keep_alive)
            await asyncio.sleep(0.002)
            assert bool(phone.resident()) == stays, keep_alive
        assert (await chat(phone, keep_alive="soon")).status == 400


async def test_two_models_take_turns_in_memory() -> None:
    models = (FakeModel("one:1b"), FakeModel("two:1b"))
    async with FakePhone(PhoneSettings(models=models)) as phone:
        for name in ("one:1b", "two:1b", "one:1b"):
            assert (await chat(phone, model=name)).json["model"] == name
            assert phone.resident() == [name]
        assert phone.counters.loads == 3
        phone.settings.max_loaded_models = 2
        await chat(phone, model="two:1b")
        assert sorted(phone.resident()) == ["one:1b", "two:1b"]


async def test_times_can_be_scaled() -> None:
    settings = PhoneSettings(
        tokens_per_second=10, prompt_tokens_per_second=100, time_scale=0.01, answer_tokens=(20, 20)
    )
    async with FakePhone(settings) as phone:
        answer = (await chat(phone)).json
        assert 0.02e9 <= answer["eval_duration"] < 1.9e9, "20 tokens at 10 a second, a hundred times faster"
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


async def test_control_is_off_unless_asked_for() -> None:
    async with FakePhone() as phone:
        assert (await ask(phone.port, "GET", "/_control")).status == 404
        assert (await ask(phone.port, "POST", "/_control", {"time_scale": 2})).status == 404


async def test_control_changes_settings_and_faults() -> None:
    async with FakePhone(PhoneSettings(control=True)) as phone:
        change = {
            "template": "open",
            "answer_tokens": [3, 3],
            "models": [{"name": "new:1b", "capabilities": ["completion", "tools"]}],
            "faults": [{"kind": "cut", "after_tokens": 1, "times": 1, "paths": ["answers"]}],
        }
        assert (await ask(phone.port, "POST", "/_control", change)).json == {"ok": True}
        assert (await chat(phone, model="new:1b", stream=True)).last_chunk_seen is False
        assert (await chat(phone, model="new:1b")).json["eval_count"] == 4
        seen = (await ask(phone.port, "GET", "/_control")).json
        assert seen["counters"]["requests"] == {"chat": 2}
        assert seen["counters"]["faults"] == {"cut": 1}
        assert seen["settings"]["template"] == "open"
        await ask(phone.port, "POST", "/_control", {"faults": [{"kind": "status"}], "forget": True})
        assert phone.resident() == []
        assert (await chat(phone, model="new:1b")).status == 500
        await ask(phone.port, "POST", "/_control", {"heal": True})
        assert (await chat(phone, model="new:1b")).status == 200


@pytest.mark.parametrize("change", [{"tempo": 1}, {"faults": [{"kind": "no"}]}, {"faults": [{"kind": "cut", "x": 1}]}])
async def test_control_refuses_what_it_does_not_know_and_changes_nothing(change: dict[str, Any]) -> None:
    async with FakePhone(PhoneSettings(control=True)) as phone:
        answer = await ask(phone.port, "POST", "/_control", {"template": "open", **change})
        assert answer.status == 400
        assert phone.settings.template == "closed"
        assert (await ask(phone.port, "POST", "/_control", b"{")).status == 400


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
