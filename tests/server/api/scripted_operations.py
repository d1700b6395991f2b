"""What GPU nodes say to their operations, from a script: for tests of the fleet's models without nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from server.backends.base import Patience
from server.errors import NodeError, NodeUnreachable
from server.nodes import NodeSpec

Said = Mapping[str, Any] | NodeError | asyncio.Event
GPU, MODELS, LOAD, UNLOAD = "/api/gpu", "/api/models", "/api/models/load", "/api/models/unload"


def gpu(free: int = 1000, device: str = "cpu", **more: Any) -> dict[str, Any]:
    account = {"device": device, "budget_bytes": 2000, "used_bytes": 2000 - free, "free_bytes": free, "models": {}}
    return {"gpus": [], "accounts": [account], **more}


def listed(*names: str, state: str = "empty", size: int | None = 600, available: bool = True) -> dict[str, Any]:
    return {"models": [{"name": name, "state": state, "available": available, "size_bytes": size} for name in names]}


def loaded(model: str, **facts: Any) -> dict[str, Any]:
    return {"model": model, "status": "success", "load_seconds": 1.5, **facts}


class ScriptedOperations:
    """`said` maps a node's name and a path to an answer, or to a list of lines; an Event among them holds the node."""

    def __init__(self, said: Mapping[tuple[str, str], Said | Sequence[Said]] | None = None) -> None:
        self.said = dict(said or {})
        self.asked: list[tuple[str, str]] = []
        self.bodies: list[tuple[str, str, Mapping[str, Any]]] = []
        self.open = 0

    async def ask(self, spec: NodeSpec, path: str, timeout_seconds: float) -> dict[str, Any]:
        self.asked.append((spec.name, path))
        return await self._one(self._said(spec, path))

    async def order(self, spec: NodeSpec, path: str, body: Mapping[str, Any], timeout_seconds: float) -> dict[str, Any]:
        self.bodies.append((spec.name, path, body))
        return await self._one(self._said(spec, path))

    async def lines(
        self, spec: NodeSpec, path: str, body: Mapping[str, Any], patience: Patience
    ) -> AsyncGenerator[dict[str, Any], None]:
        self.bodies.append((spec.name, path, body))
        said = self._said(spec, path)
        self.open += 1
        try:
            for one in said if isinstance(said, Sequence) else [said]:
                if isinstance(one, asyncio.Event):
                    await one.wait()
                else:
                    yield await self._one(one)
        finally:
            self.open -= 1

    def _said(self, spec: NodeSpec, path: str) -> Any:
        return self.said.get((spec.name, path), NodeUnreachable(f"{spec.name} has no {path}"))

    async def _one(self, said: Any) -> dict[str, Any]:
        if isinstance(said, asyncio.Event):
            await said.wait()
            raise NodeUnreachable("nobody waits for this")
        if isinstance(said, NodeError):
            raise said
        return dict(said)
