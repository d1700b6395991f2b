"""The reader of OpenAI's streams: recorded ones, other servers', at every cut, and what must not be believed."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.backends.openai_answer import AnswerReader
from server.errors import NodeBroken
from server.exchange import Durations, NodeEvent, Token, Usage
from tests.server.backends.played_node import recording


def event(record: Any) -> bytes:
    return b"data: " + orjson.dumps(record) + b"\n\n"


def delta(finish: str | None = None, **fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]})


DONE = b"data: [DONE]\n\n"


def read(*pieces: bytes) -> tuple[list[NodeEvent], AnswerReader]:
    reader = AnswerReader("a")
    events = [event for piece in pieces for event in reader.feed(piece)]
    if reader.error is None and not reader.ended:
        events += reader.finish()
    return events, reader


def recorded(version: str, name: str) -> bytes:
    chunks = recording(version, name)["response"]["chunks"]
    return "".join(chunk["text"] for chunk in chunks).encode()


RECORDED = [
    (version, name)
    for version in ("0.6", "0.24", "0.33")
    for name in ("v1-chat-stream", "v1-chat-stream-usage", "v1-completions-stream")
]


@pytest.mark.parametrize(("version", "name"), RECORDED)
def test_a_recorded_stream_reads_the_same_whole_and_byte_by_byte(version: str, name: str):
    body = recorded(version, name)
    whole_events, whole = read(body)
    cut_events, _ = read(*(body[at : at + 1] for at in range(len(body))))
    assert whole_events == cut_events
    assert whole.error is None and whole.ended
    assert "".join(event.text for event in whole_events if isinstance(event, Token)).strip()
    assert whole.done("m", 0, 0).reason in ("stop", "length")
    if name == "v1-chat-stream-usage":
        assert whole.usage is not None and whole.usage.completion_tokens > 0


@pytest.mark.parametrize("version", ["0.6", "0.24", "0.33"])
def test_the_stream_of_a_dead_runner_is_broken(version: str):
    """It ends well on the wire, and is the reason why Ollama is never spoken to in this dialect."""
    events, reader = read(recorded(version, "fault-runner-killed-openai"))
    assert events and isinstance(reader.error, NodeBroken)


def test_a_finish_reason_without_done_is_an_end():
    events, reader = read(delta(content="a"), delta("length"))
    assert events == [Token("a")] and reader.error is None
    assert reader.done("m", 5, 9).reason == "length"


def test_what_the_server_does_not_count_is_counted_here():
    _, reader = read(delta(content="a"), delta(content="b"), delta("stop"), DONE)
    done = reader.done("m", 5, 9)
    assert done.usage == Usage(0, 2) and done.durations == Durations(total=9, generation=5)


def test_what_it_does_count_is_taken():
    timings = {"prompt_ms": 2.0, "predicted_ms": 4.5}
    _, reader = read(
        delta(content="a"),
        delta("stop"),
        event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, "timings": timings}),
        DONE,
    )
    done = reader.done("m", 5, 9)
    assert done.usage == Usage(3, 4)
    assert done.durations == Durations(total=9, prompt=2_000_000, generation=4_500_000)


def test_thinking_under_both_names():
    events, _ = read(delta(reasoning_content="a"), delta(reasoning="b"), delta("stop"), DONE)
    assert events == [Token(thinking="a"), Token(thinking="b")]


def test_logprobs_come_with_their_tokens():
    listed = [{"token": "a", "logprob": -1}, {"token": "b", "logprob": -2}]
    record = {"choices": [{"delta": {"content": "ab"}, "logprobs": {"content": listed}, "finish_reason": "stop"}]}
    events, reader = read(event(record), DONE)
    assert events == [Token("ab", logprobs=tuple(listed), tokens=2)] and reader.tokens == 2


def test_tool_calls_are_put_together():
    pieces = [
        [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"x":'}}],
        [{"index": 1, "id": "c2", "function": {"name": "g", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": "1}"}}],
    ]
    events, reader = read(*(delta(tool_calls=calls) for calls in pieces), delta("tool_calls"), DONE)
    assert events == [
        Token(
            tool_calls=(
                {"id": "c1", "function": {"name": "f", "arguments": {"x": 1}}},
                {"id": "c2", "function": {"name": "g", "arguments": {}}},
            )
        )
    ]
    assert reader.done("m", 0, 0).reason == "stop"


@pytest.mark.parametrize("arguments", ["{nonsense", "[1]", "7"])
def test_a_tool_call_whose_arguments_are_no_object_is_broken(arguments: str):
    call = {"index": 0, "function": {"name": "f", "arguments": arguments}}
    _, reader = read(delta(tool_calls=[call]), delta("tool_calls"), DONE)
    assert isinstance(reader.error, NodeBroken)


@pytest.mark.parametrize(
    "bad",
    [
        b"data: {nonsense\n\n",
        b"data: 7\n\n",
        b'data: {"choices": 7}\n\n',
        b'data: {"choices": [{"delta": {"content": 7}}]}\n\n',
        b'data: {"usage": {"prompt_tokens": "many"}}\n\n',
        b'data: {"usage": {"completion_tokens": -1}}\n\n',
        b'data: {"timings": {"prompt_ms": 1e308}}\n\n',
        b'data: {"choices": [{"delta": {"tool_calls": [{"index": "x"}]}}]}\n\n',
        b'data: {"error": {"message": "out of memory"}}\n\n',
        b'error: {"message": "of llama-server"}\n\n',
    ],
)
def test_what_is_no_event_is_broken_and_what_came_before_stays(bad: bytes):
    events, reader = read(delta(content="a") + bad + delta(content="b"))
    assert events == [Token("a")] and isinstance(reader.error, NodeBroken)


def test_an_error_keeps_the_servers_words():
    _, reader = read(b'data: {"error": {"message": "out of memory"}}\n\n')
    assert reader.error is not None and "out of memory" in reader.error.message


def test_nothing_after_the_end_is_looked_at():
    events, reader = read(delta(content="a") + delta("stop") + DONE + b"data: rubbish\n\n")
    assert events == [Token("a")] and reader.error is None


@given(st.lists(st.integers(0, 2000), max_size=10))
def test_wherever_a_stream_is_cut_it_is_the_same(cuts: list[int]):
    body = recorded("0.33", "v1-chat-stream")
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    assert read(*(body[start:end] for start, end in itertools.pairwise(edges)))[0] == read(body)[0]


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_random_bytes_give_an_error_and_never_an_exception(pieces: list[bytes]):
    _, reader = read(*pieces)
    assert reader.error is not None or reader.ended
