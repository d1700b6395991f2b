"""Reads answers of all dialects and judges them: every byte accounted for, exactly one end, the very text that was due.

Pure. A `Reading` is what a client saw; `judge` holds it against what a phone says to the same question. A finding is a
sentence, and no finding means: complete and right, or an honest error after a right beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from bench.rig.questions import Question
from tests.fakes.phone import Expected, PhoneSettings, expected_answer, verify_answer
from tests.fakes.phone_text import WORD

JOINED = "👩\u200d🚀"  # one token of the fake model, two or more of a real one


@dataclass(slots=True)
class Reading:
    """What came out of one exchange."""

    text: str = ""
    ends: int = 0  # terminal records: done or error
    error: str | None = None  # the code of an honest error
    reason: str | None = None  # done_reason
    after_end: bool = False
    broken: str = ""  # why the body could not be read
    left: bool = False  # the client went away
    tokens: int | None = None  # as counted in the last record
    parts: list[str] = field(default_factory=list)

    def add(self, text: Any) -> None:
        if self.ends:
            self.after_end = True
        if isinstance(text, str):
            self.parts.append(text)

    def end(self) -> None:
        self.after_end = self.after_end or self.ends > 0
        self.ends += 1


def read_whole(question: Question, status: int, body: bytes) -> Reading:
    """An answer in one piece."""
    reading = Reading()
    try:
        record = orjson.loads(body)
    except orjson.JSONDecodeError:
        reading.broken = f"status {status} with a body that is no JSON: {body[:80]!r}"
        return reading
    if status != 200:
        _fail(reading, question, record, status)
    elif question.way == "ask":
        _finish(reading, record.get("response"), record.get("done_reason"), record["usage"]["completion_tokens"])
    elif question.way == "openai":
        choice = record["choices"][0]
        count = record["usage"]["completion_tokens"]
        _finish(reading, choice["message"]["content"], choice["finish_reason"], count)
    else:
        text = record["message"]["content"] if question.way == "chat" else record["response"]
        _finish(reading, text, record.get("done_reason"), record.get("eval_count"))
    reading.text = "".join(reading.parts)
    return reading


def read_stream(question: Question, status: int, body: bytes, *, whole: bool = True) -> Reading:
    """A streamed answer, or its beginning. With `whole` the body has ended, and its last line must be one."""
    if status != 200:
        return read_whole(question, status, body)
    reading = Reading()
    lines = body.split(b"\n")
    if whole and lines[-1]:
        reading.broken = f"the last line is half: {lines[-1][:80]!r}"
    events = question.way in ("ask_events", "openai")
    try:
        for line in lines[:-1]:
            _read_line(reading, question, line, events)
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError) as problem:
        reading.broken = f"a line that cannot be read: {problem!r}"
    reading.text = "".join(reading.parts)
    return reading


def _read_line(reading: Reading, question: Question, line: bytes, events: bool) -> None:
    if not line or line.startswith(b":"):
        return
    if events:
        if not line.startswith(b"data: "):
            raise TypeError(f"no event: {line[:60]!r}")
        line = line[6:]
    if line == b"[DONE]":
        reading.end()
        return
    record = orjson.loads(line)
    if "error" in record:
        _fail(reading, question, record, 200)
    elif question.way == "openai":
        choice = record["choices"][0]
        reading.add(choice["delta"].get("content"))
        reading.reason = choice["finish_reason"] or reading.reason
    else:
        _read_record(reading, question, record)


def _read_record(reading: Reading, question: Question, record: Mapping[str, Any]) -> None:
    if question.way in ("ask_stream", "ask_events"):
        if not record.get("done"):
            reading.add(record["token"])
            return
        _finish(reading, None, record.get("done_reason"), record["usage"]["completion_tokens"])
        return
    text = record["message"]["content"] if question.way == "chat" else record["response"]
    if record["done"]:
        _finish(reading, text, record.get("done_reason"), record.get("eval_count"))
    else:
        reading.add(text)


def _finish(reading: Reading, text: Any, reason: Any, tokens: Any) -> None:
    reading.add(text)
    reading.reason = reason
    reading.tokens = tokens
    reading.end()


def _fail(reading: Reading, question: Question, record: Any, status: int) -> None:
    error = record.get("error") if isinstance(record, dict) else None
    if isinstance(error, dict):
        reading.error = str(error.get("code") or error.get("type"))
    elif isinstance(error, str) and error:
        reading.error = ollama_code(error)
    else:
        reading.broken = f"status {status} without an error that says why: {str(record)[:80]}"
    reading.end()


def ollama_code(sentence: str) -> str:
    """Ollama's dialect has sentences only: back to the code, by how they begin."""
    for words, code in (
        ("no node could answer", "nodes_failed"),
        ("the answer broke off", "nodes_failed"),
        ("too many requests", "queue_full"),
        ("waited too long", "queue_full"),
        ("no node can serve", "no_nodes"),
        ("there are no nodes", "no_nodes"),
        ("model ", "model_not_found"),
    ):
        if sentence.startswith(words):
            return code
    return f"other: {sentence[:60]}"


def _is_short_by_joined(text: str, expected: Expected) -> bool:
    """When an answer with a limit goes on elsewhere, the gateway has to guess how many tokens were told. One piece of
    several characters beyond the common planes counts for several, so the limit may be reached that much early.
    """
    missing = next((count for count in range(8) if "".join(expected.pieces[: -count or None]) == text), None)
    return missing is not None and missing <= 2 * text.count(JOINED)


class Judge:
    """Knows what each group of phones would say."""

    def __init__(self, groups: Mapping[str, PhoneSettings]) -> None:
        self._groups = groups

    def findings(self, question: Question, reading: Reading) -> list[str]:
        """What is wrong, in sentences; nothing, if nothing is."""
        found: list[str] = []
        if reading.broken and not reading.left:
            found.append(f"truncated: {reading.broken}")
        if not reading.left and not reading.broken and reading.ends != 1:
            found.append(f"{reading.ends} terminal records")
        if reading.after_end:
            found.append("something after the end")
        if not found or reading.text:
            problem = self._wrong_text(question, reading)
            if problem:
                found.append(problem)
        return found

    def _wrong_text(self, question: Question, reading: Reading) -> str:
        complete = reading.ends == 1 and reading.error is None and not reading.left and not reading.broken
        if not reading.text and not complete:
            return ""
        if not WORD.search(reading.text) and not {"temperature", "seed"} & question.options.keys():
            return ""  # a salted answer without a word yet: its salt, and so its text, cannot be known
        groups = [question.group] if question.group is not None else list(self._groups)
        due = [self._due(question, self._groups[group], reading.text) for group in groups]
        if any(self._is_right(reading, expected, complete) for expected in due):
            return ""
        if question.fields.get("raw") and reading.text.startswith("\n"):
            return self._wrong_after_line_break(question, reading)
        verdict = verify_answer(reading.text, settings=self._groups[groups[0]])
        what = verdict.problem or ("truncated" if verdict.ok and not verdict.complete else "wrong")
        due_ends = [expected.text[-40:] for expected in due]
        return f"{what}: ...{reading.text[-80:]!r} ({reading.reason}) where {due_ends!r} was due; {verdict.detail}"

    @staticmethod
    def _is_right(reading: Reading, expected: Expected, complete: bool) -> bool:
        if not complete:
            return expected.text.startswith(reading.text)
        if reading.text == expected.text:
            return reading.reason in (None, expected.done_reason)
        return reading.reason == expected.done_reason == "length" and _is_short_by_joined(reading.text, expected)

    def _wrong_after_line_break(self, question: Question, reading: Reading) -> str:
        """A raw prompt has no header, so a fake model that goes on after a line break of its own takes it for the
        caller's: its answer is that to the longer prompt. A real one just goes on.
        """
        options = dict(question.options)
        if "num_predict" in options:
            options["num_predict"] -= 1
        longer = replace(question, prompt=f"{question.prompt}\n", options=options, fields={"raw": True})
        rest = replace(reading, text=reading.text[1:])
        return self._wrong_text(longer, rest)

    @staticmethod
    def _due(question: Question, settings: PhoneSettings, text: str) -> Expected:
        found = WORD.search(text)
        tag = found.group(2) if found else ""
        salt = tag[5:9] if len(tag) > 8 and tag[4] == "x" else "0000"
        options = dict(question.options)
        if "temperature" not in options:
            options["temperature"] = 1
        messages = list(question.messages) if question.messages is not None else None
        return expected_answer(
            messages, prompt=question.prompt, settings=settings, options=options, salt=salt, **question.fields
        )
