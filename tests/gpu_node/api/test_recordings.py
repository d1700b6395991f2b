"""The answers beside what a real Ollama 0.24 answered to the same requests: status, fields, framing.

Where the node means to differ it is listed in `DIFFERENT`, with the reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_node.serving import NAME, Fleet, Model, Served, serving

RECORDINGS = Path(__file__).parents[2] / "recordings" / "0.24"
DIFFERENT = {
    "chat-bad-option-type": "the client's mistake is 400 here, not 500",
    "chat-bad-format": "the client's mistake is 400 here, not 500",
    "chat-bad-image": "images are refused before they are decoded",
    "chat-image-no-vision": "images are refused instead of ignored",
}
CASES = sorted(
    path.stem
    for path in RECORDINGS.glob("*.json")
    if not path.stem.startswith(("fault-", "v1-")) and path.stem not in DIFFERENT
)
OPENAI_CASES = [
    "v1-chat-whole", "v1-chat-stream", "v1-chat-stream-usage", "v1-chat-continued", "v1-completions",
    "v1-completions-stream", "v1-embeddings", "v1-model", "v1-models", "v1-model-unknown", "v1-chat-unknown-model",
    "v1-chat-no-messages", "v1-chat-bad-json",
]  # fmt: skip


def recorded(name: str) -> dict[str, Any]:
    value = json.loads((RECORDINGS / f"{name}.json").read_text())
    assert isinstance(value, dict)
    if name.startswith("chat-too-long"):  # the recording names only the size of its text
        value["request"]["body"]["messages"][0]["content"] = "word " * 6000
    return value


async def answered(served: Served, request: dict[str, Any]) -> Any:
    body = request["body"]
    content = body if isinstance(body, str) else None if body is None else json.dumps(body)
    return await served.client.request(request["method"], request["path"], content=content)


def shape(value: Any) -> Any:
    """Names and kinds; numbers, texts and the lengths of lists are the machine's and the model's."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def body_of(recording: dict[str, Any]) -> str:
    response = recording["response"]
    if "body" in response:
        return str(response["body"])
    return "".join(chunk["text"] for chunk in response["chunks"])


@pytest.mark.parametrize("name", CASES)
async def test_the_answer_has_the_status_fields_and_framing_of_the_recording(name: str) -> None:
    recording = recorded(name)
    async with serving(loaded=name != "ps-empty", real="chunks" in recording["response"]) as served:
        reply = await answered(served, recording["request"])
    response = recording["response"]
    assert reply.status_code == int(response["status_line"].split()[1])
    expected_type = response["headers"].get("Content-Type", "")
    assert reply.headers["content-type"].split(";")[0] == expected_type.split(";")[0]
    if expected_type == "application/x-ndjson":
        assert reply.headers["transfer-encoding"] == "chunked"
    theirs = body_of(recording).splitlines()
    mine = reply.text.splitlines()
    if not expected_type.startswith("application/") or not theirs:
        return
    for one, other in ((mine[0], theirs[0]), (mine[-1], theirs[-1])):
        compare(name, json.loads(one), json.loads(other))


def compare(name: str, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    if "error" in theirs:
        assert set(mine) == {"error"}
        return
    if name in ("show", "tags"):  # what a GGUF says of itself and safetensors do not
        missing = {"projector_info"}
        assert set(theirs) - set(mine) <= missing
        return
    if name == "ps-unloaded":  # recorded a moment before it was gone
        return
    # A count or time of zero is left out by Ollama; here every last record has all of them.
    timings = {"eval_duration": "int", "prompt_eval_duration": "int", "load_duration": "int"}
    if theirs.get("done") and "total_duration" in theirs:
        assert shape(mine) == {**timings, **shape(theirs)}
    elif name == "version":
        assert mine["version"]
    else:
        assert shape(mine) == shape(theirs)


@pytest.mark.parametrize("name", [*CASES, *DIFFERENT])
def test_every_recording_is_there(name: str) -> None:
    assert (RECORDINGS / f"{name}.json").exists()


SAME_ERRORS = [
    "chat-unknown-model", "chat-no-model", "chat-empty-body", "chat-bad-model-name", "chat-too-long-no-truncate",
    "embed-unknown-model", "show-unknown", "generate-unknown-model", "generate-think", "get-chat", "unknown-path",
]  # fmt: skip


@pytest.mark.parametrize("name", SAME_ERRORS)
async def test_errors_that_clients_look_for_are_word_for_word(name: str) -> None:
    recording = recorded(name)
    request = recording["request"]
    async with serving() as served:
        reply = await answered(served, request)
    assert reply.text == body_of(recording)


async def test_a_wrong_option_has_ollamas_words_and_an_honest_status() -> None:
    recording = recorded("chat-bad-option-type")
    async with serving() as served:
        reply = await answered(served, recording["request"])
    assert (reply.status_code, reply.text) == (400, body_of(recording))


async def test_a_wrong_format_has_ollamas_words_and_an_honest_status() -> None:
    recording = recorded("chat-bad-format")
    async with serving() as served:
        reply = await answered(served, recording["request"])
    assert (reply.status_code, reply.text) == (400, body_of(recording))


@pytest.mark.parametrize("name", OPENAI_CASES)
async def test_the_openai_dialect_has_every_field_that_ollamas_has(name: str) -> None:
    recording = recorded(name)
    async with serving(fleet=Fleet(models=[Model(NAME)])) as served:
        reply = await answered(served, recording["request"])
    response = recording["response"]
    assert reply.status_code == int(response["status_line"].split()[1])
    theirs, mine = body_of(recording), reply.text
    if theirs.startswith("data: "):
        assert mine.endswith("data: [DONE]\n\n")
        theirs, mine = (text.split("\n\n")[0].removeprefix("data: ") for text in (theirs, mine))
    missing = paths(json.loads(theirs)) - paths(json.loads(mine))
    assert not missing, missing


def paths(value: Any, here: str = "") -> set[str]:
    """Every name in an object, with what it lies in; of lists the first entry."""
    if isinstance(value, dict):
        return {here}.union(*(paths(part, f"{here}.{name}") for name, part in value.items()))
    if isinstance(value, list) and value:
        return paths(value[0], f"{here}[]")
    return {here}
