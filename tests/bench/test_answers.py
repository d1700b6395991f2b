"""The judge of a soak: it must see every loss, repeat, splice and cut, and must not see what is not there."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from bench.rig.answers import JOINED, Judge, Reading, ollama_code, read_stream, read_whole
from bench.rig.questions import GROUPS, Question, Questions, model_of
from tests.fakes.phone import FakeModel, PhoneSettings, expected_answer

SETTINGS = {
    group: PhoneSettings(models=(FakeModel(model_of(group)),), template=group, answer_tokens=(8, 48))  # type: ignore[arg-type]
    for group in GROUPS
}
JUDGE = Judge(SETTINGS)
MESSAGES = ({"role": "user", "content": "Question: why?"},)


def question(way: Any, stream: bool, options: dict[str, Any] | None = None, group: str | None = "closed") -> Question:
    return Question(way, stream, {}, group, MESSAGES, None, {"temperature": 0} if options is None else options)


def due(options: dict[str, Any] | None = None, group: str = "closed", salt: str = "0000") -> Any:
    chosen = {"temperature": 0} if options is None else {"temperature": 1, **options}
    return expected_answer(list(MESSAGES), settings=SETTINGS[group], options=chosen, salt=salt)


def ndjson(*records: dict[str, Any]) -> bytes:
    return b"".join(orjson.dumps(record) + b"\n" for record in records)


def told(pieces: list[str], *last: dict[str, Any]) -> bytes:
    return ndjson(*({"token": piece} for piece in pieces), *last)


DONE = {"done": True, "done_reason": "stop", "usage": {"completion_tokens": 3}}


def findings(body: bytes, way: str = "ask_stream", **options: Any) -> list[str]:
    asked = question(way, True, **options)
    return JUDGE.findings(asked, read_stream(asked, 200, body))


def test_a_right_answer_has_no_findings() -> None:
    assert findings(told(list(due().pieces), DONE)) == []


def test_the_salt_of_an_unseeded_answer_is_read_out_of_it() -> None:
    assert findings(told(list(due({}, salt="ab12").pieces), DONE), options={}) == []


def test_any_group_may_answer_when_no_model_was_named() -> None:
    assert findings(told(list(due(group="trimming").pieces), DONE), group=None) == []
    assert findings(told(list(due(group="trimming").pieces), DONE), group="closed")


def test_events_and_comments_are_read() -> None:
    records = [{"token": piece} for piece in due().pieces] + [DONE]
    body = b": queued 3\n\n" + b"".join(b"data: " + orjson.dumps(record) + b"\n\n" for record in records)
    assert findings(body, way="ask_events") == []


def test_the_dialect_of_openai_is_read() -> None:
    head = b'data: {"choices":[{"index":0,"delta":%b,"finish_reason":%b}]}\n\n'
    body = b"".join(head % (orjson.dumps({"content": piece}), b"null") for piece in due().pieces)
    body += head % (b"{}", b'"stop"') + b"data: [DONE]\n\n"
    assert findings(body, way="openai") == []
    assert findings(body.removesuffix(b"data: [DONE]\n\n"), way="openai") == ["0 terminal records"]


@pytest.mark.parametrize("dropped", [0, 3, 6])
def test_a_lost_token_is_seen(dropped: int) -> None:
    pieces = list(due().pieces)
    del pieces[dropped]
    assert findings(told(pieces, DONE))


def test_a_repeated_token_is_seen() -> None:
    pieces = list(due().pieces)
    assert findings(told([*pieces[:5], *pieces[4:]], DONE))


def test_a_splice_of_two_answers_is_seen() -> None:
    other = expected_answer([{"role": "user", "content": "other"}], settings=SETTINGS["closed"])
    assert any("splice" in found for found in findings(told([*due().pieces[:6], *other.pieces[6:]], DONE)))


def test_an_answer_that_ends_early_but_says_done_is_seen() -> None:
    assert any("truncated" in found for found in findings(told(list(due().pieces[:-2]), DONE)))


def test_a_wrong_reason_is_seen() -> None:
    assert findings(told(list(due().pieces), {**DONE, "done_reason": "length"}))


def test_a_body_without_an_end_is_seen() -> None:
    assert findings(told(list(due().pieces))) == ["0 terminal records"]


def test_half_a_line_is_seen() -> None:
    assert any(found.startswith("truncated") for found in findings(told(list(due().pieces), DONE) + b'{"tok'))


def test_two_ends_are_seen() -> None:
    assert "2 terminal records" in findings(told(list(due().pieces), DONE, DONE))


def test_something_after_the_end_is_seen() -> None:
    assert "something after the end" in findings(told(list(due().pieces), DONE, {"token": "x"}))


def test_an_honest_error_after_a_right_beginning_is_none_of_these() -> None:
    error = {"error": {"code": "nodes_failed", "message": "no"}}
    asked = question("ask_stream", True)
    reading = read_stream(asked, 200, told(list(due().pieces[:5]), error))
    assert (reading.error, JUDGE.findings(asked, reading)) == ("nodes_failed", [])
    wrong = read_stream(asked, 200, told(["something else", *due().pieces[:5]], error))
    assert JUDGE.findings(asked, wrong)


def test_an_error_that_says_nothing_is_seen() -> None:
    asked = question("ask", False)
    assert JUDGE.findings(asked, read_whole(asked, 500, b'{"detail":"Internal Server Error"}'))
    assert JUDGE.findings(asked, read_whole(asked, 502, b"<html>"))


def test_a_client_that_left_heard_a_beginning() -> None:
    asked = question("ask_stream", True)
    body = told(list(due().pieces[:4])) + b'{"tok'
    reading = read_stream(asked, 200, body, whole=False)
    reading.left = True
    assert JUDGE.findings(asked, reading) == []
    assert reading.text == "".join(due().pieces[:4])


def test_whole_answers_of_all_dialects_are_read() -> None:
    text = due().text
    bodies = {
        "ask": {"response": text, "done_reason": "stop", "usage": {"completion_tokens": 9}},
        "chat": {"message": {"content": text}, "done_reason": "stop", "eval_count": 9},
        "openai": {
            "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
            "usage": {"completion_tokens": 9},
        },
    }
    for way, body in bodies.items():
        asked = question(way, False)
        reading = read_whole(asked, 200, orjson.dumps(body))
        assert (JUDGE.findings(asked, reading), reading.tokens) == ([], 9)
        assert JUDGE.findings(asked, read_whole(asked, 200, orjson.dumps(body).replace(b"w3-", b"w4-")))


def test_sentences_of_ollama_are_known_by_their_beginning() -> None:
    assert ollama_code("no node could answer; the last one said: x") == "nodes_failed"
    assert ollama_code("something new").startswith("other")


def test_questions_are_repeatable_and_cover_every_way() -> None:
    first, second = Questions(5), Questions(5)
    asked = [first.next() for _ in range(400)]
    assert asked == [second.next() for _ in range(400)]
    assert {one.way for one in asked} == {"ask", "ask_stream", "ask_events", "chat", "generate", "openai"}
    assert any(one.leaves_after is not None for one in asked)
    assert any("format" in one.fields for one in asked) and any("raw" in one.fields for one in asked)


def test_a_reading_counts_its_ends() -> None:
    reading = Reading()
    reading.end()
    assert (reading.ends, reading.after_end) == (1, False)
    reading.end()
    assert reading.after_end


def test_a_line_break_at_the_end_of_a_raw_prompt_may_be_the_answers_own() -> None:
    """The fake model cannot tell; a splice is seen all the same."""
    settings = SETTINGS["closed"]
    asked = next(
        one
        for number in range(1000)
        for one in [Question("generate", False, {}, "closed", None, f"P{number}", {"temperature": 0}, {"raw": True})]
        if expected_answer(prompt=one.prompt, settings=settings, raw=True).text.startswith("\n")
    )
    first = expected_answer(prompt=asked.prompt, settings=settings, raw=True)
    later = expected_answer(prompt=f"{asked.prompt}\n", settings=settings, raw=True)

    def found(text: str) -> list[str]:
        body = {"response": text, "done_reason": "stop", "eval_count": 9}
        return JUDGE.findings(asked, read_whole(asked, 200, orjson.dumps(body)))

    assert found(first.text) == [] and found(f"\n{later.text}") == []
    assert found(f"\n{later.text[:-9]}") and found(first.text[:30] + later.text[30:])


def test_a_limit_may_be_reached_early_only_by_what_had_to_be_guessed() -> None:
    found: dict[int, list[str]] = {}
    for number in range(2000):
        options = {"temperature": 0, "num_predict": 12, "seed": number}
        asked = Question("ask_stream", True, {}, "closed", ({"role": "user", "content": f"Q{number}"},), None, options)
        expected = expected_answer(list(asked.messages or ()), settings=SETTINGS["closed"], options=options)
        joined = "".join(expected.pieces[:-1]).count(JOINED)
        if joined in found or expected.done_reason != "length":
            continue
        body = told(list(expected.pieces[:-1]), {**DONE, "done_reason": "length"})
        found[joined] = JUDGE.findings(asked, read_stream(asked, 200, body))
        if len(found) == 2:
            break
    assert found[0] and found[1] == []
