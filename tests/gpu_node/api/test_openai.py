"""OpenAI's dialect: answers, streams, embeddings, models, errors, and everything that is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import Any

import pytest

from gpu_node.api.access import rules_of
from gpu_node.engine.sequence import ChatPrompt, JsonGuide, Message, RawPrompt, RegexGuide, TokenPrompt
from tests.gpu_node.scripted import Script
from tests.gpu_node.serving import NAME, SLOTS, Served, serving, until_true

USER = {"role": "user", "content": "q"}
CHAT = {"messages": [USER]}
PROMPT = {"prompt": "p"}


def events(text: str) -> list[Any]:
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    return [block if block == "data: [DONE]" else json.loads(block.removeprefix("data: ")) for block in blocks]


async def chat(served: Served, **body: Any) -> Any:
    reply = await served.post("/v1/chat/completions", **{**CHAT, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


async def completions(served: Served, **body: Any) -> Any:
    reply = await served.post("/v1/completions", **{**PROMPT, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_a_chat_in_one_piece() -> None:
    async with serving() as served:
        answer = await chat(served)
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "one two three", "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    assert (answer["object"], answer["model"]) == ("chat.completion", NAME)
    assert answer["usage"] == {
        "prompt_tokens": len("<user>q\n<assistant>"), "completion_tokens": 3,
        "total_tokens": len("<user>q\n<assistant>") + 3, "prompt_tokens_details": {"cached_tokens": 1},
    }  # fmt: skip


async def test_a_streamed_chat_opens_speaks_ends_and_counts() -> None:
    async with serving() as served:
        reply = await served.post("/v1/chat/completions", **CHAT, stream=True, stream_options={"include_usage": True})
        plain = await served.post("/v1/chat/completions", **CHAT, stream=True)
    assert reply.headers["content-type"] == "text/event-stream"
    *chunks, usage, end = events(reply.text)
    assert end == "data: [DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""}, {"content": "one "}, {"content": "two "}, {"content": "three"}, {},
    ]  # fmt: skip
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 3)
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
    assert not any("usage" in event for event in events(plain.text)[:-1])
    assert all("usage" in chunk and chunk["usage"] is None for chunk in chunks)


async def test_a_last_assistant_message_is_continued() -> None:
    messages = [USER, {"role": "assistant", "content": "half"}]
    async with serving() as served:
        answer = await chat(served, messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert answer["usage"]["prompt_tokens"] == len("<user>q\n<assistant>half")


async def test_messages_in_parts_and_the_roles_of_newer_clients() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "S"}, {"role": "user", "content": parts, "name": "x"}]
    async with serving() as served:
        await chat(served, messages=messages)
    assert served.script.requests[0].prompt == ChatPrompt((Message("system", "S"), Message("user", "ab")))


async def test_several_choices_of_one_prompt() -> None:
    async with serving() as served:
        answer = await chat(served, n=3)
        streamed = await served.post("/v1/chat/completions", **CHAT, n=2, stream=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"one two three"}
    assert answer["usage"]["completion_tokens"] == 9
    assert [request.samples for request in served.script.requests] == [3, 2]
    chunks = [event["choices"][0] for event in events(streamed.text)[:-1]]
    for index in range(2):
        own = [chunk for chunk in chunks if chunk["index"] == index]
        assert "".join(chunk["delta"].get("content", "") for chunk in own) == "one two three"
        assert own[0]["delta"]["role"] == "assistant" and own[-1]["finish_reason"] == "stop"


async def test_completions_go_to_the_model_as_they_are_one_choice_a_prompt_and_sample() -> None:
    async with serving() as served:
        one = await completions(served, prompt="The sky", n=2)
        many = await completions(served, prompt=["a", "b", "c"])
        tokens = await completions(served, prompt=[[65, 66], [67]])
        flat = await completions(served, prompt=[65, 66])
    prompts = [request.prompt for request in served.script.requests]
    assert prompts[:4] == [RawPrompt("The sky"), RawPrompt("a"), RawPrompt("b"), RawPrompt("c")]
    assert prompts[4:] == [TokenPrompt((65, 66)), TokenPrompt((67,)), TokenPrompt((65, 66))]
    assert [len(answer["choices"]) for answer in (one, many, tokens, flat)] == [2, 3, 2, 1]
    assert [choice["index"] for choice in many["choices"]] == [0, 1, 2]
    assert many["choices"][2] == {"index": 2, "text": "one two three", "logprobs": None, "finish_reason": "stop"}
    assert (many["object"], many["usage"]["prompt_tokens"]) == ("text_completion", 3)
    assert served.script.most <= SLOTS


async def test_echo_puts_the_prompt_in_front_streamed_or_not() -> None:
    async with serving() as served:
        whole = await completions(served, prompt=["Go ", "Stop "], echo=True)
        tokens = await completions(served, prompt=[65], echo=True)
        streamed = await served.post("/v1/completions", prompt="Go ", echo=True, stream=True)
    assert [choice["text"] for choice in whole["choices"]] == ["Go one two three", "Stop one two three"]
    assert tokens["choices"][0]["text"] == "Aone two three"
    text = "".join(event["choices"][0]["text"] for event in events(streamed.text)[:-1])
    assert text == "Go one two three"


async def test_log_probabilities_in_both_shapes() -> None:
    async with serving(Script(["ab", "c"])) as served:
        talk = await chat(served, logprobs=True, top_logprobs=2)
        text = await completions(served, logprobs=1)
        none = await completions(served, logprobs=0)
        streamed = await served.post("/v1/completions", **PROMPT, logprobs=1, stream=True)
    content = talk["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in content] == ["a", "b", "c"]
    assert content[0]["top_logprobs"] == [
        {"token": "a", "logprob": -1.0, "bytes": [97]}, {"token": "b", "logprob": -2.0, "bytes": [98]},
    ]  # fmt: skip
    assert text["choices"][0]["logprobs"] == {
        "tokens": ["a", "b", "c"], "token_logprobs": [-0.5] * 3, "top_logprobs": [{"a": -1.0}] * 3,
        "text_offset": [0, 1, 2],
    }  # fmt: skip
    assert none["choices"][0]["logprobs"]["top_logprobs"] == [None] * 3
    pieces = [event["choices"][0]["logprobs"] for event in events(streamed.text)[:-1]]
    assert [piece["text_offset"] for piece in pieces if piece] == [[0, 1], [2]]


async def test_every_option_arrives() -> None:
    options = {
        "temperature": 0.5, "top_p": 0.4, "top_k": 3, "min_p": 0.1, "typical_p": 0.6, "presence_penalty": 0.2,
        "frequency_penalty": -0.3, "repetition_penalty": 1.3, "seed": 9, "stop": ["a", "a", ""], "min_tokens": 2,
        "ignore_eos": True, "logit_bias": {"65": -100, "66": 2.5}, "num_ctx": 100, "max_tokens": 7,
    }  # fmt: skip
    async with serving() as served:
        await completions(served, **options)
        await completions(served)
        await chat(served, max_completion_tokens=5, temperature=0, top_k=-1)
    first, plain, talk = served.script.requests
    sampling, bounds = first.sampling, first.bounds
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.4, 3, 0.1)
    assert (sampling.typical_p, sampling.presence_penalty, sampling.frequency_penalty) == (0.6, 0.2, -0.3)
    assert (sampling.repeat_penalty, sampling.seed, sampling.logit_bias) == (1.3, 9, ((65, -100.0), (66, 2.5)))
    assert (bounds.max_tokens, bounds.min_tokens, bounds.ignore_end, bounds.context_tokens) == (7, 2, True, 100)
    assert (bounds.truncate, bounds.shift, first.stop) == (False, False, ("a",))
    assert (plain.sampling.temperature, plain.sampling.top_p, plain.sampling.top_k) == (0.2, 1.0, 0)
    assert (plain.bounds.max_tokens, plain.stop) == (16, ("<end>",))
    assert (talk.bounds.max_tokens, talk.sampling.greedy, talk.sampling.top_k) == (5, True, 0)


@pytest.mark.parametrize(
    ("body", "guide"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, JsonGuide()),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}}},
         JsonGuide('{"type":"array"}')),
        ({"regex": "[ab]+"}, RegexGuide("[ab]+")),
        ({"guided_regex": "[ab]+"}, RegexGuide("[ab]+")),
        ({"guided_json": '{"type": "array"}'}, JsonGuide('{"type":"array"}')),
        ({"guided_choice": ["yes", "no."]}, RegexGuide(r"(yes)|(no\.)")),
    ],
)  # fmt: skip
async def test_forms(body: dict[str, Any], guide: Any) -> None:
    async with serving() as served:
        await chat(served, **body)
    assert served.script.requests[0].sampling.guide == guide


@pytest.mark.parametrize(
    ("path", "body", "status", "field", "told"),
    [
        ("chat/completions", {"model": "no-such:1b"}, 404, "model", "model 'no-such:1b' not found"),
        ("chat/completions", {"messages": []}, 400, "messages", "at least 1 item"),
        ("chat/completions", {"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages", "unknown"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages", "not support tools"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages",
         "does not support multimodal"),
        ("chat/completions", {"tools": [{}]}, 400, "tools", "does not support tools"),
        ("chat/completions", {"temprature": 1}, 400, "temprature", "did you mean temperature?"),
        ("chat/completions", {"temperature": "hot"}, 400, "temperature", "got string"),
        ("chat/completions", {"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ("chat/completions", {"n": 0}, 400, "n", "greater than or equal to 1"),
        ("chat/completions", {"top_logprobs": 2}, 400, "top_logprobs", "needs logprobs"),
        ("chat/completions", {"max_tokens": 1, "max_completion_tokens": 1}, 400, "max_tokens", "not both"),
        ("chat/completions", {"max_tokens": 2, "min_tokens": 3}, 400, "min_tokens", "not be above max_tokens"),
        ("chat/completions", {"stream_options": {}}, 400, "stream_options", "needs stream"),
        ("chat/completions", {"logit_bias": {"x": 1}}, 400, "logit_bias", "'x' is no token"),
        ("chat/completions", {"logit_bias": {"1114112": 1}}, 400, "logit_bias", "is no token"),
        ("chat/completions", {"logit_bias": {"1": 101}}, 400, "logit_bias", "between -100 and 100"),
        ("chat/completions", {"response_format": {"type": "xml"}}, 400, "response_format", "must be text"),
        ("chat/completions", {"response_format": {"type": "json_schema"}}, 400, "response_format", "be an object"),
        ("chat/completions", {"regex": "a", "guided_choice": ["b"]}, 400, "guided_choice", "only one of"),
        ("chat/completions", {"guided_json": '{"a":' * 300 + "1" + "}" * 300}, 400, "guided_json", "too deeply"),
        ("chat/completions", {"guided_json": "{"}, 400, "guided_json", "is no JSON"),
        ("chat/completions", {"regex": ""}, 400, "regex", "must have 1 to"),
        ("chat/completions", {"continue_final_message": True}, 400, "continue_final_message", "last message"),
        ("chat/completions", {"add_generation_prompt": False}, 400, "add_generation_prompt", "last message"),
        ("chat/completions", {"priority": 2000}, 400, "priority", "between"),
        ("chat/completions", {"keep_alive": "soon"}, 400, "keep_alive", "no duration"),
        ("chat/completions", {"seed": "x"}, 400, "seed", "got string"),
        ("completions", {"prompt": []}, 400, "prompt", "must not be empty"),
        ("completions", {"prompt": [-1]}, 400, "prompt", "each from 0 on"),
        ("completions", {"prompt": ["a", 1]}, 400, "prompt", "wrong"),
        ("completions", {"prompt": None}, 400, "prompt", "wrong"),
        ("completions", {"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ("completions", {"suffix": "x"}, 400, "suffix", "suffix"),
        ("completions", {"best_of": 3}, 400, "best_of", "beyond n"),
        ("completions", {"echo": True, "logprobs": 1}, 400, "echo", "not scored"),
        ("completions", {"repetition_penalty": 1, "repeat_penalty": 1}, 400, "repeat_penalty", "not both"),
        ("completions", {"prompt": "x" * 5000}, 400, None, "exceeds the context length"),
        ("embeddings", {"input": ""}, 400, "input", "must not be empty"),
        ("embeddings", {"input": []}, 400, "input", "must not be empty"),
        ("embeddings", {"input": "x", "encoding_format": "int8"}, 400, "encoding_format", "float"),
    ],
)  # fmt: skip
async def test_a_clients_mistake_has_openais_shape(
    path: str, body: dict[str, Any], status: int, field: str | None, told: str
) -> None:
    base: Any = {"chat/completions": CHAT, "completions": PROMPT, "embeddings": {}}[path]
    async with serving() as served:
        reply = await served.post(f"/v1/{path}", **{**base, **body})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (status, field), error
        assert told in error["message"]
        assert error["type"] == "invalid_request_error"
        assert set(error) == {"message", "type", "param", "code"}
        await chat(served)


async def test_codes_that_clients_look_for() -> None:
    async with serving() as served:
        unknown = await served.post("/v1/completions", **PROMPT | {"model": "nothing"})
        long = await served.post("/v1/completions", prompt="x" * 5000)
        large = await served.post("/v1/completions", prompt="x" * 70_000)
    assert unknown.json()["error"]["code"] == "model_not_found"
    assert long.json()["error"]["code"] == "context_length_exceeded"
    assert large.status_code == 413


async def test_a_failure_before_the_first_token_has_its_status_and_one_after_it_ends_without_done() -> None:
    script = Script()
    script.fail_at = 0
    async with serving(script) as served:
        early = await served.post("/v1/chat/completions", **CHAT, stream=True)
        script.fail_at = 2
        late = await served.post("/v1/chat/completions", **CHAT, stream=True)
        whole = await served.post("/v1/completions", prompt=["a", "b"])
        await until_true(lambda: not script.running and not script.waiting)
    assert early.status_code == whole.status_code == 500
    assert early.json()["error"]["type"] == "server_error"
    assert "the script says so" in events(late.text)[-1]["error"]["message"]


async def test_full_means_503_with_openais_shape() -> None:
    script = Script(hold_at=0)
    async with serving(script) as served:
        tasks = [asyncio.create_task(served.post("/v1/chat/completions", **CHAT)) for _ in range(SLOTS + 8)]
        await until_true(lambda: served.host.slots.inside == SLOTS + 8)
        refused = await served.post("/v1/chat/completions", **CHAT)
        script.go_on.set()
        assert {(await task).status_code for task in tasks} == {200}
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error")


async def test_a_client_that_leaves_ends_all_its_prompts() -> None:
    script = Script([f"{n} " for n in range(500)], hold_at=1)
    async with serving(script, real=True) as served:
        body = json.dumps({"model": NAME, "prompt": ["a", "b", "c", "d"], "max_tokens": 500, "stream": True}).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        writer.write(body)
        await until_true(lambda: script.running == SLOTS and script.told == SLOTS)
        writer.close()
        await writer.wait_closed()
        await served.until_free()
        assert (script.running, script.told) == (0, SLOTS)


async def test_embeddings_of_texts_and_tokens_as_numbers_and_as_bytes() -> None:
    async with serving() as served:
        texts = (await served.post("/v1/embeddings", input=["four", "a"])).json()
        packed = (await served.post("/v1/embeddings", input="four", encoding_format="base64")).json()
        cut = (await served.post("/v1/embeddings", input="four", dimensions=1)).json()
        tokens = (await served.post("/v1/embeddings", input=[[3, 4], [6]])).json()
    assert [one["embedding"] for one in texts["data"]] == [[4.0, 1.0], [1.0, 1.0]]
    assert (texts["object"], texts["usage"]) == ("list", {"prompt_tokens": 5, "total_tokens": 5})
    assert struct.unpack("<2f", base64.b64decode(packed["data"][0]["embedding"])) == (4.0, 1.0)
    assert cut["data"][0]["embedding"] == [4.0]
    assert [one["embedding"] for one in tokens["data"]] == [pytest.approx([5**-0.5, 2 * 5**-0.5])] * 2
    assert tokens["usage"]["prompt_tokens"] == 3


async def test_models_and_one_of_them() -> None:
    async with serving() as served:
        listed = (await served.client.get("/v1/models")).json()
        one = (await served.client.get(f"/v1/models/{NAME}")).json()
        missing = await served.client.get("/v1/models/nothing")
    assert [model["id"] for model in listed["data"]] == [NAME]
    assert one == listed["data"][0] == {
        "id": NAME, "object": "model", "created": 1_700_000_000, "owned_by": "potluck",
    }  # fmt: skip
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_urgency_and_caller_reach_the_engine() -> None:
    async with serving(rules=rules_of(("anna:one", "ben:two"), (), ())) as served:
        body = {"model": NAME, **PROMPT, "priority": -3, "deadline_s": 1.5}
        await served.client.post("/v1/completions", json=body, headers={"Authorization": "Bearer one"})
    (request,) = served.script.requests
    assert (request.priority, request.deadline, request.caller, request.cache_salt) == (-3, 1.5, "anna", "anna")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"model": {}}', b"[" * 10_000])
async def test_hostile_bodies_are_the_clients_mistake(body: bytes) -> None:
    async with serving() as served:
        for path in ("chat/completions", "completions", "embeddings", "batch/completions"):
            reply = await served.client.post(f"/v1/{path}", content=body)
            assert reply.status_code == 400, (path, reply.text)
            assert reply.json()["error"]["type"] == "invalid_request_error"
