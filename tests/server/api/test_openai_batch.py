"""POST /v1/batch/completions: chats and completions together, in order, each with its own fields and its own error."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.api.batch_run import LEAST_AT_ONCE, LOOK_SECONDS, TRIES_AT_FULL_QUEUE
from server.api.openai_batch import size_of
from server.errors import GatewayDraining, NoNodes, QueueFull
from server.exchange import AskRequest
from tests.fakes.clock_loop import on_clock_loop
from tests.server.api.gateway import Call, fleet, gateway, post, report, spec, until
from tests.server.api.scripted_dispatch import Script, ScriptedDispatch, failing, whole

PATH = "/v1/batch/completions"
USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}


def asked(request: AskRequest) -> str:
    return request.prompt or str(request.messages[-1]["content"])


def echo(request: AskRequest) -> Script:
    return failing(NoNodes("nobody")) if asked(request) == "fail" else whole(asked(request).upper())


async def batch(body: dict[str, Any], dispatch: ScriptedDispatch | None = None) -> Any:
    answer = await post(gateway(dispatch or ScriptedDispatch(echo)).app, PATH, body)
    assert answer.status == 200, answer.body
    assert "x-cache" not in answer.headers
    return answer.json()


async def test_results_stand_in_the_order_of_the_prompts_and_usage_is_summed():
    told = await batch({"prompts": ["a", "fail", "c", "", 5], "model": "m"})
    assert told["object"] == "list"
    first, failed, third, empty, number = told["results"]
    assert [one["choices"][0]["text"] for one in (first, third)] == ["A", "C"]
    assert (first["object"], first["model"], first["usage"]) == ("text_completion", "m", USAGE)
    assert first["id"] != third["id"]
    assert (failed["error"]["code"], failed["error"]["type"]) == ("no_nodes", "server_error")
    assert [one["error"]["param"] for one in (empty, number)] == ["prompt", "prompt"]
    assert told["usage"] == {name: 2 * count for name, count in USAGE.items()}


async def test_chats_and_completions_with_fields_of_their_own_over_shared_ones():
    dispatch = ScriptedDispatch(echo)
    chat = {"messages": [{"role": "user", "content": "hi"}], "prompt": None}
    requests = [{"prompt": "a"}, {"prompt": "b", "seed": 2, "max_tokens": None}, chat, {"messages": []}, {}]
    told = (await batch({"requests": requests, "seed": 1, "max_tokens": 5}, dispatch))["results"]
    assert [(one.operation, one.options) for one in dispatch.asked] == [
        ("generate", {"seed": 1, "num_predict": 5}),
        ("generate", {"seed": 2}),
        ("chat", {"seed": 1, "num_predict": 5}),
    ]
    assert told[2]["choices"][0]["message"]["content"] == "HI"
    assert [one["error"]["param"] for one in told[3:]] == ["messages", "prompt"]


async def test_several_choices_of_one_item_are_one_result():
    dispatch = ScriptedDispatch(echo)
    told = await batch({"requests": [{"prompt": "a", "n": 3, "seed": 7}]}, dispatch)
    assert [choice["index"] for choice in told["results"][0]["choices"]] == [0, 1, 2]
    assert {request.options["seed"] for request in dispatch.asked} == {7, 8, 9}
    assert told["usage"] == {"prompt_tokens": 12, "completion_tokens": 9, "total_tokens": 21}


async def test_every_item_is_the_callers_own():
    dispatch = ScriptedDispatch(echo)
    made = gateway(dispatch, api_keys="anna:s3cret")
    assert (await post(made.app, PATH, {"prompts": ["a", "b"]})).status == 401
    await post(made.app, PATH, {"prompts": ["a", "b"]}, headers={"Authorization": "Bearer s3cret"})
    assert [request.caller for request in dispatch.asked] == ["key:anna"] * 2
    assert len({request.id for request in dispatch.asked}) == 2


async def test_an_item_is_not_streamed_on_its_own():
    told = await batch({"requests": [{"prompt": "a", "stream": True}, {"prompt": "b", "stream": False}]})
    assert told["results"][0]["error"]["param"] == "stream"
    assert told["results"][1]["choices"][0]["text"] == "B"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompts"),
        ({"prompts": []}, "prompts"),
        ({"prompts": "a"}, "prompts"),
        ({"prompts": ["a"], "requests": [{"prompt": "b"}]}, "prompts"),
        ({"requests": {}}, "requests"),
        ({"requests": [{"prompt": "a"}, 7]}, "requests[1]"),
        ({"prompts": ["a"], "stream": "yes"}, "stream"),
        ({"prompts": ["a"] * 6}, "prompts"),
        ({"requests": [{"prompt": "a"}] * 6}, "requests"),
        ({"prompts": ["a"], "model": "m", "temprature": 1}, "temprature"),
    ],
)
async def test_what_is_no_batch_is_refused_whole(body: dict[str, Any], field: str):
    made = gateway(batch_limit=5)
    answer = await post(made.app, PATH, body)
    assert (answer.status, answer.json()["error"]["param"]) == (400, field)
    assert made.answer().asked == []


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_a_stream_tells_results_as_they_finish(accept: str):
    first = asyncio.Event()

    def script(request: AskRequest) -> Script:
        return [first, *whole("late")] if request.prompt == "a" else whole("early")

    made = gateway(ScriptedDispatch(script))
    call = Call("POST", PATH, {"prompts": ["a", "b"], "stream": True}, headers={"Accept": accept})
    running = asyncio.create_task(call.run(made.app))
    await call.told.wait()
    first.set()
    answer = await running
    early, late, last = answer.events() if accept == "text/event-stream" else answer.lines()
    assert (early["index"], early["choices"][0]["text"]) == (1, "early")
    assert (late["index"], late["choices"][0]["text"]) == (0, "late")
    assert last == {"done": True, "usage": {name: 2 * count for name, count in USAGE.items()}}


async def test_a_client_that_leaves_cancels_what_runs_and_what_waits():
    never = asyncio.Event()
    dispatch = ScriptedDispatch([never])
    made = gateway(dispatch)
    call = Call("POST", PATH, {"prompts": [str(number) for number in range(50)]})
    running = asyncio.create_task(call.run(made.app))
    await until(lambda: dispatch.running == LEAST_AT_ONCE)
    call.gone.set()
    await running
    assert (len(dispatch.asked), dispatch.abandoned, dispatch.running) == (LEAST_AT_ONCE, LEAST_AT_ONCE, 0)


async def test_the_slots_of_the_fleet_are_kept_busy_and_no_more():
    nodes = [(spec(name), report(slots=32, gpu_node=True)) for name in ("alpha", "beta")]
    dispatch = ScriptedDispatch(echo)
    await post(gateway(dispatch, fleet(*nodes)).app, PATH, {"prompts": [str(number) for number in range(300)]})
    assert dispatch.most_running == 128


async def test_a_queue_that_stays_full_becomes_an_error_in_the_end():
    dispatch = ScriptedDispatch(failing(QueueFull("full", 0.001)))
    told = await batch({"prompts": ["a"]}, dispatch)
    assert told["results"][0]["error"]["code"] == "queue_full"
    assert len(dispatch.asked) == TRIES_AT_FULL_QUEUE
    assert told["usage"]["total_tokens"] == 0


@pytest.mark.parametrize("choices", [3, 2 * LEAST_AT_ONCE])
async def test_choices_count_as_requests_of_their_own(choices: int):
    dispatch = ScriptedDispatch(echo)
    several = {"requests": [{"prompt": ["a", "b"], "n": choices // 2}, {"prompt": "c", "n": choices}] * 10}
    told = (await batch(several, dispatch))["results"]
    assert all(one["object"] == "text_completion" for one in told)
    assert dispatch.most_running <= max(LEAST_AT_ONCE, choices)
    assert dispatch.most_running > LEAST_AT_ONCE // 2, "more than one item at once where there is room"


@pytest.mark.parametrize("item", [{"n": "5"}, {"n": 10**9}, {"n": -1}, {"prompt": []}, {"messages": [], "prompt": [1]}])
async def test_the_size_of_what_will_be_refused_holds_nobody_up(item: dict[str, Any]):
    assert size_of(item) == 1


@on_clock_loop
async def test_a_batch_that_waits_for_a_full_queue_ends_when_the_gateway_is_cut_off():
    dispatch = ScriptedDispatch(failing(QueueFull("full", 3600.0)))
    made = gateway(dispatch)
    running = asyncio.create_task(post(made.app, PATH, {"prompts": ["a", "b"]}))
    await until(lambda: len(dispatch.asked) >= 2)
    dispatch.script = failing(GatewayDraining("the gateway was stopped"))
    made.services.open_requests.cut(GatewayDraining("the gateway was stopped"))
    told = (await running).json()["results"]
    assert [one["error"]["code"] for one in told] == ["draining", "draining"]
    assert asyncio.get_running_loop().time() <= 2 * LOOK_SECONDS


async def test_a_fault_of_ours_costs_one_item_only():
    def script(request: AskRequest) -> Script:
        return [RuntimeError("x")] if request.prompt == "b" else whole("fine")

    made = gateway(ScriptedDispatch(script))
    told = (await post(made.app, PATH, {"prompts": ["a", "b", "c"]})).json()["results"]
    assert [("error" in result) for result in told] == [False, True, False]
    assert told[1]["error"]["code"] == "internal"
    assert len(made.noted.faults) == 1
