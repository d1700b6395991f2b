"""One model pulled onto many phones, a few at a time, each with its own progress and its own end.

A phone that fails stops no other, and the nodes are told to stop when the caller leaves. What one phone goes through
is in `node_pull`, what its records and errors mean in `server.pulls`. Afterwards a node is looked at, so that the model
can be routed at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from server.api.fields import Check, checked, flag, integer, short_name, texts
from server.api.model_places import ModelPlaces
from server.api.node_pull import Line, NodePull, Record, Telling
from server.api.nodes_direct import NodesDirect
from server.api.services import Services
from server.backends.base import Patience
from server.backends.faults import text_of
from server.errors import NodeBroken, NoNodes, RequestInvalid
from server.nodes import Node, NodeId, NodeStatus
from server.placement import node_named
from server.pulls import SILENT_SECONDS, SUCCESS, pulls_for_itself

PULL_PATH = "/api/pull"
AT_ONCE, MOST_AT_ONCE = 3, 64
MOST_NODES = 4096

Step = tuple[Record, bool]  # what is told, and whether it is the last
_FIELDS: Mapping[str, Check] = {
    "model": short_name,
    "nodes": texts,
    "all": flag,
    "at_once": integer(1, MOST_AT_ONCE),
    "stream": flag,
}
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PullWish:
    """`nodes` are ids or names; None: all phones."""

    model: str
    nodes: tuple[str, ...] | None
    at_once: int = AT_ONCE
    stream: bool = True


def read_pull(body: Mapping[str, Any]) -> PullWish:
    """Raises RequestInvalid."""
    values = checked(body, _FIELDS)
    model = str(values.get("model") or "").strip()
    if not model or not model.isprintable():
        raise RequestInvalid("'model' must name one model", field="model")
    nodes = values.get("nodes")
    if (nodes is None) == (not values.get("all", False)):
        raise RequestInvalid("either 'nodes' or \"all\": true says where to", field="nodes")
    if nodes is not None and not 0 < len(nodes) <= MOST_NODES:
        raise RequestInvalid(f"'nodes' must name 1 to {MOST_NODES} nodes", field="nodes")
    wanted = None if nodes is None else tuple(nodes)
    return PullWish(model, wanted, values.get("at_once", AT_ONCE), values.get("stream", True))


class Pulling:
    """`sleep` is for the pauses between two tries."""

    def __init__(self, services: Services, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._registry, self._operations = services.registry, services.operations
        self._connect_seconds, self._now = services.settings.connect_timeout_s, services.loop_time
        self._places, self._nodes = ModelPlaces(services), NodesDirect(services)
        self._sleep = sleep

    async def steps(self, wish: PullWish) -> AsyncGenerator[Step, None]:
        """Progress, an end of each node, and a summary. Raises NodeUnknown, NoNodes, RequestInvalid."""
        model = self._places.meant(wish.model)
        labels = _labels(self._targets(wish))
        line, telling = Line(wish.at_once), Telling()
        for label in labels.values():
            yield {"node": label, "status": "waiting"}, False
        tasks = [
            asyncio.create_task(self._to_its_end(NodePull(self, node_id, label, model, telling), line))
            for node_id, label in labels.items()
        ]
        try:
            left = len(tasks)
            while left:
                record, is_end = await telling.records.get()
                left -= is_end
                yield record, False
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        yield telling.summary(model), True

    def _targets(self, wish: PullWish) -> list[Node]:
        nodes = list(self._registry.fleet.nodes.values())
        if wish.nodes is not None:
            names = dict.fromkeys(name.strip().lower() for name in wish.nodes)
            return list({node.id: node for name in names for node in [node_named(name, nodes)]}.values())
        away = (NodeStatus.DISABLED, NodeStatus.DRAINING)
        phones = [node for node in nodes if pulls_for_itself(node) and node.status not in away]
        if not phones:
            raise NoNodes("the fleet has no phone that could pull a model", hint="invite one: potluck phones invite")
        return phones

    async def _to_its_end(self, pull: NodePull, line: Line) -> None:
        try:
            await pull.run(line)
        except Exception:
            log.exception("the pull on %s broke", pull.label)
            await pull.end("the gateway failed; its log says why")

    def node(self, node_id: NodeId) -> Node | None:
        return self._registry.node(node_id)

    async def look_again(self, node: Node) -> None:
        await self._nodes.look_again(node.spec)

    async def pause(self, seconds: float) -> None:
        await self._sleep(seconds)

    def now(self) -> float:
        return self._now()

    async def told_by(self, node: Node, model: str, seconds: float) -> AsyncGenerator[Record, None]:
        """The node's records up to its success. Raises NodeError for any other end."""
        spec = node.spec
        patience = Patience(self._connect_seconds, SILENT_SECONDS, SILENT_SECONDS, seconds)
        body = {"model": model, "stream": True}
        async with aclosing(self._operations.lines(spec, PULL_PATH, body, patience)) as lines:
            async for record in lines:
                if record.get("error") is not None:
                    raise NodeBroken(text_of(record["error"]))  # which node it is, its record says
                yield record
                if record.get("status") == SUCCESS:
                    return
        raise NodeBroken(f"{spec.address} ended before it had the model")


def _labels(nodes: Sequence[Node]) -> dict[NodeId, str]:
    """What each is called: its name, or its id where several have the name."""
    names = Counter(node.name for node in nodes)
    return {node.id: node.name if names[node.name] == 1 else str(node.id) for node in nodes}
