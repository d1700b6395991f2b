"""One phone that says to a pull what the test wants, and what was told of one phone."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from server.api.model_pulling import Pulling, PullWish, Step
from server.nodes import NodeId
from server.registry import ProbeFailed
from tests.server.api.gateway import fleet, gateway, report, spec
from tests.server.api.scripted_backend import ScriptedBackend
from tests.server.api.scripted_operations import Said, ScriptedOperations

PATH = "/api/models/pull"


def of(lines: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if key != "node"} for one in lines if one.get("node") == name]


class Scripted:
    """One phone that says what the test wants."""

    def __init__(self, *said: Said) -> None:
        self.registry = fleet((spec("kitchen"), report("m:1b")))
        self.operations = ScriptedOperations({("kitchen", "/api/pull"): said})
        backends: Any = {"ollama": ScriptedBackend()}
        self.made = gateway(registry=self.registry, operations=self.operations, backends=backends)
        self.pauses: list[float] = []

    def steps(self, model: str = "qwen:1b") -> AsyncGenerator[Step, None]:
        async def note(seconds: float) -> None:
            self.pauses.append(seconds)

        return Pulling(self.made.services, note).steps(PullWish(model, None))

    async def told(self) -> list[dict[str, Any]]:
        return [record async for record, _ in self.steps()]

    def silence(self) -> None:
        for moment in range(3):
            self.registry.emit(ProbeFailed(NodeId("kitchen"), "no answer", 2_000.0 + moment))
