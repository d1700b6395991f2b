"""What a call becomes for a server with OpenAI's API, and what is refused because it cannot become anything."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.backends.base import Call
from server.backends.openai_request import messages_of, options_of, request_of
from server.errors import NodeIncapable, NodeRefused

USER = {"role": "user", "content": "hi"}


def chat(**fields: Any) -> dict[str, Any]:
    path, body = request_of(Call("chat", "m", messages=[USER], fields=fields), continues_final_message=False)
    assert path == "/v1/chat/completions"
    return body


def refusal(call: Call, continues: bool = False) -> NodeRefused:
    with pytest.raises(NodeRefused) as caught:
        request_of(call, continues_final_message=continues)
    return caught.value


def test_a_plain_chat():
    assert chat() == {
        "model": "m",
        "messages": [USER],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_options_go_under_the_names_known_there():
    options = {
        "num_predict": 9,
        "temperature": 0,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "seed": 7,
        "stop": ["x"],
        "presence_penalty": 1,
        "frequency_penalty": 2,
        "repeat_penalty": 1.1,
    }
    assert options_of(options) == {
        "max_tokens": 9,
        "temperature": 0,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "seed": 7,
        "stop": ["x"],
        "presence_penalty": 1,
        "frequency_penalty": 2,
        "repeat_penalty": 1.1,
        "repetition_penalty": 1.1,
    }


@pytest.mark.parametrize("endless", [-1, -2])
def test_as_much_as_fits_is_the_default_there(endless: int):
    assert options_of({"num_predict": endless}) == {}


@pytest.mark.parametrize("name", ["num_ctx", "mirostat", "typical_p", "num_gpu", "repeat_last_n"])
def test_an_option_that_cannot_be_honoured_is_named(name: str):
    error = refusal(Call("chat", "m", messages=[USER], options={name: 1}))
    assert isinstance(error, NodeIncapable) and error.status == 400 and name in error.message


@pytest.mark.parametrize("name", ["template", "context"])
def test_a_field_that_cannot_be_honoured_is_named(name: str):
    error = refusal(Call("generate", "m", prompt="x", fields={name: "y"}))
    assert isinstance(error, NodeIncapable) and error.status == 400 and name in error.message


def test_format():
    assert chat(format="json")["response_format"] == {"type": "json_object"}
    schema = {"type": "object"}
    assert chat(format=schema)["response_format"]["json_schema"]["schema"] == schema
    wrong = refusal(Call("chat", "m", messages=[USER], fields={"format": "yaml"}))
    assert type(wrong) is NodeRefused and wrong.status == 400  # wrong for every node


def test_thinking_tools_and_logprobs():
    assert chat(think=False)["chat_template_kwargs"] == {"enable_thinking": False}
    assert chat(think="high")["reasoning_effort"] == "high"
    tool = {"type": "function", "function": {"name": "f"}}
    assert chat(tools=[tool])["tools"] == [tool]
    body = chat(logprobs=True, top_logprobs=3)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 3)
    assert "top_logprobs" not in chat(top_logprobs=3)


@pytest.mark.parametrize("keep_alive", ["5m", -1, 300, "-1", "1h0m0s"])
def test_a_model_that_stays_for_ever_honours_every_wish_to_keep_it(keep_alive: object):
    assert "keep_alive" not in chat(keep_alive=keep_alive)


@pytest.mark.parametrize("keep_alive", [0, "0", "0s", "0m", 0.0])
def test_unloading_is_refused(keep_alive: object):
    assert "keep_alive" in refusal(Call("chat", "m", fields={"keep_alive": keep_alive})).message


def test_a_prompt_too_long_fails_there_anyway_but_is_never_cut():
    assert "truncate" not in chat(truncate=False)
    assert "truncate" in refusal(Call("chat", "m", messages=[USER], fields={"truncate": True})).message


def test_continuing_needs_a_node_that_says_it_can():
    call = Call("chat", "m", messages=[USER, {"role": "assistant", "content": "The"}], continues=True)
    _, body = request_of(call, continues_final_message=True)
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert refusal(call).status == 501


def test_a_prompt_becomes_a_conversation():
    call = Call("generate", "m", prompt="why", fields={"system": "be short", "images": ["iVBORw0"]})
    path, body = request_of(call, continues_final_message=False)
    assert path == "/v1/chat/completions"
    assert body["messages"][0] == {"role": "system", "content": "be short"}
    assert body["messages"][1]["content"] == [
        {"type": "text", "text": "why"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0"}},
    ]


def test_a_raw_prompt_stays_as_it_is():
    call = Call("generate", "m", prompt="once", options={"num_predict": 3}, fields={"raw": True, "suffix": "end"})
    path, body = request_of(call, continues_final_message=False)
    assert path == "/v1/completions"
    assert (body["prompt"], body["suffix"], body["max_tokens"]) == ("once", "end", 3)
    assert "messages" not in body and "raw" not in body


@pytest.mark.parametrize("name", ["system", "images", "logprobs"])
def test_a_raw_prompt_takes_nothing_that_needs_a_template(name: str):
    assert name in refusal(Call("generate", "m", prompt="x", fields={"raw": True, name: "y"})).message


def test_embeddings():
    call = Call("embed", "m", fields={"input": ["a"], "dimensions": 8, "keep_alive": "5m"})
    assert request_of(call, continues_final_message=False) == (
        "/v1/embeddings",
        {"model": "m", "input": ["a"], "encoding_format": "float", "dimensions": 8},
    )
    assert "truncate" in refusal(Call("embed", "m", fields={"input": "a", "truncate": True})).message
    assert "num_ctx" in refusal(Call("embed", "m", fields={"input": "a"}, options={"num_ctx": 1})).message


def test_tool_calls_get_ids_and_their_results_find_them():
    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}, {"id": "own", "function": {"name": "g"}}]
    found = messages_of(
        [
            USER,
            {"role": "assistant", "content": "", "tool_calls": calls, "thinking": "hm"},
            {"role": "tool", "content": "1", "tool_name": "f"},
            {"role": "tool", "content": "2", "tool_name": "g"},
        ]
    )
    sent = found[1]["tool_calls"]
    assert [call["function"]["arguments"] for call in sent] == ['{"x":1}', "{}"]
    assert found[1]["reasoning_content"] == "hm"
    assert [found[2]["tool_call_id"], found[3]["tool_call_id"]] == [sent[0]["id"], "own"]


def test_arguments_that_can_be_read_but_not_written_are_refused():
    calls = [{"function": {"name": "f", "arguments": json.loads("[" * 300 + "]" * 300)}}]
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    assert type(refusal(Call("chat", "m", messages=[USER, message]))) is NodeRefused


@pytest.mark.parametrize(("start", "kind"), [("/9j/4AA", "jpeg"), ("R0lGOD", "gif"), ("UklGRk", "webp")])
def test_images_are_told_apart_by_their_first_bytes(start: str, kind: str):
    (message,) = messages_of([{"role": "user", "content": "", "images": [start]}])
    assert message["content"] == [{"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{start}"}}]


def test_an_image_of_an_unknown_kind_is_refused():
    assert refusal(Call("chat", "m", messages=[{"role": "user", "content": "", "images": ["AAAA"]}])).status == 400
