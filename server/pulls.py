"""What a node tells while it pulls a model: how far it is, what its errors mean, when a further try is worth it. Pure.

Ollama's `/api/pull` tells its errors as lines under status 200, in words only, and keeps what it has of a download, so
that a further pull goes on there. Shapes: `{"status"}`, `{"status", "digest", "total", "completed"?}`, `{"error"}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from server.errors import NodeBroken, NodeError, NodeRefused, NodeStalled, NodeUnreachable
from server.nodes import ModelKey, Node, NodeStatus, model_key
from server.placement import may_load

SUCCESS = "success"
OURS = (SUCCESS, "error", "waiting", "trying again", "done")  # what the gateway says of a node, and no node for itself
LONGEST_STATUS = 200
LONGEST_DIGEST = 200
MOST_STEPS = 1024  # distinct ones of one node: a model has a few parts, with a step or two for each
LONGEST_WORDS = 400
_SIGNATURE = re.compile(r"(?<=[^\s])\?[^\s\"']+=[^\s\"']*")  # the library's addresses carry half a page of it
PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)  # half a minute: a phone that changes its Wi-Fi is back by then
# Ollama tells of a download many times a second, also of one that stands still; nothing comes while it checks gigabytes
# on a slow phone.
SILENT_SECONDS = 300.0
STANDSTILL_SECONDS = 60.0  # while others wait for its place: by then Ollama itself has tried the part several times
FIRST_STEP = "pulling manifest"
# What no further try mends, by Ollama's words, and what it means.
FINAL = (
    ("no space left on device", "its storage is full"),
    ("disk quota exceeded", "its storage is full"),
    ("file does not exist", "the library has no such model"),
    ("invalid model name", "this is no name of a model"),
    ("requires a newer version of ollama", "its Ollama is too old for this model"),
    ("unauthorized", "the library does not give this model to everybody"),
    ("permission denied", "it may not write where its models are"),
    ("read-only file system", "it may not write where its models are"),
    ("x509:", "it does not trust the library: its clock is wrong, or it lacks certificates"),
)
NO_NETWORK = ("no such host", "server misbehaving", "network is unreachable", "i/o timeout", "connection refused")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one node is, over all parts of the model and all tries."""

    parts: Mapping[str, int] = field(default_factory=dict)  # bytes that are there, by digest
    steps: frozenset[tuple[str, str]] = frozenset()  # status and digest, all that were told
    advanced_at: float = 0.0  # when a step or a byte was new
    failures: int = 0  # in a row, without a byte more
    furthest: int = 0  # bytes, at the last failure
    loads: bool = True  # from the library; else it checks or writes what it has, in which no bytes come

    @property
    def completed(self) -> int:
        return sum(self.parts.values())

    def told(self, record: Mapping[str, Any], now: float = 0.0) -> Progress:
        """After one record of the node, as `shown` has it. Raises NodeBroken for one that tells without end."""
        digest, completed = record.get("digest", ""), record.get("completed", 0)
        step = (record["status"], digest)
        is_new, is_more = step not in self.steps, bool(digest) and completed > self.parts.get(digest, 0)
        loads = bool(digest) or record["status"] == FIRST_STEP
        if not is_new and not is_more:
            return self if loads is self.loads else replace(self, loads=loads)
        if is_new and len(self.steps) >= MOST_STEPS:
            raise NodeBroken(f"it told of more than {MOST_STEPS} steps, and none was the last")
        parts = {**self.parts, digest: completed} if is_more else self.parts
        steps = self.steps | {step} if is_new else self.steps
        return replace(self, parts=parts, steps=steps, advanced_at=now, loads=loads)

    def begun(self, now: float) -> Progress:
        """At the beginning of a try."""
        return replace(self, advanced_at=now, loads=True)

    def standstill(self, now: float, *, others_wait: bool) -> NodeStalled | None:
        """Has it stood still for so long that this try is to be broken off? Sooner where its place is wanted."""
        limit = STANDSTILL_SECONDS if others_wait and self.loads else SILENT_SECONDS
        if now - self.advanced_at <= limit:
            return None
        return NodeStalled(f"it brought nothing more for {limit:g} s", "load")

    def failed(self) -> Progress:
        """After a failure that another try may mend: bytes that came since the last one renew the hope."""
        failures = self.failures + 1 if self.completed <= self.furthest else 1
        return replace(self, failures=failures, furthest=max(self.furthest, self.completed))

    def gives_way(self, error: NodeError, *, others_wait: bool) -> bool:
        """After the failure: do those that wait go first? Not where it broke off on the way, and may soon be whole."""
        return others_wait and (isinstance(error, NodeStalled) or self.failures > 1)

    @property
    def pause_seconds(self) -> float | None:
        """How long to wait before the next try; None: give up."""
        return PAUSES_SECONDS[self.failures - 1] if self.failures <= len(PAUSES_SECONDS) else None


def shown(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is passed on of a node's record: these fields, where they are what they should be."""
    status, digest = record.get("status"), record.get("digest")
    told: dict[str, Any] = {"status": status[:LONGEST_STATUS] if isinstance(status, str) else ""}
    if told["status"] in OURS:
        told["status"] = f"it says: {told['status']}"
    if isinstance(digest, str) and digest:
        told["digest"] = digest[:LONGEST_DIGEST]
    for name in ("total", "completed"):
        if type(record.get(name)) is int and record[name] >= 0:
            told[name] = record[name]
    return told


def is_final(error: NodeError) -> bool:
    """Would a further try end in the same way?"""
    return isinstance(error, NodeRefused) or _meaning(error.message) is not None


def words_of(error: NodeError) -> str:
    """The node's error in plain words, with its own behind them."""
    meaning, told = _meaning(error.message), _SIGNATURE.sub("?…", error.message)[:LONGEST_WORDS]
    if isinstance(error, NodeUnreachable):
        meaning = "it is not reached"
    elif meaning is None and any(words in told.lower() for words in NO_NETWORK):
        meaning = "it does not reach the library"
    if meaning is None:
        return told or "it failed without a word"
    return f"{meaning} ({told})"


def _meaning(message: str) -> str | None:
    text = message.lower()
    return next((meaning for words, meaning in FINAL if words in text), None)


def listed_key(model: str) -> ModelKey:
    """How the model is listed once it is there: Ollama leaves out its own library's name."""
    return ModelKey(model_key(model).removeprefix("registry.ollama.ai/").removeprefix("library/"))


def pulls_for_itself(node: Node) -> bool:
    """A phone or another Ollama: GPU nodes fetch when they load, other servers keep what they like."""
    return node.spec.kind == "ollama" and node.spec.origin != "embedded" and not node.is_gpu_node


def hindrance(node: Node, model: str, *, tried: bool = False) -> str | None:
    """Why this node is not asked to pull the model; None where it is. One that has fallen silent is tried again."""
    if node.spec.kind == "openai":
        return "it is a server that keeps its models as it likes"
    if not pulls_for_itself(node):
        return "it is a GPU node, which fetches a model when it loads it (POST /api/models/load)"
    if not may_load(node, listed_key(model)):
        return "the fleet file lets it serve other models only"
    match node.status:
        case NodeStatus.DISABLED:
            return "it is drained: the fleet file says to leave it alone"
        case NodeStatus.DRAINING:
            return "it is leaving the fleet"
        case NodeStatus.SILENT | NodeStatus.UNKNOWN if not tried:
            return f"it does not answer: {node.last_error}" if node.last_error else "it has not answered yet"
    return None
