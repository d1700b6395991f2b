"""One phone that says to a pull what the test wants, and what was told of one phone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from server.api.model_pulling import Pulling, PullWish, Step
from server.nodes import NodeId, NodeSpec
from server.registry import ProbeFailed
from tests.server.api.gateway import fleet, gateway, report, spec
from tests.server.api.scripted_backend import ScriptedBackend
from tests.server.api.scripted_operations import Said, ScriptedOperations

PATH = "/api/models/pull"


def of(lines: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if key != "node"} for one in lines if one.get("node") == name]


class Several:
    """Phones that say what the test wants, each call the next script of theirs; on a loop whose clock jumps."""

    def __init__(self, **said: Sequence[Sequence[Said]]) -> None:
        self.registry = fleet(*[(spec(name), report("m:1b")) for name in said])
        self.operations = InTurn(said)
        backends: Any = {"ollama": ScriptedBackend()}
        made = gateway(registry=self.registry, operations=self.operations, backends=backends)
        self.services = replace(made.services, loop_time=asyncio.get_running_loop().time)

    async def told(self, at_once: int = 1) -> list[tuple[float, dict[str, Any]]]:
        """Each record with its moment."""
        wish, now = PullWish("qwen:1b", None, at_once), self.services.loop_time
        return [(now(), record) async for record, _ in Pulling(self.services).steps(wish)]


class InTurn(ScriptedOperations):
    """The last script of a phone is said again and again. `most`: so many downloads were open at once."""

    def __init__(self, scripts: Mapping[str, Sequence[Sequence[Said]]]) -> None:
        super().__init__()
        self.scripts = {name: list(each) for name, each in scripts.items()}
        self.turns: list[str] = []
        self.most = 0

    def _said(self, spec: NodeSpec, path: str) -> Any:
        self.turns.append(spec.name)
        self.most = max(self.most, self.open + 1)
        scripts = self.scripts[spec.name]
        return scripts.pop(0) if len(scripts) > 1 else scripts[0]


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
