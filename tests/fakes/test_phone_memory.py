"""Slots, the queue for loads, models in memory, and the conversations that a phone holds."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.fakes.phone import FakeModel, FakePhone, PhoneSettings
from tests.fakes.phone_faults import BUSY
from tests.fakes.phone_wire import WireAnswer, ask

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
CHAT: dict[str, Any] = {"model": "smollm2:135m", "messages": MESSAGES, "options": {"temperature": 0}}


async def chat(phone: FakePhone, **changes: Any) -> WireAnswer:
    return await ask(phone.port, "POST", "/api/chat", {**CHAT, "stream": False, **changes})


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


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
        assert durations[0] >= 18_000_000 > durations[1]
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
