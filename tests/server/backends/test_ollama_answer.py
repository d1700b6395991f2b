"""The reader of answers: whatever real nodes said, however it is cut; and what must not be believed."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.backends.ollama_answer import MAX_LINE_BYTES, AnswerReader
from server.errors import NodeBroken, NodeRefused
from server.exchange import Durations, NodeDone, NodeEvent, Token, Usage
from tests.server.backends.played_node import bodies, recording

MODEL = "smollm2:135m"


def line(**fields: object) -> bytes:
    return orjson.dumps({"model": MODEL, "done": False} | fields) + b"\n"


def token(text: str) -> bytes:
    return line(message={"role": "assistant", "content": text})


LAST = line(message={"role": "assistant", "content": ""}, done=True, done_reason="stop", eval_count=2)


def read(*pieces: bytes, chat: bool = True) -> tuple[list[NodeEvent], AnswerReader]:
    reader = AnswerReader("10.0.0.1:11434", MODEL, chat=chat)
    events: list[NodeEvent] = []
    for piece in pieces:
        events += reader.feed(piece)
    if not reader.done and reader.error is None:
        events += reader.finish()
    return events, reader


def recorded_bodies() -> list[tuple[str, bytes, bool]]:
    found = []
    for version in ("0.6", "0.24", "0.33"):
        for name in bodies(version):
            case = recording(version, name)
            path = case.get("request", {}).get("path")
            chunks = case.get("response", {}).get("chunks", [])
            if path in ("/api/chat", "/api/generate") and all("text" in chunk for chunk in chunks) and chunks:
                body = "".join(chunk["text"] for chunk in chunks).encode()
                found.append((f"{version}/{name}", body, path == "/api/chat"))
    return found


RECORDED = recorded_bodies()


def test_there_are_recordings_to_read():
    assert len(RECORDED) > 20


@pytest.mark.parametrize(("name", "body", "chat"), RECORDED, ids=[name for name, _, _ in RECORDED])
def test_a_recorded_body_reads_the_same_whole_and_byte_by_byte(name: str, body: bytes, chat: bool):
    whole_events, whole = read(body, chat=chat)
    cut_events, cut = read(*(body[at : at + 1] for at in range(len(body))), chat=chat)
    assert whole_events == cut_events
    assert (whole.done, type(whole.error)) == (cut.done, type(cut.error))
    assert whole.done or whole.error is not None
    texts = [orjson.loads(part) for part in body.splitlines() if part.strip()]
    told = "".join((part.get("message") or {}).get("content", "") or part.get("response", "") for part in texts)
    assert "".join(event.text for event in whole_events if isinstance(event, Token)) == told


def test_counts_and_durations_of_a_last_record():
    events, reader = read(
        line(
            response="",
            done=True,
            done_reason="length",
            total_duration=4,
            load_duration=1,
            prompt_eval_count=18,
            prompt_eval_duration=2,
            eval_count=7,
            eval_duration=3,
            context=[1, 2],
        ),
        chat=False,
    )
    assert events == [NodeDone("length", MODEL, Usage(18, 7), Durations(4, 1, 2, 3), (1, 2))]
    assert reader.done and reader.error is None


@pytest.mark.parametrize(
    "foreign",
    [
        {"eval_count": "many"},
        {"eval_count": 1e308},
        {"eval_count": -1},
        {"prompt_eval_count": True},
        {"eval_duration": 1e308},
        {"context": 7},
        {"context": "abc"},
    ],
)
def test_a_last_record_of_foreign_numbers_is_broken(foreign: dict[str, object]):
    events, reader = read(token("a"), line(done=True, **foreign))
    assert events == [Token("a")] and isinstance(reader.error, NodeBroken) and not reader.done


def test_a_last_record_without_a_reason_is_a_stop():
    events, _ = read(line(done=True))
    assert events == [NodeDone("stop", MODEL)]


def test_an_unload_without_a_line_break_is_whole():
    events, reader = read(line(response="", done=True, done_reason="unload").strip(), chat=False)
    assert [event.reason for event in events if isinstance(event, NodeDone)] == ["unload"]
    assert reader.error is None


def test_several_lines_of_one_read_are_one_batch():
    reader = AnswerReader("a", MODEL, chat=True)
    assert reader.feed(token("a") + token("b")) == [Token("a"), Token("b")]
    assert reader.feed(b"") == []


def test_thinking_tool_calls_and_logprobs_come_through():
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    events, _ = read(
        line(message={"role": "assistant", "content": "", "thinking": "hm"}),
        line(message={"role": "assistant", "content": "", "tool_calls": [call]}),
        line(message={"role": "assistant", "content": "ab"}, logprobs=[{"token": "a"}, {"token": "b"}]),
        LAST,
    )
    assert events[0] == Token(thinking="hm")
    assert events[1] == Token(tool_calls=(call,))
    assert events[2] == Token("ab", logprobs=({"token": "a"}, {"token": "b"}), tokens=2)


@pytest.mark.parametrize("told", [{"tool_calls": [1]}, {"tool_calls": {"function": {}}}])
def test_calls_that_are_none_break_the_answer_and_not_us(told: dict[str, object]):
    _, reader = read(line(message={"role": "assistant", "content": "", **told}))
    assert isinstance(reader.error, NodeBroken)


def test_thinking_of_generate_comes_through():
    events, _ = read(line(response="", thinking="hm"), line(response="x", done=True), chat=False)
    assert events[:2] == [Token(thinking="hm"), Token("x")]


def test_empty_pieces_are_no_tokens():
    events, _ = read(token(""), token("a"), LAST)
    assert events[:1] == [Token("a")] and len(events) == 2


@pytest.mark.parametrize("model", ["another:1b", "smollm2:360m"])
def test_an_answer_of_another_model_is_broken(model: str):
    events, reader = read(line(model=model, message={"content": "x"}), LAST)
    assert events == [] and isinstance(reader.error, NodeBroken) and model in reader.error.message


@pytest.mark.parametrize("model", ["SmolLM2:135M", MODEL])
def test_case_does_not_make_another_model(model: str):
    _, reader = read(line(model=model, message={"content": "x"}), LAST)
    assert reader.done


@pytest.mark.parametrize(
    "bad",
    [
        b"{nonsense\n",
        b"[]\n",
        b"7\n",
        b"null\n",
        b'"text"\n',
        b'{"message":"text"}\n',
        b'{"message":{"content":5}}\n',
        b'{"model":5}\n',
        b'{"done":true,"eval_count":"many"}\n',
        b'{"done":true,"context":7}\n',
        b"\xff\xfe\n",
    ],
)
def test_a_line_that_is_no_record_is_broken_and_what_came_before_stays(bad: bytes):
    events, reader = read(token("a") + bad + token("b"))
    assert events[:1] == [Token("a")] and Token("b") not in events
    assert isinstance(reader.error, NodeBroken)


def test_an_error_line_ends_the_answer():
    events, reader = read(token("a"), b'{"error":"unexpected EOF"}\n')
    assert events == [Token("a")]
    assert isinstance(reader.error, NodeBroken) and "unexpected EOF" in reader.error.message


def test_an_error_as_first_line_can_be_the_clients_mistake():
    _, reader = read(b'{"error":"invalid format: \\"yaml\\""}\n')
    assert isinstance(reader.error, NodeRefused) and reader.error.status == 400


def test_a_body_that_ends_without_a_last_record_is_broken():
    for pieces in ((), (token("a"),), (token("a")[:-5],)):
        _, reader = read(*pieces)
        assert isinstance(reader.error, NodeBroken), pieces


def test_what_follows_the_last_record_is_not_looked_at():
    events, reader = read(token("a") + LAST + b"rubbish\n" + token("b"))
    assert len(events) == 2 and reader.done and reader.error is None


def test_blank_lines_and_carriage_returns_do_not_matter():
    events, reader = read(b"\r\n" + token("a").replace(b"\n", b"\r\n") + b"  \n" + LAST)
    assert events[0] == Token("a") and reader.done


def test_a_line_beyond_all_bounds_is_broken():
    reader = AnswerReader("a", MODEL, chat=True)
    for _ in range(MAX_LINE_BYTES // 65536 + 1):
        reader.feed(b"x" * 65536)
    assert isinstance(reader.error, NodeBroken)


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_random_bytes_give_an_error_and_never_an_exception(pieces: list[bytes]):
    events, reader = read(*pieces)
    assert reader.error is not None or reader.done
    assert all(isinstance(event, Token | NodeDone) for event in events)
