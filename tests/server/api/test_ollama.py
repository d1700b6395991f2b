"""Ollama's API: /api/generate, /api/chat, /api/embed, /api/embeddings."""

from __future__ import annotations

import re
from typing import Any

import pytest

from server.errors import ModelNotFound
from server.exchange import AskRequest, Embedding, Started, Token, Usage
from tests.server.api.gateway import MODEL, gateway, post
from tests.server.api.scripted_dispatch import DONE, ScriptedDispatch, done, failing, whole

HI = [{"role": "user", "content": "hi"}]
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")
NUMBERS = {
    "total_duration": 900_000_000,
    "load_duration": 100_000_000,
    "prompt_eval_count": 12,
    "prompt_eval_duration": 200_000_000,
    "eval_count": 3,
    "eval_duration": 500_000_000,
}


async def asked(path: str, body: dict[str, Any]) -> AskRequest:
    made = gateway()
    answer = await post(made.app, path, body)
    assert answer.status == 200, answer.body
    return made.answer().asked[0]


async def refusal(path: str, body: Any) -> tuple[int, str]:
    made = gateway()
    answer = await post(made.app, path, body)
    assert made.answer().asked == []
    return answer.status, answer.json()["error"]


async def test_chat_streams_by_default_in_ollamas_records():
    answer = await post(gateway().app, "/api/chat", {"model": "Qwen2.5:1.5B", "messages": HI})
    assert answer.headers["content-type"] == "application/x-ndjson"
    first, *_, last = answer.lines()
    assert list(first) == ["model", "created_at", "message", "done"]
    assert first["message"] == {"role": "assistant", "content": "Par"}
    assert first["model"] == "Qwen2.5:1.5B"
    assert MOMENT.fullmatch(first["created_at"])
    assert last.pop("created_at")
    assert last == {
        "model": "Qwen2.5:1.5B",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        **NUMBERS,
    }


async def test_generate_streams_and_ends_with_its_context():
    made = gateway(ScriptedDispatch(whole("a", done=done(context=(1, 2, 3), reason="length"))))
    first, last = (await post(made.app, "/api/generate", {"model": "m", "prompt": "hi"})).lines()
    assert list(first) == ["model", "created_at", "response", "done"]
    assert (last["response"], last["context"], last["done_reason"]) == ("", [1, 2, 3], "length")


@pytest.mark.parametrize(("path", "body"), [("/api/chat", {"messages": HI}), ("/api/generate", {"prompt": "hi"})])
async def test_whole_answers(path: str, body: dict[str, Any]):
    answer = await post(gateway().app, path, {"model": "m", "stream": False, **body})
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    told = answer.json()
    assert told["message"]["content"] if path == "/api/chat" else told["response"] == "Paris."
    assert {name: told[name] for name in NUMBERS} == NUMBERS
    assert (told["done"], told["done_reason"], told["model"]) == (True, "stop", "m")


async def test_what_is_zero_is_left_out_as_ollama_does():
    made = gateway(ScriptedDispatch(whole("a", done=done(usage=Usage()))))
    told = (await post(made.app, "/api/chat", {"model": "m", "messages": HI, "stream": False})).json()
    assert "eval_count" not in told and "context" not in told


async def test_thinking_tools_and_logprobs_come_through():
    call = {"function": {"name": "look", "arguments": {"country": "France"}}}
    entry = {"token": "a", "logprob": -0.5}
    script = [
        [Started("miss")],
        [Token("", thinking="hm")],
        [Token("a", logprobs=(entry,))],
        [Token("", tool_calls=(call,))],
        [DONE],
    ]
    made = gateway(ScriptedDispatch(script))
    thinking, text, tools, _ = (await post(made.app, "/api/chat", {"model": "m", "messages": HI})).lines()
    assert thinking["message"] == {"role": "assistant", "content": "", "thinking": "hm"}
    assert text["logprobs"] == [entry]
    assert tools["message"]["tool_calls"] == [call]
    told = (await post(made.app, "/api/chat", {"model": "m", "messages": HI, "stream": False})).json()
    assert told["message"] == {"role": "assistant", "content": "a", "thinking": "hm", "tool_calls": [call]}
    assert told["logprobs"] == [entry]


async def test_every_field_of_a_chat_reaches_the_request():
    request = await asked(
        "/api/chat",
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": "see", "images": ["aGk="], "unknown": 1},
                {"role": "assistant", "thinking": "hm", "tool_calls": [{"function": {"name": "f"}}]},
                {"role": "tool", "content": "5", "tool_name": "f"},
                {"role": "wizard", "content": "any role is taken"},
            ],
            "options": {"temperature": 0, "no_such_option": 1},
            "format": {"type": "object"},
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "think": True,
            "keep_alive": "10m0s",
            "logprobs": True,
            "top_logprobs": 2,
            "truncate": False,
            "shift": False,
            "no_such_field": 1,
        },
    )
    assert request.operation == "chat"
    assert request.messages[0] == {"role": "user", "content": "see", "images": ["aGk="]}
    assert request.messages[1]["content"] == ""
    assert request.messages[3]["role"] == "wizard"
    assert request.options == {"temperature": 0}
    assert request.fields == {
        "format": {"type": "object"},
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "think": True,
        "keep_alive": "10m0s",
        "logprobs": True,
        "top_logprobs": 2,
        "truncate": False,
        "shift": False,
    }
    assert request.dialect == "ollama"


async def test_what_the_command_sends_means_what_it_means_to_ollama():
    request = await asked(
        "/api/generate",
        {"model": "m", "prompt": "hi", "suffix": "", "system": "", "template": "", "format": "", "options": None},
    )
    assert (request.prompt, request.fields, request.options) == ("hi", {}, {})


async def test_every_field_of_a_generation_reaches_the_request():
    fields = {
        "suffix": "s",
        "system": "y",
        "template": "t",
        "context": [1, 2],
        "raw": True,
        "images": ["aGk="],
        "format": "json",
    }
    request = await asked("/api/generate", {"model": "m", "prompt": "hi", **fields})
    assert request.fields == fields


async def test_no_model_means_the_nodes_own():
    made = gateway()
    answer = await post(made.app, "/api/generate", {"prompt": "hi", "stream": False})
    assert made.answer().asked[0].model is None
    assert answer.json()["model"] == MODEL


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/chat", b'{"model": ', "not valid JSON"),
        ("/api/chat", b"", "missing request body"),
        ("/api/chat", {"model": "../etc/passwd", "messages": HI}, "invalid model name"),
        ("/api/chat", {"model": 5, "messages": HI}, "'model' must be text"),
        ("/api/chat", {"messages": "hello"}, "'messages' must be a list"),
        ("/api/chat", {"messages": ["hello"]}, "'messages[0]' must be an object"),
        ("/api/chat", {"messages": [{"role": "user", "content": 5}]}, "'content' must be text"),
        ("/api/chat", {"messages": HI, "options": {"seed": "hot"}}, 'option "seed" must be of type integer'),
        ("/api/chat", {"messages": HI, "options": 5}, "'options' must be an object"),
        ("/api/chat", {"messages": HI, "format": "yaml"}, 'expected "json" or a valid JSON Schema object'),
        ("/api/chat", {"messages": HI, "think": "hard"}, "invalid think value"),
        ("/api/chat", {"messages": HI, "top_logprobs": 21}, "between 0 and 20"),
        ("/api/chat", {"messages": HI, "tools": "all"}, "'tools' must be a list"),
        ("/api/chat", {"messages": HI, "stream": "yes"}, "'stream' must be true or false"),
        ("/api/chat", {"messages": HI, "keep_alive": "soon"}, "no duration"),
        (
            "/api/chat",
            {"messages": [{"role": "user", "content": "see", "images": ["not base64!"]}]},
            "illegal base64 data at input byte 3",
        ),
        ("/api/generate", {"prompt": 5}, "'prompt' must be text"),
        ("/api/generate", {"prompt": "a", "context": ["x"]}, "whole number"),
        ("/api/embed", {"model": "m", "input": 5}, "invalid input type"),
        ("/api/embed", {"model": "m", "input": ["a", 5]}, "invalid input type"),
    ],
)  # fmt: skip
async def test_mistakes_are_400_with_a_sentence(path: str, body: Any, words: str):
    status, sentence = await refusal(path, body)
    assert status == 400
    assert words in sentence


async def test_an_unknown_model_is_ollamas_404_with_the_nearest_names():
    made = gateway(ScriptedDispatch(failing(ModelNotFound("qwen", ("qwen2.5:1.5b",)))))
    answer = await post(made.app, "/api/chat", {"model": "qwen", "messages": HI})
    assert answer.status == 404
    assert answer.json() == {"error": "model 'qwen' not found (did you mean qwen2.5:1.5b?)"}
    answer = await post(made.app, "/api/embed", {"model": "qwen", "input": "a"})
    assert answer.json()["error"].startswith('model "qwen" not found, try pulling it first')


async def test_embeddings_in_both_shapes():
    made = gateway(ScriptedDispatch([[Started("miss")], [Embedding([[0.5, 1.0], [2.0, 3.0]])], [DONE]]))
    told = (await post(made.app, "/api/embed", {"model": "m", "input": ["a", "b"], "dimensions": 2})).json()
    assert told["embeddings"] == [[0.5, 1.0], [2.0, 3.0]]
    assert (told["model"], told["prompt_eval_count"]) == ("m", 12)
    assert made.answer().asked[0].fields == {"input": ["a", "b"], "dimensions": 2}
    assert made.answer().asked[0].operation == "embed"
    old = (await post(made.app, "/api/embeddings", {"model": "m", "prompt": "a"})).json()
    assert old == {"embedding": [0.5, 1.0]}
    assert made.answer().asked[1].fields == {"input": "a"}


async def test_nothing_to_embed_asks_nobody():
    made = gateway()
    assert (await post(made.app, "/api/embed", {"model": MODEL, "input": []})).json() == {
        "model": MODEL,
        "embeddings": [],
    }
    assert (await post(made.app, "/api/embeddings", {"model": MODEL, "prompt": ""})).json() == {"embedding": []}
    for path in ("/api/embed", "/api/embeddings"):
        answer = await post(made.app, path, {"model": "nope"})
        assert (answer.status, answer.json()["error"]) == (404, 'model "nope" not found, try pulling it first')
    assert made.answer().asked == []


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/generate", {"prompt": "hi"}), ("/api/chat", {"messages": HI}), ("/api/embed", {"input": "hi"})],
)
async def test_the_older_name_of_the_models_field(path: str, body: dict[str, Any]):
    made = gateway()
    await post(made.app, path, {"name": "not-there", **body})
    assert made.answer().asked[0].model == "not-there"
    assert "name" not in made.answer().asked[0].fields
