"""The fake phone is held to what real Ollama answered: every recorded request, its status, framing, fields, types
and errors.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.phone import FakeModel, FakePhone, Fault, PhoneSettings
from tests.fakes.phone_wire import WireAnswer, ask

RECORDINGS = Path(__file__).parent.parent / "recordings"
VERSIONS = {"0.6": "0.6.8", "0.24": "0.24.0", "0.33": "0.33.0-rc2"}

# Recordings that are no single exchange; the test that holds the phone to each is named.
ELSEWHERE = {
    "fault-client-gone": "CPU seconds of a runner: test_phone.py, test_a_client_that_leaves_stops_the_speaking",
    "fault-client-gone-whole": "the same for a whole answer",
    "fault-waiting": "times of three requests: test_phone.py, test_nothing_is_sent_before_the_first_token",
    "fault-queue-full": "five requests at once: test_phone.py, test_a_full_queue_refuses_at_once",
}
# What a recording holds by accident of its moment or by what that model had to say.
NOT_COMPARED: dict[tuple[str, str], tuple[str, str]] = {
    ("0.33", "ps-empty"): ("models", "a model was still loaded from the case before"),
    ("0.24", "chat-too-long"): ("eval_duration", "Go leaves a duration of 0 out; the model said nothing"),
    ("0.24", "generate-raw"): ("eval_duration", "Go leaves a duration of 0 out; the model said nothing"),
    ("0.6", "generate-json"): ("done_reason eval_count", "the model's JSON is not ours"),
    ("0.24", "generate-json"): ("done_reason eval_count", "the model's JSON is not ours"),
    ("0.33", "generate-json"): ("done_reason eval_count", "the model's JSON is not ours"),
    ("0.6", "chat-schema"): ("eval_count", "the model's JSON is not ours"),
    ("0.24", "chat-schema"): ("eval_count", "the model's JSON is not ours"),
    ("0.33", "chat-schema"): ("eval_count", "the model's JSON is not ours"),
}
# What was done to the server while the request ran.
FAULTS = {
    "fault-runner-killed": Fault.error_line(6),
    "fault-runner-killed-generate": Fault.error_line(6),
    "fault-runner-killed-openai": Fault.error_line(6),
    "fault-runner-killed-whole": Fault.error_line(6),
    "fault-server-killed": Fault.cut(6),
    "fault-server-terminated": Fault.cut(6),
    "fault-server-frozen": Fault.freeze(0.01, after_tokens=6),
    "fault-load-failed": Fault.error(500, "llama-server process has terminated: signal: illegal instruction"),
}
TOLD_BY_THE_MODEL = ("content", "text", "thinking")
COUNTED = ("eval_count", "done_reason")


@dataclass(frozen=True)
class Case:
    version: str
    name: str
    recording: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.version}-{self.name}"

    @property
    def response(self) -> dict[str, Any]:
        return self.recording["response"]

    @property
    def texts(self) -> list[str]:
        """The recorded body as its chunks, without those that were left out."""
        chunks = self.response.get("chunks")
        return [self.response["body"]] if chunks is None else [chunk["text"] for chunk in chunks if "text" in chunk]

    @property
    def body(self) -> Any:
        body = self.recording["request"]["body"]
        if isinstance(body, str):
            return body.encode()
        if self.name.startswith("chat-too-long"):
            return {**body, "messages": [{"role": "user", "content": "word " * 6000}]}
        return body


def cases() -> list[Case]:
    found = []
    for version in VERSIONS:
        for path in sorted((RECORDINGS / version).glob("*.json")):
            if path.stem not in ELSEWHERE:
                found.append(Case(version, path.stem, json.loads(path.read_text())))
    return found


def settings_for(case: Case) -> PhoneSettings:
    """A phone with the recorded models, whose answer is as long as the recorded one."""
    listed = json.loads("".join(Case(case.version, "tags", _recording(case.version, "tags")).texts))["models"]
    models = tuple(FakeModel(entry["name"], digest=entry["digest"], size=entry["size"]) for entry in listed)
    settings = PhoneSettings(version=VERSIONS[case.version], models=models)
    count, reason = _told(case)
    length = count - 1 if reason == "stop" else count + 10
    settings.answer_tokens = (length, length)
    return settings


def _recording(version: str, name: str) -> dict[str, Any]:
    return json.loads((RECORDINGS / version / f"{name}.json").read_text())


def _told(case: Case) -> tuple[int, str]:
    """How many tokens the recorded model told, and why it ended."""
    text = "".join(case.texts)
    count = re.search(r'"(?:eval_count|completion_tokens|output_tokens)":(\d+)', text)
    reason = re.search(r'"(?:done_reason|finish_reason)":"(\w+)"', text)
    number = int(count.group(1)) if count else text.count('"finish_reason":null') + 1
    return number, reason.group(1) if reason else "length"


async def prepare(case: Case, phone: FakePhone) -> None:
    """What the recorded server had done just before."""
    load = {"model": "smollm2:135m"}
    if case.name in ("ps-loaded", "ps-unloaded", "generate-unload"):
        await ask(phone.port, "POST", "/api/generate", load)
    if case.name == "ps-unloaded":
        await ask(phone.port, "POST", "/api/generate", {**load, "keep_alive": 0})
    if case.name in FAULTS:
        phone.fail(FAULTS[case.name], times=1)


@pytest.mark.parametrize("case", cases(), ids=str)
async def test_recorded_exchange(case: Case) -> None:
    async with FakePhone(settings_for(case)) as phone:
        await prepare(case, phone)
        request = case.recording["request"]
        answer = await ask(phone.port, request["method"], request["path"], case.body)
    assert answer.status_line == case.response["status_line"]
    assert answer.ended == case.recording["ended"]
    assert answer.last_chunk_seen == case.response.get("last_chunk_seen")
    assert framing(answer.headers) == framing(case.response["headers"])
    left_out, _ = NOT_COMPARED.get((case.version, case.name), ("", ""))
    compare_bodies(case, answer, left_out.split())


def framing(headers: dict[str, str]) -> dict[str, str]:
    """Headers as far as they are promises: dates and lengths differ."""
    return {name: "" if name in ("Date", "Content-Length") else value for name, value in headers.items()}


def compare_bodies(case: Case, answer: WireAnswer, left_out: list[str]) -> None:
    recorded = [event for text in case.texts for event in events(text)]
    told = [event for event in events(answer.body.decode())]
    if not recorded or not isinstance(recorded[0], dict):
        assert told == recorded
        return
    assert shape(told[0], left_out) == shape(recorded[0], left_out)
    assert shape(told[-1], left_out) == shape(recorded[-1], left_out)
    assert {str(shape(event, left_out)) for event in told} == {str(shape(event, left_out)) for event in recorded}
    for ours, theirs in ((told[0], recorded[0]), (told[-1], recorded[-1])):
        compare_facts(ours, theirs, left_out)
    if case.response.get("last_chunk_seen") is not None and len(case.texts) > 1:
        assert len(events(answer.chunks[-1].decode())) == len(events(case.texts[-1])), "events in the last chunk"


def events(text: str) -> list[Any]:
    """JSON lines, SSE events, or the text itself if it is neither."""
    if not text:
        return []
    if text.startswith("data: "):
        parts = [part.removeprefix("data: ") for part in text.strip().split("\n\n")]
        return [part if part == "[DONE]" else json.loads(part) for part in parts]
    try:
        return [json.loads(line) for line in text.strip().split("\n")]
    except ValueError:
        return [text]


def shape(value: Any, left_out: list[str]) -> Any:
    """Names in their order, and types. A list is the shapes that occur in it."""
    if isinstance(value, dict):
        return [(name, shape(inner, left_out)) for name, inner in value.items() if name not in left_out]
    if isinstance(value, list):
        return ["list", *sorted({str(shape(inner, left_out)) for inner in value})]
    return type(value).__name__


def compare_facts(ours: Any, theirs: Any, left_out: list[str]) -> None:
    """What must be equal to the letter: errors, names, reasons, counts, the rendering."""
    if not isinstance(theirs, dict):
        assert ours == theirs
        return
    for name, value in theirs.items():
        if name in left_out:
            continue
        if name in ("error", "role", "object", "rendered_template", "done", "index", "type", "stop_reason", *COUNTED):
            assert without_counts(ours[name]) == without_counts(value), name
        elif name == "model" and isinstance(value, str):
            assert ours[name] == value
        elif name in ("created_at", "expires_at", "modified_at") and isinstance(value, str):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", ours[name])
        elif isinstance(value, dict):
            compare_facts(ours[name], value, left_out)
        elif name == "choices" and value:
            compare_facts(ours[name][0], value[0], left_out)


def without_counts(value: Any) -> Any:
    """Two tokenizers count a prompt differently."""
    return re.sub(r"\d{4} tokens|\"n_prompt_tokens\":\d+", "#", value) if isinstance(value, str) else value


def test_every_exception_is_a_recording_and_has_a_reason() -> None:
    for version, name in NOT_COMPARED:
        assert (RECORDINGS / version / f"{name}.json").exists()
    for name in ELSEWHERE:
        assert (RECORDINGS / "0.24" / f"{name}.json").exists()
    assert all(reason for _, reason in NOT_COMPARED.values())
    assert len(cases()) > 200


def exchanges(version: str) -> list[tuple[str, dict[str, Any]]]:
    """What the `ollama` command sent, each exchange with the command it belongs to."""
    found, command = [], ""
    for line in (RECORDINGS / "cli" / f"{version}.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "command" in entry:
            command = entry["command"]
        else:
            found.append((command, entry))
    return found


@pytest.mark.parametrize("version", ["0.24", "0.33"])
async def test_every_command_works(version: str) -> None:
    """The recorded answers are cut after 1,500 characters, so only a first line that is whole is compared."""
    settings = PhoneSettings(version=VERSIONS[version], models=(FakeModel(), FakeModel("tiny:latest")))
    async with FakePhone(settings) as phone:
        for command, entry in exchanges(version):
            answer = await ask(
                phone.port, entry["method"], entry["path"], entry["body"].encode() or None, headers=entry["headers"]
            )
            assert answer.status == entry["status"], (command, entry["path"])
            if entry["path"] == "/api/pull":
                assert b'"error":"pull model manifest: ' in answer.body  # the reason is the network's own
                continue
            lines = entry["answer"].strip().split("\n")
            whole = lines if len(entry["answer"]) < 1500 else lines[:-1]
            ours = answer.body.decode().strip().split("\n")
            if whole and whole[0].startswith("{") and whole[0].endswith("}"):
                assert shape(json.loads(ours[0]), []) == shape(json.loads(whole[0]), []), (command, entry["path"])


async def test_the_command_meets_its_model_again() -> None:
    """`ollama ps` after `ollama run`, and nothing after `ollama stop`, in the order of the recording."""
    async with FakePhone(PhoneSettings(version=VERSIONS["0.33"])) as phone:
        seen = []
        for command, entry in exchanges("0.33"):
            if command.startswith("ollama run no-such"):
                break
            answer = await ask(phone.port, entry["method"], entry["path"], entry["body"].encode() or None)
            if entry["path"] == "/api/ps":
                seen = answer.json["models"]
        assert [model["name"] for model in seen] == ["smollm2:135m"]
        assert phone.resident() == []
