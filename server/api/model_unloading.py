"""A model let go: by the node that was named, or by all that have it, each with its own word on it.

Waits for no slow node. GPU nodes let running answers end first and say so; phones are asked by an empty prompt that
keeps the model for no time.
"""

from __future__ import annotations

import asyncio
from typing import Any

from server.api.model_loading import load_error, named
from server.api.model_places import ModelPlaces
from server.api.nodes_direct import CALLS_AT_ONCE, UNLOAD_SECONDS, NodesDirect, Target
from server.api.services import Services
from server.backends.base import Call
from server.errors import NodeError, NodeStalled
from server.nodes import ModelKey, NodeStatus, model_key
from server.placement import Candidate, may_load, node_named

UNLOAD_PATH = "/api/models/unload"

Record = dict[str, Any]


class Unloading:
    def __init__(self, services: Services) -> None:
        self._registry = services.registry
        self._operations = services.operations
        self._backends = services.backends
        self._places = ModelPlaces(services)
        self._nodes = NodesDirect(services)

    async def unload(self, model: str, node: str | None) -> Record:
        """What each node said. Raises a GatewayError where none did it."""
        meant = self._places.meant(model)
        if node is not None:
            places = [self._places.at(node_named(node, self._registry.fleet.nodes.values()), meant, {})]
        else:
            places = self._holders(meant)
        limit = asyncio.Semaphore(CALLS_AT_ONCE)
        tasks = [asyncio.create_task(self._ask(place, limit)) for place in places]
        try:
            done, _ = await asyncio.wait(tasks, timeout=UNLOAD_SECONDS)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        told = [task.result() if task in done else _late() for task in tasks]
        failures = [(place, one) for place, one in zip(places, told, strict=True) if isinstance(one, NodeError)]
        if len(failures) == len(places):
            raise load_error(self._places.unknown(meant), failures, "unload")
        nodes = [_record(place, one) for place, one in zip(places, told, strict=True)]
        return {"model": meant, "status": _status(nodes), "nodes": nodes}

    def _holders(self, model: str) -> list[Candidate]:
        """All nodes that may hold it. Where none tells of it, a GPU node may have another name for a model of its."""
        key = model_key(model)
        able = [
            node
            for node in self._registry.fleet.nodes.values()
            if node.status is NodeStatus.READY
            and may_load(node, key)
            and (node.is_gpu_node or node.spec.kind == "ollama")
        ]
        having = [node for node in able if key in node.models or (node.is_gpu_node and key in node.resident)]
        if not having and not self._places.is_known(key):
            having = [node for node in able if node.is_gpu_node]
        if not having:
            raise self._places.nobody(model)
        return [self._places.at(node, model, {}) for node in having]

    async def _ask(self, place: Candidate, limit: asyncio.Semaphore) -> Record | NodeError:
        async with limit:
            try:
                return await (self._ask_gpu_node(place) if place.node.is_gpu_node else self._ask_phone(place))
            except NodeError as error:
                return error

    async def _ask_gpu_node(self, place: Candidate) -> Record:
        spec = place.node.spec
        told = await self._operations.order(spec, UNLOAD_PATH, {"model": place.model}, UNLOAD_SECONDS)
        await self._nodes.look_again(spec)
        return {name: value for name, value in told.items() if name != "model"}

    async def _ask_phone(self, place: Candidate) -> Record:
        held: ModelKey = model_key(place.model)
        target = Target(place.node, self._backends[place.node.spec.kind], place.model)
        await self._nodes.touch(target, Call("generate", place.model, fields={"keep_alive": 0}), UNLOAD_SECONDS)
        return {"status": "unloaded" if held in place.node.resident else "not loaded"}


def _late() -> NodeStalled:
    return NodeStalled(f"silent for {UNLOAD_SECONDS:g} s", "load")


def _record(place: Candidate, told: Record | NodeError) -> Record:
    words = {"status": "failed", "error": told.message} if isinstance(told, NodeError) else told
    return named(place.node, words)


def _status(nodes: list[Record]) -> str:
    """Of all together: what is still under way comes first."""
    told = [node.get("status") for node in nodes]
    return next((status for status in ("unloading", "unloaded") if status in told), "not loaded")
