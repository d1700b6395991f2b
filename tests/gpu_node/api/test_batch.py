"""Batches: order, shared fields, errors of their own, and no more at once than there are slots."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpu_node.engine.sequence import ChatPrompt, RawPrompt
from tests.gpu_node.scripted import Script
from tests.gpu_node.serving import NAME, SLOTS, serving

PATH = "/v1/batch/completions"


async def test_prompts_are_answered_in_order_with_the_shared_fields() -> None:
    async with serving() as served:
        reply = await served.post(PATH, prompts=[f"p{n}" for n in range(9)], temperature=0, max_tokens=2)
    body = reply.json()
    assert [result["choices"][0]["text"] for result in body["results"]] == ["one two "] * 9
    assert [result["usage"]["prompt_tokens"] for result in body["results"]] == [2] * 9
    assert body["usage"] == {"prompt_tokens": 18, "completion_tokens": 18, "total_tokens": 36}
    assert {request.sampling.temperature for request in served.script.requests} == {0}
    assert served.script.most == SLOTS


async def test_requests_of_both_kinds_each_with_its_own_error() -> None:
    requests: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "q"}]},
        {"prompt": "p", "max_tokens": 1},
        {"prompt": "p", "temperature": "hot"},
        {"model": "nothing", "prompt": "p"},
        {"prompt": "x" * 5000},
        {"prompt": "p", "stream": True},
    ]
    async with serving() as served:
        reply = await served.post(PATH, requests=requests, max_tokens=3)
    results = reply.json()["results"]
    assert reply.status_code == 200
    assert results[0]["choices"][0]["message"]["content"] == "one two three"
    assert results[1]["choices"][0]["text"] == "one ", "its own field wins"
    assert [result["error"]["param"] for result in results[2:]] == ["temperature", "model", None, "stream"]
    kinds = {type(request.prompt) for request in served.script.requests}
    assert kinds == {ChatPrompt, RawPrompt}


async def test_a_streamed_batch_tells_each_result_with_its_place() -> None:
    async with serving() as served:
        reply = await served.post(PATH, prompts=["a", "b", "x" * 5000], stream=True)
    *lines, last = [json.loads(line) for line in reply.text.splitlines()]
    assert sorted(line["index"] for line in lines) == [0, 1, 2]
    assert [("error" in line) for line in sorted(lines, key=lambda line: line["index"])] == [False, False, True]
    assert last == {"done": True, "usage": {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompts"),
        ({"prompts": []}, "prompts"),
        ({"prompts": "x"}, "prompts"),
        ({"prompts": ["x"], "requests": [{}]}, "prompts"),
        ({"requests": ["x"]}, "requests.0"),
        ({"prompts": ["x"], "stream": "yes"}, "stream"),
        ({"prompts": ["x"] * 10_001}, "prompts"),
    ],
)
async def test_what_is_no_batch_is_refused_whole(body: dict[str, Any], field: str) -> None:
    async with serving() as served:
        reply = await served.post(PATH, **body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, field)


async def test_a_failure_of_the_model_is_each_items_own() -> None:
    script = Script()
    script.fail_at = 0
    async with serving(script) as served:
        results = (await served.post(PATH, prompts=["a", "b"])).json()["results"]
    assert [result["error"]["type"] for result in results] == ["server_error"] * 2


async def test_the_model_may_stand_in_each_request() -> None:
    async with serving() as served:
        reply = await served.client.post(PATH, json={"requests": [{"model": NAME, "prompt": "p"}, {"prompt": "p"}]})
    first, second = reply.json()["results"]
    assert "choices" in first
    assert second["error"]["param"] == "model"
