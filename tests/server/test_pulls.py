"""What a pull's records and errors mean, and when a further try is worth it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from server.errors import NodeBroken, NodeIncapable, NodeRefused, NodeStalled, NodeUnreachable
from server.nodes import NodeStatus
from server.pulls import (
    MOST_STEPS,
    PAUSES_SECONDS,
    SILENT_SECONDS,
    STANDSTILL_SECONDS,
    Progress,
    hindrance,
    is_final,
    listed_key,
    pulls_for_itself,
    shown,
    words_of,
)
from tests.server.scripted_nodes import node_of, report_of


def line(digest: str, completed: int | None = None, total: int = 100) -> dict[str, Any]:
    told: dict[str, Any] = {"status": "pulling x", "digest": digest, "total": total}
    return told if completed is None else {**told, "completed": completed}


def test_bytes_of_all_parts_count_and_never_shrink() -> None:
    progress = Progress()
    for record in (line("a"), line("a", 40), line("b", 7), line("a", 20), line("a", True), {"status": "verifying"}):
        progress = progress.told(shown(record))
    assert progress.completed == 47


def test_only_a_new_step_or_a_further_byte_is_progress() -> None:
    progress = Progress()
    for moment, record in enumerate((line("a", 5), line("a", 5), {"status": "x"}, line("a", 4), {"status": "x"}), 1):
        progress = progress.told(record, float(moment))
    assert progress.advanced_at == 3.0
    assert progress.told(line("a", 6), 9.0).advanced_at == 9.0


def test_who_tells_of_new_steps_without_end_is_stopped() -> None:
    progress = Progress()
    for number in range(MOST_STEPS):
        progress = progress.told(line(f"sha256:{number}", 1))
    assert progress.told(line("sha256:0", 2)).completed == MOST_STEPS + 1
    with pytest.raises(NodeBroken, match="steps"):
        progress.told(line("sha256:more", 1))


def test_without_a_further_byte_the_pauses_grow_and_end() -> None:
    progress, pauses = Progress(), []
    while (pause := (progress := progress.failed()).pause_seconds) is not None:
        pauses.append(pause)
    assert tuple(pauses) == PAUSES_SECONDS


def test_a_further_byte_renews_the_hope() -> None:
    progress = Progress()
    for completed in range(1, 40):
        progress = progress.told(line("a", completed)).failed()
        assert progress.pause_seconds == PAUSES_SECONDS[0]
        progress = progress.failed()
        assert progress.pause_seconds == PAUSES_SECONDS[1]


VERIFYING = {"status": "verifying sha256 digest"}


@pytest.mark.parametrize(
    ("last", "others_wait", "limit"),
    [
        ({"status": "pulling manifest"}, True, STANDSTILL_SECONDS),
        (line("a", 5), True, STANDSTILL_SECONDS),
        (line("a", 5), False, SILENT_SECONDS),
        (VERIFYING, True, SILENT_SECONDS),  # gigabytes on a slow phone, and not a word
    ],
)
def test_how_long_a_pull_may_stand_still(last: dict[str, Any], others_wait: bool, limit: float) -> None:
    progress = Progress().begun(100.0).told(shown(last), 200.0)
    assert progress.standstill(200.0 + limit, others_wait=others_wait) is None
    error = progress.standstill(200.1 + limit, others_wait=others_wait)
    assert error is not None and error.message == f"it brought nothing more for {limit:g} s"


def test_a_try_begins_anew_where_the_last_one_was_checking() -> None:
    """And what a further try tells again of what is there is no progress, but shows what it is at."""
    progress = Progress().told({"status": "pulling manifest"}, 1.0).told(line("a", 5), 2.0).told(VERIFYING, 3.0)
    assert not progress.loads
    progress = progress.failed().begun(100.0)
    assert progress.loads and progress.advanced_at == 100.0
    for record in ({"status": "pulling manifest"}, line("a", 5)):
        assert progress.told(record, 150.0) is progress
    again = progress.told(VERIFYING, 160.0)
    assert not again.loads and again.advanced_at == 100.0


@pytest.mark.parametrize(
    ("error", "failures", "others_wait", "gives_way"),
    [
        (NodeStalled("still", "load"), 1, True, True),
        (NodeStalled("still", "load"), 6, False, False),
        (NodeBroken("unexpected EOF"), 1, True, False),  # bytes have come since the last one
        (NodeBroken("unexpected EOF"), 2, True, True),
        (NodeUnreachable("refused"), 2, False, False),
    ],
)
def test_who_lets_others_go_first(error: Any, failures: int, others_wait: bool, gives_way: bool) -> None:
    assert Progress(failures=failures).gives_way(error, others_wait=others_wait) is gives_way


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("write /x/blobs/sha256-1-partial: no space left on device", "its storage is full"),
        ("pull model manifest: file does not exist", "the library has no such model"),
        ("invalid model name", "this is no name of a model"),
        ("The model you are attempting to pull requires a newer version of Ollama.", "its Ollama is too old"),
    ],
)
def test_what_no_further_try_mends(words: str, meaning: str) -> None:
    error = NodeBroken(f"10.0.0.1:11434 failed: {words}")
    assert is_final(error)
    assert words_of(error).startswith(meaning) and words in words_of(error)


def test_what_a_further_try_may_mend() -> None:
    for error in (NodeBroken("max retries exceeded: EOF"), NodeStalled("silent", "load")):
        assert not is_final(error) and words_of(error) == error.message
    away = NodeBroken('pull model manifest: Get "https://x": dial tcp: lookup x: no such host')
    assert not is_final(away) and words_of(away).startswith("it does not reach the library (")
    gone = NodeUnreachable("cannot connect to 10.0.0.1:11434: Connection refused")
    assert not is_final(gone) and words_of(gone).startswith("it is not reached (")


def test_signed_addresses_are_cut_short() -> None:
    address = "https://x.example/blobs/data?X-Amz-Credential=abc%2Fdef&X-Amz-Signature=" + "0" * 300
    words = words_of(NodeBroken(f'max retries exceeded: Get "{address}": net/http: TLS handshake timeout'))
    assert words == 'max retries exceeded: Get "https://x.example/blobs/data?…": net/http: TLS handshake timeout'
    assert words_of(NodeBroken("why? because=1")) == "why? because=1"
    assert len(words_of(NodeBroken("x" * 2000))) == 400
    assert is_final(NodeBroken("tls: failed to verify certificate: x509: certificate has expired or is not yet valid"))


def test_refusals_are_final() -> None:
    assert is_final(NodeRefused("bad", 400)) and is_final(NodeIncapable("a gateway keeps no models", 501))


def test_only_what_is_meant_for_the_caller_is_passed_on() -> None:
    record = {"status": "pulling x", "digest": "sha256:1", "total": 5, "completed": 2, "node": "evil", "x": [1]}
    assert shown(record) == {"status": "pulling x", "digest": "sha256:1", "total": 5, "completed": 2}
    odd = {"status": "y" * 1000, "digest": 5, "total": "5", "completed": -1}
    assert shown(odd) == {"status": "y" * 200}
    assert shown({"status": {"x": ["\ud800"]}, "digest": "", "total": True, "completed": 1.5}) == {"status": ""}


@pytest.mark.parametrize("word", ["error", "success", "waiting", "trying again", "done"])
def test_no_node_says_what_the_gateway_says_of_it(word: str) -> None:
    assert shown({"status": word}) == {"status": f"it says: {word}"}


def test_an_error_without_words_has_some() -> None:
    assert words_of(NodeBroken("")) == "it failed without a word"


@pytest.mark.parametrize(
    ("asked", "listed"),
    [("Qwen:1b", "qwen:1b"), ("qwen:latest", "qwen"), ("library/qwen:1b", "qwen:1b"), ("me/qwen", "me/qwen"),
     ("registry.ollama.ai/library/qwen:1b", "qwen:1b"), ("registry.ollama.ai/me/qwen", "me/qwen"),
     ("hf.co/Me/Qwen-GGUF:Q4_K_M", "hf.co/me/qwen-gguf:q4_k_m")],
)  # fmt: skip
def test_how_a_model_is_listed_once_it_is_there(asked: str, listed: str) -> None:
    assert listed_key(asked) == listed
    assert hindrance(node_of("x", report_of((listed,)), models=(listed,)), asked) is None


def test_who_is_not_asked_and_why() -> None:
    phone = node_of("x", report_of(("a:1b",)))
    assert hindrance(phone, "b:1b") is None and pulls_for_itself(phone)
    gpu = node_of("x", report_of(("a:1b",), gpu_node=True))
    assert "GPU node" in (hindrance(gpu, "b:1b") or "") and not pulls_for_itself(gpu)
    assert "GPU node" in (hindrance(node_of("x", kind="relay"), "b:1b") or "")
    assert "as it likes" in (hindrance(node_of("x", kind="openai"), "b:1b") or "")
    assert "fleet file" in (hindrance(node_of("x", models=("a:1b",)), "b:1b") or "")
    assert hindrance(node_of("x", models=("B:1b",)), "b:1b:latest".removesuffix(":latest")) is None
    assert "drained" in (hindrance(replace(phone, status=NodeStatus.DISABLED), "b:1b") or "")
    assert "leaving" in (hindrance(replace(phone, status=NodeStatus.DRAINING), "b:1b") or "")
    silent = replace(phone, status=NodeStatus.SILENT, last_error="no route")
    assert hindrance(silent, "b:1b") == "it does not answer: no route"
    assert hindrance(silent, "b:1b", tried=True) is None  # it may come back
