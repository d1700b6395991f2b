"""OpenAI's messages as Ollama's."""

from __future__ import annotations

from typing import Any

import pytest

from server.api.openai_messages import ollama_messages
from server.errors import RequestInvalid


def test_roles_and_plain_text():
    told = ollama_messages(
        [
            {"role": "developer", "content": "d"},
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u", "name": "anna"},
            {"role": "assistant", "content": None},
        ]
    )
    assert [(message["role"], message["content"]) for message in told] == [
        ("system", "d"),
        ("system", "s"),
        ("user", "u"),
        ("assistant", ""),
    ]


def test_parts_become_one_text_and_images():
    (message,) = ollama_messages(
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "one"},
                    {"type": "text", "text": "two"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
                ],
            }
        ]
    )
    assert message == {"role": "user", "content": "one\ntwo", "images": ["aGk="]}


def test_tool_calls_and_their_results():
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"country": "France"}'}}
    told = ollama_messages(
        [
            {"role": "assistant", "tool_calls": [call], "reasoning": "hm"},
            {"role": "tool", "tool_call_id": "c1", "content": "Paris"},
            {"role": "tool", "tool_call_id": "unheard", "content": "?"},
        ]
    )
    assert told[0] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "look", "arguments": {"country": "France"}}}],
        "thinking": "hm",
    }
    assert told[1] == {"role": "tool", "content": "Paris", "tool_name": "look"}
    assert told[2] == {"role": "tool", "content": "?"}


def call(**function: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": function}]}


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("hi", "messages[0]"),
        ({}, "messages[0].role"),
        ({"role": "wizard", "content": ""}, "messages[0].role"),
        ({"role": ["user"], "content": ""}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": ["hi"]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://evil.example/a.png"}}]},
         "messages[0].content[0].image_url.url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}]},
         "messages[0].content[0].image_url.url"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0].image_url.url"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "assistant", "function_call": {}}, "messages[0].function_call"),
        ({"role": "assistant", "tool_calls": {"a": 1}}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [1]}, "messages[0].tool_calls[0]"),
        (call(), "messages[0].tool_calls[0].function.name"),
        (call(name="f", arguments="{"), "messages[0].tool_calls[0].function.arguments"),
        (call(name="f", arguments="[1]"), "messages[0].tool_calls[0].function.arguments"),
        (call(name="f", arguments={}), "messages[0].tool_calls[0].function.arguments"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_refused_with_its_place(message: Any, field: str):
    with pytest.raises(RequestInvalid) as caught:
        ollama_messages([message])
    assert caught.value.field == field


def test_no_messages_at_all():
    with pytest.raises(RequestInvalid, match="too short"):
        ollama_messages([])


def test_a_message_of_ours_or_of_openai_comes_back_whole():
    sent_back = {
        "role": "assistant",
        "content": "Paris",
        "name": "helper",
        "reasoning_content": "hm",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    assert ollama_messages([sent_back]) == [{"role": "assistant", "content": "Paris", "thinking": "hm"}]
    (refused,) = ollama_messages([{"role": "assistant", "content": None, "refusal": "I will not"}])
    assert refused["content"] == "I will not"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "assistant", "content": "a", "audio": {"id": "x"}}, "messages[0].audio"),
        ({"role": "assistant", "content": "a", "prefix": True}, "messages[0].prefix"),
        ({"role": "user", "content": "a", "tool_calls": []}, "messages[0].tool_calls"),
        ({"role": "assistant", "content": "a", "function_call": {}}, "messages[0].function_call"),
    ],
)
def test_what_would_be_lost_is_refused(message: dict[str, Any], field: str):
    with pytest.raises(RequestInvalid) as caught:
        ollama_messages([message])
    assert caught.value.field == field
