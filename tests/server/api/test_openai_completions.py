"""/v1/completions, /v1/embeddings and /v1/models."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from server.api import openai_fields
from server.exchange import AskRequest, Embedding, Started, Token, Usage
from server.nodes import ModelCopy
from tests.server.api.gateway import MODEL, fleet, gateway, get, post, report, spec
from tests.server.api.scripted_dispatch import DONE, Script, ScriptedDispatch, done, whole


def echo(request: AskRequest) -> Script:
    return whole(request.prompt.upper())


async def test_a_completion_is_a_generation():
    made = gateway()
    answer = await post(
        made.app, "/v1/completions", {"model": "m", "prompt": "The sky is", "suffix": "!", "max_tokens": 8}
    )
    told = answer.json()
    assert told["object"] == "text_completion"
    assert told["choices"] == [{"index": 0, "text": "Paris.", "logprobs": None, "finish_reason": "stop"}]
    request = made.answer().asked[0]
    assert (request.operation, request.prompt, request.fields) == ("generate", "The sky is", {"suffix": "!"})
    assert request.options == {"num_predict": 8}


async def test_a_streamed_completion():
    made = gateway(ScriptedDispatch(whole("a", "b", done=done(reason="length"))))
    body = {"model": "m", "prompt": "x", "stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, mark = (await post(made.app, "/v1/completions", body)).events()
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", ""]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert (usage["usage"]["total_tokens"], mark) == (15, "[DONE]")


async def test_several_prompts_times_n():
    made = gateway(ScriptedDispatch(echo))
    told = (await post(made.app, "/v1/completions", {"model": "m", "prompt": ["a", "b"], "n": 2})).json()
    assert [choice["text"] for choice in told["choices"]] == ["A", "A", "B", "B"]
    assert len({request.id for request in made.answer().asked}) == 4


@pytest.mark.parametrize("stream", [True, False])
async def test_each_prompt_is_counted_once_for_all_its_choices(stream: bool):
    def script(request: AskRequest) -> Script:
        return whole("x", done=done(usage=Usage(len(request.prompt), 1)))

    body = {"model": "m", "prompt": ["a" * 10, "b" * 5], "n": 2, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    answer = await post(gateway(ScriptedDispatch(script)).app, "/v1/completions", body)
    told = answer.events()[-2] if stream else answer.json()
    assert told["usage"] == {"prompt_tokens": 15, "completion_tokens": 4, "total_tokens": 19}


@pytest.mark.parametrize("stream", [True, False])
async def test_echo_tells_the_prompt_first(stream: bool):
    made = gateway(ScriptedDispatch(echo))
    body = {"model": "m", "prompt": "abc", "echo": True, "stream": stream}
    answer = await post(made.app, "/v1/completions", body)
    if stream:
        text = "".join(chunk["choices"][0]["text"] for chunk in answer.events()[:-1])
    else:
        text = answer.json()["choices"][0]["text"]
    assert text == "abcABC"


async def test_logprobs_in_the_older_shape():
    entry = {"token": "ab", "logprob": -0.5, "top_logprobs": [{"token": "ab", "logprob": -0.5}]}
    other = {"token": "c", "logprob": -1.0}
    script = [[Started("miss")], [Token("ab", logprobs=(entry,))], [Token("c", logprobs=(other,))], [DONE]]
    made = gateway(ScriptedDispatch(script))
    body = {"model": "m", "prompt": "x", "logprobs": 1}
    (choice,) = (await post(made.app, "/v1/completions", body)).json()["choices"]
    assert choice["logprobs"] == {
        "tokens": ["ab", "c"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"ab": -0.5}, {}],
        "text_offset": [0, 2],
    }
    assert made.answer().asked[0].fields == {"logprobs": True, "top_logprobs": 1}
    events = (await post(made.app, "/v1/completions", {**body, "stream": True})).events()
    assert [event["choices"][0]["logprobs"]["text_offset"] for event in events[:2]] == [[0], [2]]


@pytest.mark.parametrize("stream", [True, False])
async def test_logprobs_without_alternatives(stream: bool):
    script = [[Started("miss")], [Token("ab", logprobs=({"token": "ab", "logprob": -0.5},))], [DONE]]
    body = {"model": "m", "prompt": "x", "logprobs": 0, "stream": stream}
    answer = await post(gateway(ScriptedDispatch(script)).app, "/v1/completions", body)
    told = answer.events()[0] if stream else answer.json()
    assert told["choices"][0]["logprobs"]["top_logprobs"] is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt[0]"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": "a", "logprobs": 6}, "logprobs"),
        ({"prompt": "a", "messages": []}, "messages"),
    ],
)
async def test_mistakes_in_completions(body: dict[str, Any], param: str):
    answer = await post(gateway().app, "/v1/completions", body)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)


def test_every_parameter_of_the_official_package_is_known():
    from openai.types.completion_create_params import CompletionCreateParamsBase
    from openai.types.embedding_create_params import EmbeddingCreateParams

    assert set(CompletionCreateParamsBase.__annotations__) - {"stream"} <= set(openai_fields.COMPLETION_FIELDS)
    assert set(EmbeddingCreateParams.__annotations__) <= set(openai_fields.EMBEDDING_FIELDS)


# embeddings


def embedding() -> ScriptedDispatch:
    return ScriptedDispatch([[Started("miss")], [Embedding([[0.5, -1.25], [2.0, 3.0]])], [DONE]])


async def test_embeddings_as_numbers_and_packed():
    made = gateway(embedding())
    body = {"model": "m", "input": ["a", "b"], "dimensions": 2, "user": "u"}
    told = (await post(made.app, "/v1/embeddings", body)).json()
    assert told["data"] == [
        {"object": "embedding", "index": 0, "embedding": [0.5, -1.25]},
        {"object": "embedding", "index": 1, "embedding": [2.0, 3.0]},
    ]
    assert (told["model"], told["usage"]) == ("m", {"prompt_tokens": 12, "total_tokens": 12})
    packed = (await post(made.app, "/v1/embeddings", {**body, "encoding_format": "base64"})).json()
    assert struct.unpack("<2f", base64.b64decode(packed["data"][0]["embedding"])) == (0.5, -1.25)
    assert made.answer().asked[0].fields == {"input": ["a", "b"], "dimensions": 2}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
    ],
)
async def test_mistakes_in_embeddings(body: dict[str, Any], param: str):
    answer = await post(gateway().app, "/v1/embeddings", body)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)


async def test_tokens_to_embed_are_told_the_way_out():
    answer = await post(gateway().app, "/v1/embeddings", {"input": [1, 2]})
    assert "send text: this gateway has no tokenizer" in answer.json()["error"]["message"]


# models


async def test_models_with_aliases():
    found = report()
    listing = {"modified_at": "2026-11-21T13:02:12.036593581Z"}
    found = type(found)("0.24.0", (ModelCopy(MODEL, "d", 1, listing), ModelCopy("hf.co/user/model:q4", "e", 1)))
    made = gateway(registry=fleet((spec(), found)), model_aliases={"gpt-4o-mini": MODEL, "gone": "x"})
    told = (await get(made.app, "/v1/models")).json()
    assert told["object"] == "list"
    assert {model["id"]: model["created"] for model in told["data"]} == {
        "hf.co/user/model:q4": 1000,
        MODEL: 1795266132,
        "gpt-4o-mini": 1795266132,
    }
    for name in ("gpt-4o-mini", "QWEN2.5:1.5b", "hf.co/user/model:q4", "hf.co%2Fuser%2Fmodel:q4"):
        one = await get(made.app, f"/v1/models/{name}")
        assert one.status == 200, name
        assert one.json()["object"] == "model"
    missing = await get(made.app, "/v1/models/qwen2.5")
    assert missing.status == 404
    assert MODEL in missing.json()["error"]["message"]
