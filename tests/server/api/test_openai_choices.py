"""Several choices of one OpenAI call: merged by index, ended together, held back by a slow client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.api.openai_choices import BATCHES_AHEAD
from server.errors import NoNodes
from server.exchange import AskRequest, NodeShare, Started, Token, Usage
from tests.server.api.gateway import Call, gateway, post, until
from tests.server.api.scripted_dispatch import DONE, Script, ScriptedDispatch, done, failing, whole
from tests.server.api.test_openai_chat import HI, PATH


def numbered(request: AskRequest) -> Script:
    return whole(
        f"answer {request.options.get('seed')}", done=done(usage=Usage(12, 4), nodes=(NodeShare("a", 4, "first"),))
    )


async def test_n_choices_are_n_requests_with_seeds_of_their_own():
    made = gateway(ScriptedDispatch(numbered))
    told = (await post(made.app, PATH, {"model": "m", "messages": HI, "n": 3, "seed": 7})).json()
    assert [choice["message"]["content"] for choice in told["choices"]] == ["answer 7", "answer 8", "answer 9"]
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2]
    assert told["usage"] == {"prompt_tokens": 12, "completion_tokens": 12, "total_tokens": 24}
    assert len({request.id for request in made.answer().asked}) == 3


async def test_choices_share_no_answer_unless_it_is_sure_to_repeat():
    made = gateway(ScriptedDispatch(numbered))
    await post(made.app, PATH, {"model": "m", "messages": HI, "n": 2})
    await post(made.app, PATH, {"model": "m", "messages": HI, "n": 2, "temperature": 0})
    assert [request.cacheable for request in made.answer().asked] == [False, False, True, True]


async def test_streamed_choices_are_told_under_their_index():
    made = gateway(ScriptedDispatch(numbered))
    body = {
        "model": "m",
        "messages": HI,
        "n": 2,
        "seed": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = await post(made.app, PATH, body)
    *chunks, usage, mark = answer.events()
    assert mark == "[DONE]"
    assert usage["usage"]["completion_tokens"] == 8
    texts = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: "answer 1", 1: "answer 2"}
    assert sum(chunk["choices"][0]["finish_reason"] == "stop" for chunk in chunks) == 2
    assert answer.headers["x-cache"] == "miss"


@pytest.mark.parametrize("stream", [True, False])
async def test_one_choice_that_fails_ends_them_all(stream: bool):
    hold = asyncio.Event()

    def script(request: AskRequest) -> Script:
        return [hold] if request.id.endswith(".0") else failing(NoNodes("gone"))

    made = gateway(ScriptedDispatch(script))
    answer = await post(made.app, PATH, {"model": "m", "messages": HI, "n": 2, "stream": stream})
    assert answer.status == 503
    assert made.answer().running == 0


async def test_a_client_that_leaves_cancels_all_choices():
    made = gateway(ScriptedDispatch([[Started("miss")], [Token("a")], asyncio.Event()]))
    for stream in (True, False):
        call = Call("POST", PATH, {"model": "m", "messages": HI, "n": 3, "stream": stream})
        running = asyncio.create_task(call.run(made.app))
        await until(lambda: made.answer().running == 3)
        call.gone.set()
        await running
        assert made.answer().running == 0


async def test_a_slow_client_holds_the_choices_back():
    """What is read ahead of a client is bounded: nodes wait with it."""
    told = [[Started("miss")], *[[Token("a")] for _ in range(5 * BATCHES_AHEAD)], [DONE]]
    made = gateway(ScriptedDispatch(told))
    call = Call("POST", PATH, {"model": "m", "messages": HI, "n": 2, "stream": True})
    go_on = asyncio.Event()
    send = call.send

    async def slow(message: Any) -> None:
        await send(message)
        if message.get("body"):
            await go_on.wait()

    call.send = slow  # type: ignore[method-assign]
    running = asyncio.create_task(call.run(made.app))
    for _ in range(4 * BATCHES_AHEAD):
        await asyncio.sleep(0)
    assert made.answer().finished == 0
    go_on.set()
    await running
    assert made.answer().finished == 2
