"""Asks all GPU nodes the same at once, and waits for none of them longer than for a probe.

What they say is passed on unread; who says nothing is named with the reason. Knows no path's meaning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.api.services import Services
from server.backends.operations import Record
from server.errors import NodeBusy, NodeError
from server.nodes import Node, NodeStatus

# Of connections that one survey opens; more nodes than these take turns, within the same time.
CALLS_AT_ONCE = 256


@dataclass(slots=True)
class Heard:
    """What one node said, by path; `error` tells why it did not."""

    node: Node
    answers: dict[str, Record] = field(default_factory=dict)
    error: str | None = None

    def record(self) -> dict[str, Any]:
        """For lists of those that were not heard."""
        return {"node": self.node.name, "id": self.node.id, "error": self.error}


class NodeSurvey:
    def __init__(self, services: Services) -> None:
        self._registry = services.registry
        self._operations = services.operations
        self._seconds = services.settings.probe_timeout_s

    async def of_all(self, *paths: str) -> list[Heard]:
        """Every GPU node, in the order of the fleet; silent ones are known to be, and are not asked."""
        nodes = self._registry.fleet.nodes.values()
        ready = [node for node in nodes if node.status is NodeStatus.READY and node.is_gpu_node]
        heard = {one.node.id: one for one in await self.of(ready, *paths)}
        for node in nodes:
            if node.status is NodeStatus.SILENT and (node.report is None or node.is_gpu_node):
                heard[node.id] = Heard(node, error=f"silent: {node.last_error or 'it does not answer'}")
        return [heard[node.id] for node in nodes if node.id in heard]

    async def of(self, nodes: Collection[Node], *paths: str) -> list[Heard]:
        limit = asyncio.Semaphore(CALLS_AT_ONCE)
        heard = [Heard(node, error=f"silent: no answer within {self._seconds:g} s") for node in nodes]
        tasks = [asyncio.create_task(self._hear(one, paths, limit)) for one in heard]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=self._seconds)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return heard

    async def _hear(self, heard: Heard, paths: Sequence[str], limit: asyncio.Semaphore) -> None:
        async with limit:
            try:
                answers = {path: await self._operations.ask(heard.node.spec, path, self._seconds) for path in paths}
            except NodeBusy as error:
                heard.error = f"busy: {error.message}"
            except NodeError as error:
                heard.error = error.message
            else:
                heard.answers, heard.error = answers, None
