"""The dialect over real HTTP: statuses, fields, framing, ends, and clients that leave."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gpu_node import __version__
from gpu_node.engine.sequence import ChatPrompt, JsonGuide, Message, RawPrompt
from tests.gpu_node.scripted import Script
from tests.gpu_node.serving import DESCRIPTION, NAME, SLOTS, serving

USER = {"role": "user", "content": "q"}
DEEP: Any = json.loads('{"a":' * 300 + "1" + "}" * 300)
LONG = {"role": "user", "content": "x" * 100}


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def until(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), 60)


async def test_a_chat_streams_line_by_line_and_ends_with_the_facts() -> None:
    async with serving(real=True) as served:
        reply = await served.post("/api/chat", messages=[USER])
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.headers["transfer-encoding"] == "chunked"
    records = lines(reply.text)
    assert [record["message"] for record in records[:-1]] == [
        {"role": "assistant", "content": word} for word in ("one ", "two ", "three")
    ]
    last = records[-1]
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done"], last["done_reason"], last["model"]) == (True, "stop", NAME)
    assert (last["eval_count"], last["prompt_eval_duration"], last["eval_duration"]) == (3, 5_000, 7_000)
    assert last["prompt_eval_count"] == len("<user>q\n<assistant>")
    assert last["total_duration"] > 0
    assert not any(record["done"] for record in records[:-1])


async def test_a_chat_in_one_piece() -> None:
    async with serving() as served:
        reply = await served.post("/api/chat", messages=[USER], stream=False)
    assert reply.headers["content-type"] == "application/json; charset=utf-8"
    assert int(reply.headers["content-length"]) == len(reply.content)
    assert reply.json()["message"] == {"role": "assistant", "content": "one two three"}


async def test_generate_gives_the_context_back_but_not_when_raw() -> None:
    async with serving() as served:
        plain = (await served.post("/api/generate", prompt="q", system="S", stream=False)).json()
        raw = (await served.post("/api/generate", prompt="q", raw=True, stream=False)).json()
    assert plain["response"] == raw["response"] == "one two three"
    assert "".join(map(chr, plain["context"])) == "<system>S\n<user>q\n<assistant>one two three"
    assert "context" not in raw
    first, second = served.script.requests
    assert first.prompt == ChatPrompt((Message("system", "S"), Message("user", "q")))
    assert second.prompt == RawPrompt("q")


async def test_the_context_of_an_earlier_exchange_is_read_first() -> None:
    async with serving() as served:
        reply = await served.post("/api/generate", prompt="q", context=[65, 66], stream=False)
    assert reply.json()["context"][:2] == [65, 66]


async def test_a_last_assistant_message_stays_open() -> None:
    messages = [USER, {"role": "assistant", "content": "half"}]
    async with serving() as served:
        done = (await served.post("/api/chat", messages=messages, stream=False)).json()
        shown = (await served.post("/api/chat", messages=messages, _debug_render_only=True)).json()
    assert done["prompt_eval_count"] == len("<user>q\n<assistant>half")
    assert shown.pop("created_at")
    assert shown == {
        "model": NAME,
        "message": {"role": "", "content": ""},
        "done": False,
        "_debug_info": {"rendered_template": "<user>q\n<assistant>half"},
    }


async def test_rendering_needs_no_slot_but_a_loaded_model() -> None:
    async with serving(Script(hold_at=0), loaded=False) as served:
        first = await served.post("/api/generate", prompt="q", _debug_render_only=True)
        running = asyncio.create_task(served.post("/api/chat", messages=[USER]))
        await until(served.script.held)
        second = await served.post("/api/generate", prompt="q", _debug_render_only=True)
        served.script.go_on.set()
        await running
    assert first.json()["_debug_info"] == second.json()["_debug_info"]
    assert first.json()["response"] == ""


async def test_num_predict_ends_with_length() -> None:
    async with serving() as served:
        reply = await served.post("/api/chat", messages=[USER], options={"num_predict": 2}, stream=False)
    assert (reply.json()["done_reason"], reply.json()["eval_count"]) == ("length", 2)


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/api/generate", {}, "load"),
        ("/api/generate", {"prompt": "", "options": None, "system": "", "template": "", "suffix": ""}, "load"),
        ("/api/chat", {"messages": []}, "load"),
        ("/api/generate", {"keep_alive": 0}, "unload"),
        ("/api/generate", {"prompt": "", "keep_alive": "0s"}, "unload"),
        ("/api/chat", {"messages": [], "keep_alive": 0}, "unload"),
    ],
)
async def test_loading_and_unloading(path: str, body: dict[str, Any], reason: str) -> None:
    async with serving(loaded=reason == "unload") as served:
        reply = await served.post(path, **body)
        resident = (await served.client.get("/api/ps")).json()["models"]
    assert reply.headers["content-type"].startswith("application/json")
    record = reply.json()
    assert (record["done"], record["done_reason"]) == (True, reason)
    assert bool(resident) == (reason == "load")
    assert "eval_count" not in record
    assert served.script.requests == []


async def test_keep_alive_decides_how_long_the_model_stays() -> None:
    async with serving() as served:
        await served.post("/api/chat", messages=[USER], keep_alive="10m0s")
        assert served.host.seconds_left == pytest.approx(600, abs=5)
        await served.post("/api/chat", messages=[USER], keep_alive=-1)
        assert (await served.client.get("/api/ps")).json()["models"][0]["expires_at"] > "2300"


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/api/chat", {"model": "no-such:1b", "messages": [USER]}, 404, "model 'no-such:1b' not found"),
        ("/api/show", {"model": "no-such:1b"}, 404, "model 'no-such:1b' not found"),
        ("/api/embed", {"model": "no-such:1b", "input": "x"}, 404, '"no-such:1b" not found, try pulling it first'),
        ("/api/chat", {"model": "../etc/passwd", "messages": [USER]}, 400, "invalid model name"),
        ("/api/chat", {"model": "", "messages": [USER]}, 400, "model is required"),
        ("/api/chat", {"messages": "hello"}, 400, 'field "messages" is wrong'),
        ("/api/chat", {"messages": [USER], "options": {"temperature": "hot"}}, 400,
         'option "temperature" must be of type float32'),
        ("/api/chat", {"messages": [USER], "format": "yaml"}, 400,
         'invalid format: "\\"yaml\\""; expected "json" or a valid JSON Schema object'),
        ("/api/generate", {"prompt": "x", "format": 7}, 400, "invalid format"),
        ("/api/generate", {"prompt": "x", "format": DEEP}, 400, "nested too deeply"),
        ("/api/generate", {"prompt": "x", "format": [DEEP]}, 400, "nested too deeply"),
        ("/api/chat", {"messages": [USER], "tools": [{"type": "function"}]}, 400, "does not support tools"),
        ("/api/chat", {"messages": [USER], "think": True}, 400, f'"{NAME}" does not support thinking'),
        ("/api/chat", {"messages": [{**USER, "images": ["aGk="]}]}, 400, "does not support multimodal"),
        ("/api/generate", {"prompt": "x", "images": ["aGk="]}, 400, "does not support multimodal"),
        ("/api/generate", {"prompt": "x", "suffix": "end"}, 400, "does not support insert"),
        ("/api/generate", {"prompt": "x", "template": "{{ .Prompt }}"}, 400, "template is not supported"),
        ("/api/generate", {"prompt": "x", "raw": True, "system": "S"}, 400, "raw mode does not support"),
        ("/api/generate", {"prompt": "x", "logprobs": True, "top_logprobs": 21}, 400, "must be between 0 and 20"),
        ("/api/generate", {"prompt": "x", "top_logprobs": 2}, 400, "needs logprobs"),
        ("/api/chat", {"messages": [USER], "priority": 1001}, 400, "priority must lie between"),
        ("/api/chat", {"messages": [USER], "deadline_s": 0}, 400, "deadline_s must be above 0"),
        ("/api/generate", {"prompt": "x", "keep_alive": "soon"}, 400, "keep_alive"),
        ("/api/chat", {"messages": [LONG], "truncate": False, "options": {"num_ctx": 50}}, 400,
         "the input length exceeds the context length"),
        ("/api/embed", {"input": "x" * 100, "truncate": False, "options": {"num_ctx": 50}}, 400,
         "the input length exceeds the context length"),
    ],
)  # fmt: skip
async def test_a_clients_mistake_is_a_sentence_with_its_status(
    path: str, body: dict[str, Any], status: int, told: str
) -> None:
    async with serving() as served:
        reply = await served.post(path, **body)
        assert reply.status_code == status
        assert told in reply.json()["error"]
        assert (await served.post("/api/chat", messages=[USER])).status_code == 200


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "missing request body"), (b'{"model": ', "invalid JSON"), (b"[1]", "must be a JSON object, not array")],
)
async def test_a_body_that_is_no_object_is_refused(content: bytes, told: str) -> None:
    async with serving() as served:
        reply = await served.client.post("/api/chat", content=content)
    assert reply.status_code == 400
    assert told in reply.json()["error"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_refused(chunked: bool) -> None:
    async def pieces() -> Any:
        for _ in range(20):
            yield b"x" * 1000

    async with serving(max_body_bytes=10_000, real=True) as served:
        reply = await served.client.post("/api/chat", content=pieces() if chunked else b"x" * 20_000)
    assert reply.status_code == 413
    assert "10000 bytes" in reply.json()["error"]


async def test_paths_and_methods_that_are_not() -> None:
    async with serving() as served:
        unknown = await served.client.get("/api/nothing")
        wrong = await served.client.get("/api/chat")
    assert (unknown.status_code, unknown.text) == (404, "404 page not found")
    assert (wrong.status_code, wrong.text, wrong.headers["allow"]) == (405, "405 method not allowed", "POST")


async def test_embeddings_one_many_and_none() -> None:
    async with serving() as served:
        one = (await served.post("/api/embed", input="four")).json()
        many = (await served.post("/api/embed", input=["a", "bb"])).json()
        none = (await served.post("/api/embed", input=[])).json()
        old = (await served.post("/api/embeddings", prompt="four")).json()
        empty = (await served.post("/api/embeddings", prompt="")).json()
    assert (one["embeddings"], one["prompt_eval_count"], one["model"]) == ([[4.0, 1.0]], 4, NAME)
    assert one["total_duration"] > 0
    assert many["embeddings"] == [[1.0, 1.0], [2.0, 1.0]]
    assert none == {"model": NAME, "embeddings": []}
    assert (old, empty) == ({"embedding": [4.0, 2.0]}, {"embedding": []})


async def test_tags_ps_and_version_tell_what_is_here() -> None:
    async with serving(loaded=False) as served:
        assert (await served.client.get("/api/ps")).json() == {"models": []}
        await served.post("/api/generate")
        (tag,) = (await served.client.get("/api/tags")).json()["models"]
        (loaded,) = (await served.client.get("/api/ps")).json()["models"]
        version = (await served.client.get("/api/version")).json()
    assert version == {"version": __version__, "potluck": {"continues_assistant": True, "slots": SLOTS}}
    assert tag["digest"] == loaded["digest"] == "d" * 64
    assert (tag["name"], tag["size"], tag["details"]["parameter_size"]) == (NAME, 98_363_007, "134.52M")
    assert (loaded["size_vram"], loaded["context_length"]) == (0, 4096)
    assert loaded["size"] == DESCRIPTION.parameter_count * 2 + 1024 * 2, "weights and cache"


async def test_show_answers_to_the_older_field_too() -> None:
    async with serving() as served:
        shown = (await served.client.post("/api/show", json={"model": "", "name": NAME, "options": None})).json()
    assert shown["license"] == "Apache-2.0"
    assert shown["model_info"]["llama.context_length"] == 4096
    assert shown["model_info"]["tokenizer.ggml.add_bos_token"] is False
    assert shown["tensors"] == [{"name": "w", "type": "BF16", "shape": [134_515_008]}]
    assert shown["parameters"].split() == ["temperature", "0.2", "stop", '"<end>"']
    assert "thinking" not in shown["capabilities"]


async def test_the_models_own_parameters_are_the_defaults() -> None:
    async with serving() as served:
        await served.post("/api/chat", messages=[USER])
        await served.post("/api/chat", messages=[USER], options={"temperature": 0.7, "stop": "x", "top_k": None})
    first, second = served.script.requests
    assert (first.sampling.temperature, first.stop) == (0.2, ("<end>",))
    assert (second.sampling.temperature, second.stop, second.sampling.top_k) == (0.7, ("x",), 40)


async def test_characters_outside_ascii_come_as_they_are() -> None:
    async with serving(Script(["zażółć ", "😀 ", "漢字"])) as served:
        reply = await served.post("/api/chat", messages=[USER])
    assert "".join(record["message"]["content"] for record in lines(reply.text)) == "zażółć 😀 漢字"


@pytest.mark.parametrize(
    ("format", "schema"), [("json", '{"type": "object"}'), ({"type": "array"}, '{"type":"array"}'), ("", None)]
)
async def test_a_form_reaches_the_engine(format: Any, schema: str | None) -> None:
    async with serving() as served:
        await served.post("/api/chat", messages=[USER], format=format)
        await served.post("/api/generate", prompt="q", format=format)
    guides = [request.sampling.guide for request in served.script.requests]
    assert guides == [JsonGuide(schema) if schema else None] * 2


async def test_log_probabilities_have_ollamas_shape() -> None:
    async with serving(Script(["ab"])) as served:
        whole = (await served.post("/api/generate", prompt="q", logprobs=True, top_logprobs=1, stream=False)).json()
        plain = (await served.post("/api/generate", prompt="q", logprobs=True, stream=False)).json()
        streamed = lines((await served.post("/api/chat", messages=[USER], logprobs=True, top_logprobs=1)).text)
    top = [{"token": "a", "logprob": -1.0, "bytes": [97]}]
    assert (
        whole["logprobs"]
        == streamed[0]["logprobs"]
        == [
            {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": top},
            {"token": "b", "logprob": -0.5, "bytes": [98], "top_logprobs": top},
        ]
    )
    assert plain["logprobs"][0] == {"token": "a", "logprob": -0.5, "bytes": [97]}
    assert "logprobs" not in streamed[-1]
