"""POST /ask_batch: order, spread, errors in their place, and manners at a full queue."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from server.api.batch_run import LEAST_AT_ONCE, TRIES_AT_FULL_QUEUE
from server.errors import NoNodes, QueueFull
from server.exchange import AskRequest
from tests.server.api.gateway import Call, fleet, gateway, post, report, spec
from tests.server.api.scripted_dispatch import Script, ScriptedDispatch, done, failing, whole


def echo(request: AskRequest) -> Script:
    text = str(request.messages[-1]["content"])
    return failing(NoNodes("nobody")) if text == "fail" else whole(text.upper())


async def results(body: dict[str, Any], dispatch: ScriptedDispatch | None = None) -> list[Any]:
    answer = await post(gateway(dispatch or ScriptedDispatch(echo)).app, "/ask_batch", body)
    assert answer.status == 200, answer.body
    told: list[Any] = answer.json()["results"]
    return told


async def test_results_stand_in_the_order_of_the_prompts():
    told = await results({"prompts": ["a", "fail", "c", "", 5], "temperature": 0})
    assert [result.get("response") for result in told] == ["A", None, "C", None, None]
    assert told[1]["error"]["code"] == "no_nodes"
    assert [told[index]["error"]["field"] for index in (3, 4)] == ["prompt", "prompt"]


async def test_requests_have_fields_of_their_own_over_shared_ones():
    dispatch = ScriptedDispatch(echo)
    body = {"requests": [{"prompt": "a"}, {"prompt": "b", "seed": 2, "model": "m"}, {"prompts": "c"}, 7], "seed": 1}
    told = await results(body, dispatch)
    assert [request.options["seed"] for request in dispatch.asked] == [1, 2]
    assert [request.model for request in dispatch.asked] == [None, "m"]
    assert told[2]["error"]["field"] == "prompts"
    assert "an object" in told[3]["error"]["message"]


@pytest.mark.parametrize(
    ("shared", "own", "meant"),
    [
        ({"options": {"temperature": 1}}, {"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1}, {"options": {"temperature": 0}}, {"temperature": 0}),
        ({"options": {"temperature": 0, "seed": 1, "num_predict": 3}}, {"options": {"top_k": 3, "seed": 2}},
         {"temperature": 0, "seed": 2, "num_predict": 3, "top_k": 3}),
        ({"num_predict": 3}, {"max_tokens": 4}, {"num_predict": 4}),
        ({"max_tokens": 3, "options": {"seed": 1}}, {}, {"num_predict": 3, "seed": 1}),
    ],
)  # fmt: skip
async def test_options_go_one_by_one_and_an_items_own_wins(
    shared: dict[str, Any], own: dict[str, Any], meant: dict[str, Any]
):
    dispatch = ScriptedDispatch(echo)
    (told,) = await results({"requests": [{"prompt": "x", **own}], **shared}, dispatch)
    assert told["response"] == "X"
    assert dispatch.asked[0].options == meant


async def test_contradictions_within_one_place_are_mistakes():
    body = {"prompts": ["x"], "temperature": 0, "options": {"temperature": 1}}
    assert (await post(gateway().app, "/ask_batch", body)).status == 422
    item = {"prompt": "x", "max_tokens": 1, "num_predict": 2}
    assert (await results({"requests": [item]}))[0]["error"]["field"] == "max_tokens"


async def test_each_result_says_for_itself_whether_it_was_cached():
    def script(request: AskRequest) -> Script:
        return whole("x", done=done(cache="hit" if request.messages[-1]["content"] == "a" else "miss"))

    answer = await post(gateway(ScriptedDispatch(script)).app, "/ask_batch", {"prompts": ["a", "b"]})
    assert [result["cached"] for result in answer.json()["results"]] == [True, False]
    assert "x-cache" not in answer.headers


async def test_every_request_has_an_id_of_its_own():
    dispatch = ScriptedDispatch(echo)
    await results({"prompts": ["a", "b"]}, dispatch)
    assert len({request.id for request in dispatch.asked}) == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompts"),
        ({"prompts": []}, "prompts"),
        ({"prompts": "a"}, "prompts"),
        ({"prompts": ["a"], "requests": [{"prompt": "b"}]}, "prompts"),
        ({"requests": {}}, "requests"),
        ({"prompts": ["a"], "temperature": "hot"}, "temperature"),
        ({"prompts": ["a"], "prompt": "b"}, "prompt"),
        ({"prompts": ["a"] * 6}, "prompts"),
        ({"requests": [{"prompt": "a"}] * 6}, "requests"),
    ],
)
async def test_mistakes_of_the_whole_are_422(body: dict[str, Any], field: str):
    answer = await post(gateway(batch_limit=5).app, "/ask_batch", body)
    assert (answer.status, answer.json()["error"]["field"]) == (422, field)


async def test_a_stream_tells_results_as_they_finish():
    first = asyncio.Event()

    def script(request: AskRequest) -> Script:
        text = str(request.messages[-1]["content"])
        return [first, *whole("late")] if text == "a" else whole("early")

    made = gateway(ScriptedDispatch(script))
    call = Call("POST", "/ask_batch", {"prompts": ["a", "b"], "stream": True})
    running = asyncio.create_task(call.run(made.app))
    await call.told.wait()
    first.set()
    answer = await running
    assert [(line.get("index"), line.get("response")) for line in answer.lines()] == [
        (1, "early"),
        (0, "late"),
        (None, None),
    ]
    assert answer.lines()[-1] == {"done": True}


async def test_a_stream_as_server_sent_events():
    body = {"prompts": ["a"], "stream": True}
    answer = await post(gateway().app, "/ask_batch", body, headers={"Accept": "text/event-stream"})
    assert answer.events()[-1] == {"done": True}


async def test_the_whole_fleet_is_kept_busy_and_no_more():
    nodes = [(spec(f"phone{index}"), report()) for index in range(20)]
    dispatch = ScriptedDispatch(echo)
    made = gateway(dispatch, fleet(*nodes))
    await post(made.app, "/ask_batch", {"prompts": [str(index) for index in range(200)]})
    assert dispatch.most_running == 40
    small = ScriptedDispatch(echo)
    await post(gateway(small).app, "/ask_batch", {"prompts": ["x"] * 200})
    assert small.most_running == LEAST_AT_ONCE


async def test_a_full_queue_is_come_back_to():
    refusals: Counter[str] = Counter()

    def script(request: AskRequest) -> Script:
        text = str(request.messages[-1]["content"])
        refusals[text] += 1
        return failing(QueueFull("full", 0.001)) if refusals[text] == 1 else whole(text)

    told = await results({"prompts": [str(index) for index in range(20)]}, ScriptedDispatch(script))
    assert [result.get("response") for result in told] == [str(index) for index in range(20)]


async def test_a_queue_that_stays_full_becomes_an_error_in_the_end():
    dispatch = ScriptedDispatch(failing(QueueFull("full", 0.001)))
    told = await results({"prompts": ["a"]}, dispatch)
    assert told[0]["error"]["code"] == "queue_full"
    assert len(dispatch.asked) == TRIES_AT_FULL_QUEUE


async def test_a_fault_of_ours_costs_one_item_only():
    def script(request: AskRequest) -> Script:
        return [RuntimeError("x")] if request.messages[-1]["content"] == "b" else whole("fine")

    made = gateway(ScriptedDispatch(script))
    told = (await post(made.app, "/ask_batch", {"prompts": ["a", "b", "c"]})).json()["results"]
    assert [("error" in result) for result in told] == [False, True, False]
    assert told[1]["error"]["code"] == "internal"
    assert len(made.noted.faults) == 1
