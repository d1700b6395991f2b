"""/v1/chat/completions: framing, choices, tools, logprobs, and every parameter honoured or refused."""

from __future__ import annotations

from typing import Any

import pytest

from server.api import openai_fields
from server.errors import ModelNotFound, NoNodes
from server.exchange import AskRequest, Started, Token
from tests.server.api.gateway import MODEL, gateway, post
from tests.server.api.scripted_dispatch import DONE, ScriptedDispatch, failing

HI = [{"role": "user", "content": "hi"}]
PATH = "/v1/chat/completions"


async def asked(**body: Any) -> AskRequest:
    made = gateway()
    answer = await post(made.app, PATH, {"model": "m", "messages": HI, **body})
    assert answer.status == 200, answer.body
    return made.answer().asked[0]


async def refusal(**body: Any) -> dict[str, Any]:
    made = gateway()
    answer = await post(made.app, PATH, {"model": "m", "messages": HI, **body})
    assert answer.status == 400, answer.body
    assert made.answer().asked == []
    error: dict[str, Any] = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_a_whole_answer_is_a_chat_completion():
    told = (await post(gateway().app, PATH, {"model": "GPT-4o-mini", "messages": HI})).json()
    assert told.pop("id").startswith("chatcmpl-")
    assert told.pop("created") > 1_700_000_000
    assert told == {
        "object": "chat.completion",
        "model": "GPT-4o-mini",
        "system_fingerprint": "fp_potluck",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Paris.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
    }


async def test_a_stream_has_the_role_first_then_deltas_then_the_reason():
    answer = await post(gateway().app, PATH, {"model": "m", "messages": HI, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last = answer.events()
    assert last == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Par"},
        {"content": "is"},
        {"content": "."},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


async def test_usage_comes_as_a_last_chunk_where_asked():
    body = {"model": "m", "messages": HI, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last, done_mark = (await post(gateway().app, PATH, body)).events()
    assert done_mark == "[DONE]"
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_a_stream_that_breaks_ends_with_the_error_and_without_done():
    made = gateway(ScriptedDispatch(failing(NoNodes("all gone"), "Par")))
    *_, last = (await post(made.app, PATH, {"model": "m", "messages": HI, "stream": True})).events()
    assert last["error"]["message"] == "all gone"
    assert last["error"]["type"] == "server_error"


async def test_an_unknown_model_is_openais_404():
    made = gateway(ScriptedDispatch(failing(ModelNotFound("gpt", ("gpt-oss",)))))
    answer = await post(made.app, PATH, {"model": "gpt", "messages": HI})
    assert answer.status == 404
    assert answer.json()["error"] == {
        "message": "model 'gpt' not found (did you mean gpt-oss?)",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


async def test_sampling_becomes_ollamas_options():
    request = await asked(
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=["a", "b"],
        presence_penalty=0.1,
        frequency_penalty=-0.2,
        max_completion_tokens=16,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.1,
        num_ctx=4096,
        keep_alive=-1,
        priority=3,
        deadline_s=5,
        cache=False,
        reasoning_effort="minimal",
    )
    assert request.options == {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["a", "b"],
        "presence_penalty": 0.1,
        "frequency_penalty": -0.2,
        "num_predict": 16,
        "top_k": 40,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "num_ctx": 4096,
    }
    assert request.fields == {"keep_alive": -1, "think": "low"}
    assert (request.priority, request.deadline_seconds, request.cacheable, request.dialect) == (3, 5, False, "openai")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}, {"type": "object"}),
    ],
)
async def test_response_formats(given: Any, wanted: Any):
    assert (await asked(response_format=given)).fields.get("format") == wanted


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


async def test_tools_are_passed_on_unless_none_may_be_called():
    assert (await asked(tools=TOOLS, tool_choice="auto")).fields == {"tools": TOOLS}
    assert (await asked(tools=TOOLS, tool_choice="none")).fields == {}


HARMLESS: dict[str, Any] = {
    "user": "u",
    "safety_identifier": "s",
    "metadata": {"a": "b"},
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "service_tier": "auto",
    "store": False,
    "logit_bias": {},
    "modalities": ["text"],
    "verbosity": "medium",
    "prediction": {"type": "content", "content": "x"},
    "parallel_tool_calls": True,
    "n": 1,
    "logprobs": False,
    "audio": None,
}


async def test_parameters_that_change_nothing_are_taken():
    request = await asked(**HARMLESS)
    assert (request.options, request.fields) == ({}, {})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"functions": []}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"store": True}, "store"),
        ({"moderation": {}}, "moderation"),
        ({"verbosity": "low"}, "verbosity"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"stop": 5}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"stream_options": {"include_usag": True}}, "stream_options.include_usag"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"reasoning_effort": "max"}, "reasoning_effort"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"model": 5}, "model"),
        ({"no_such_parameter": 1}, "no_such_parameter"),
    ],
)
async def test_all_others_are_refused_by_name(body: dict[str, Any], param: str):
    assert (await refusal(**body))["param"] == param


async def test_unknown_parameters_are_refused_as_openai_does():
    error = await refusal(temprature=1)
    assert error["message"] == "Unrecognized request argument supplied: temprature (did you mean temperature?)"


def test_every_parameter_of_the_official_package_is_known():
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase

    known = set(CompletionCreateParamsBase.__annotations__) | {"stream"}
    missing = known - set(openai_fields.CHAT_FIELDS)
    assert not missing, f"say of each what it means here: {missing}"


# tools


CALL = {"function": {"name": "look", "arguments": {"country": "France"}}}
TOLD_CALL = [[Started("miss")], [Token("", tool_calls=(CALL,))], [Token("", tool_calls=(CALL,))], [DONE]]


async def test_tool_calls_come_in_openais_shape():
    made = gateway(ScriptedDispatch(TOLD_CALL))
    choice = (await post(made.app, PATH, {"model": "m", "messages": HI, "tools": TOOLS})).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    first, second = choice["message"]["tool_calls"]
    assert first["function"] == {"name": "look", "arguments": '{"country":"France"}'}
    assert first["type"] == "function"
    assert first["id"] != second["id"]


async def test_tool_calls_in_a_stream():
    made = gateway(ScriptedDispatch(TOLD_CALL))
    answer = await post(made.app, PATH, {"model": "m", "messages": HI, "tools": TOOLS, "stream": True})
    *chunks, _ = answer.events()
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [True, False])
async def test_one_call_at_a_time_where_asked(stream: bool):
    made = gateway(ScriptedDispatch(TOLD_CALL))
    body = {"model": "m", "messages": HI, "tools": TOOLS, "parallel_tool_calls": False, "stream": stream}
    answer = await post(made.app, PATH, body)
    assert answer.body.count(b'"name":"look"') == 1


async def test_thinking_is_told_as_reasoning():
    made = gateway(ScriptedDispatch([[Started("miss")], [Token("", thinking="hm")], [Token("yes")], [DONE]]))
    message = (await post(made.app, PATH, {"model": "m", "messages": HI})).json()["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == ("yes", "hm")
    events = (await post(made.app, PATH, {"model": "m", "messages": HI, "stream": True})).events()
    assert events[1]["choices"][0]["delta"] == {"reasoning": "hm"}


# logprobs

ENTRY = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}


async def test_logprobs_are_passed_through():
    made = gateway(ScriptedDispatch([[Started("miss")], [Token("a", logprobs=(ENTRY,))], [DONE]]))
    body = {"model": "m", "messages": HI, "logprobs": True, "top_logprobs": 3}
    choice = (await post(made.app, PATH, body)).json()["choices"][0]
    assert choice["logprobs"] == {"content": [ENTRY], "refusal": None}
    assert made.answer().asked[0].fields == {"logprobs": True, "top_logprobs": 3}
    events = (await post(made.app, PATH, {**body, "stream": True})).events()
    assert events[1]["choices"][0]["logprobs"]["content"] == [ENTRY]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_node_that_gives_no_logprobs_is_a_refusal(stream: bool):
    answer = await post(gateway().app, PATH, {"model": "m", "messages": HI, "logprobs": True, "stream": stream})
    assert (answer.status, answer.json()["error"]["param"]) == (400, "logprobs")


async def test_no_model_means_the_nodes_own():
    made = gateway()
    told = (await post(made.app, PATH, {"messages": HI})).json()
    assert made.answer().asked[0].model is None
    assert told["model"] == MODEL
