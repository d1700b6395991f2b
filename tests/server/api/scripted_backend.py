"""A backend that answers from a script: for calls that go to nodes directly."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from server.backends.base import Call
from server.errors import NodeError, NodeUnreachable
from server.exchange import NodeDone, NodeEvent
from server.nodes import NodeSpec, ProbeReport
from server.patience import Patience


class ScriptedBackend:
    """`failing` maps a node's name to the error that every call to it ends in."""

    def __init__(self, failing: dict[str, NodeError] | None = None) -> None:
        self.failing = failing or {}
        self.report: ProbeReport | None = None
        self.probed: list[str] = []
        self.calls: list[tuple[str, str, Call]] = []
        self.shown: list[tuple[str, str]] = []

    def _check(self, spec: NodeSpec) -> None:
        if spec.name in self.failing:
            raise self.failing[spec.name]

    async def probe(self, spec: NodeSpec, timeout_seconds: float) -> ProbeReport:
        self.probed.append(spec.name)
        if self.report is None:
            raise NodeUnreachable("asleep again")
        return self.report

    async def stream(self, spec: NodeSpec, call: Call, patience: Patience) -> AsyncGenerator[Sequence[NodeEvent], None]:
        self.calls.append(("stream", spec.name, call))
        self._check(spec)
        yield [NodeDone("load", call.model)]

    async def render(self, spec: NodeSpec, call: Call, timeout_seconds: float) -> str:
        self.calls.append(("render", spec.name, call))
        self._check(spec)
        return f"<{spec.name}> {call.prompt or call.messages[-1]['content']}"

    async def show(self, spec: NodeSpec, model: str, timeout_seconds: float, verbose: bool = False) -> dict[str, Any]:
        self.shown.append((spec.name, model))
        self._check(spec)
        return {"details": {"family": "llama"}, "by": spec.name, **({"all": True} if verbose else {})}

    async def aclose(self) -> None: ...
