"""POST /ask and /ask_stream: what bodies mean, what is refused, and the shape of answers."""

from __future__ import annotations

from typing import Any

import pytest

from server.exchange import AskRequest, Embedding, NodeShare, Started, Token, Usage
from tests.server.api.gateway import client, gateway, post
from tests.server.api.scripted_dispatch import DONE, ScriptedDispatch, done, whole


async def asked(body: dict[str, Any]) -> AskRequest:
    made = gateway()
    answer = await post(made.app, "/ask", body)
    assert answer.status == 200, answer.body
    return made.answer().asked[0]


async def refused(body: Any, path: str = "/ask") -> dict[str, Any]:
    made = gateway()
    answer = await post(made.app, path, body)
    assert answer.status == 422, answer.body
    assert made.answer().asked == []
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == "invalid_request"
    return error


async def test_the_answer_tells_all_that_is_known():
    answer = await post(gateway().app, "/ask", {"prompt": "Capital of France?"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-cache"] == "miss"
    assert answer.json() == {
        "response": "Paris.",
        "model": "qwen2.5:1.5b",
        "node": "kitchen",
        "cached": False,
        "usage": {"prompt_tokens": 12, "completion_tokens": 3},
        "timings_ms": {"queue": 1.5, "first_token": 20.25, "total": 900.0},
        "tokens_per_second": 6.0,
        "attempts": 1,
        "nodes": [{"node": "kitchen", "tokens": 3, "way": "first"}],
        "done_reason": "stop",
    }


async def test_a_hit_is_cached_and_several_nodes_are_all_named():
    shares = (NodeShare("kitchen", 2, "first"), NodeShare("attic", 1, "raw"))
    made = gateway(ScriptedDispatch(whole("a", done=done(cache="hit", nodes=shares, attempts=2))))
    answer = (await post(made.app, "/ask", {"prompt": "hi"})).json()
    assert answer["cached"] is True
    assert [share["way"] for share in answer["nodes"]] == ["first", "raw"]


async def test_a_prompt_becomes_a_conversation():
    request = await asked({"prompt": "Zażółć gęślą jaźń 😀", "system": "Be brief.", "images": ["aGk="]})
    assert request.operation == "chat"
    assert request.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Zażółć gęślą jaźń 😀", "images": ["aGk="]},
    ]
    assert (request.model, request.cacheable, request.priority, request.dialect) == (None, True, 0, "ask")


async def test_messages_are_taken_as_they_are():
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hel"}]
    assert (await asked({"messages": messages, "system": "s"})).messages == [
        {"role": "system", "content": "s"},
        *messages,
    ]


async def test_every_field_reaches_the_request():
    request = await asked(
        {
            "prompt": "hi",
            "model": " qwen2.5:1.5b ",
            "format": {"type": "object"},
            "keep_alive": "10m",
            "think": "low",
            "priority": 5,
            "deadline_s": 2.5,
            "cache": False,
            "temperature": 0,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.05,
            "seed": 7,
            "stop": "\n",
            "max_tokens": 16,
            "num_ctx": 2048,
            "repeat_penalty": 1.1,
            "options": {"num_thread": 4, "typical_p": 0.5},
        }
    )
    assert request.model == "qwen2.5:1.5b"
    assert request.fields == {"format": {"type": "object"}, "keep_alive": "10m", "think": "low"}
    assert (request.priority, request.deadline_seconds, request.cacheable) == (5, 2.5, False)
    assert request.options == {
        "num_thread": 4,
        "typical_p": 0.5,
        "temperature": 0,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "seed": 7,
        "stop": ["\n"],
        "num_predict": 16,
        "num_ctx": 2048,
        "repeat_penalty": 1.1,
    }


async def test_null_means_not_given():
    request = await asked({"prompt": "hi", "model": None, "temperature": None, "options": None, "messages": None})
    assert (request.model, request.options) == (None, {})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n\t"}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "hi", "contents": 1}]}, "messages[0].contents"),
        ({"messages": [{"role": "user", "content": "a"}], "images": ["aGk="]}, "images"),
        ({"messages": [{"role": "system", "content": "a"}], "system": "b"}, "system"),
        ({"prompt": "a", "images": ["?"]}, "images[0]"),
        ({"prompt": "a", "model": 1}, "model"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "num_predict": 0}, "num_predict"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "a", "seed": 1e300}, "seed"),
        ({"prompt": "a", "max_tokens": 5, "num_predict": 6}, "max_tokens"),
        ({"prompt": "a", "temperature": 1, "options": {"temperature": 0}}, "temperature"),
        ({"prompt": "a", "options": {"temprature": 0}}, "options.temprature"),
        ({"prompt": "a", "options": []}, "options"),
        ({"prompt": "a", "format": "yaml"}, "format"),
        ({"prompt": "a", "keep_alive": "soon"}, "keep_alive"),
        ({"prompt": "a", "deadline_s": 0}, "deadline_s"),
        ({"prompt": "a", "cache": "no"}, "cache"),
        ({"prompt": "a", "think": "hard"}, "think"),
        ({"prompt": "a", "stream": True}, "stream"),
        ({"promt": "a"}, "promt"),
    ],
)
async def test_mistakes_are_422_with_the_fields_name(body: dict[str, Any], field: str):
    assert (await refused(body))["field"] == field


async def test_the_nearest_known_field_is_the_hint():
    assert (await refused({"prompt": "a", "temprature": 1}))["hint"] == "did you mean temperature?"
    assert "/ask_stream" in (await refused({"prompt": "a", "stream": True}))["hint"]


async def test_one_option_under_two_names_may_agree():
    assert (await asked({"prompt": "a", "max_tokens": 5, "num_predict": 5})).options == {"num_predict": 5}


async def test_bad_json_is_400_with_its_place():
    answer = await post(gateway().app, "/ask", b'{"prompt": "a",\n "model": }')
    assert answer.status == 400
    assert "line 2, column 11" in answer.json()["error"]["message"]


async def test_a_stream_is_a_record_per_token_and_one_for_the_end():
    answer = await post(gateway().app, "/ask_stream", {"prompt": "hi", "stream": True})
    assert answer.headers["content-type"] == "application/x-ndjson"
    *told, last = answer.lines()
    assert told == [{"token": "Par"}, {"token": "is"}, {"token": "."}]
    assert last["done"] is True
    assert last["usage"] == {"prompt_tokens": 12, "completion_tokens": 3}
    assert "response" not in last


async def test_the_same_records_as_server_sent_events():
    body = {"prompt": "hi", "progress": True}
    answer = await post(gateway().app, "/ask_stream", body, headers={"Accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [event.get("token") for event in answer.events()] == ["Par", "is", ".", None]
    assert answer.body.endswith(b"\n\n")


async def test_thinking_is_told_apart():
    script = [[Started("miss")], [Token("", thinking="hm")], [Token("", thinking=" so")], [Token("yes")], [DONE]]
    made = gateway(ScriptedDispatch(script))
    assert [list(line) for line in (await post(made.app, "/ask_stream", {"prompt": "?"})).lines()[:3]] == [
        ["thinking"],
        ["thinking"],
        ["token"],
    ]
    answer = (await post(made.app, "/ask", {"prompt": "?"})).json()
    assert (answer["response"], answer["thinking"]) == ("yes", "hm so")


async def test_empty_tokens_make_no_records():
    made = gateway(ScriptedDispatch([[Started("miss")], [Token(""), Token("a")], [DONE]]))
    assert [line.get("token") for line in (await post(made.app, "/ask_stream", {"prompt": "?"})).lines()] == ["a", None]


async def test_text_is_utf_8_all_the_way_over_real_sockets():
    made = gateway(ScriptedDispatch(whole("zażółć", " 漢字", " 😀")))
    async with client(made.app) as http:
        answer = await http.post("/ask", content='{"prompt": "Jakie są zalety modeli działających offline?"}')
        assert answer.json()["response"] == "zażółć 漢字 😀"
        assert made.answer().asked[0].messages[0]["content"].startswith("Jakie są")
        async with http.stream("POST", "/ask_stream", json={"prompt": "hi"}) as stream:
            text = (await stream.aread()).decode()
        assert '"token":" 漢字"' in text
        assert stream.headers["transfer-encoding"] == "chunked"


async def test_an_answer_without_speed_or_tokens_is_an_answer():
    made = gateway(
        ScriptedDispatch([[Started("miss")], [Embedding([])], [done(usage=Usage(), durations=DONE.durations)]])
    )
    answer = (await post(made.app, "/ask", {"prompt": "hi"})).json()
    assert answer["response"] == ""


async def test_tools_are_of_the_other_apis():
    error = await refused({"messages": [{"role": "user", "content": "hi"}, {"role": "tool", "content": "x"}]})
    assert error["field"] == "messages[1].role"
