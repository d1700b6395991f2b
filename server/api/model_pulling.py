"""One model pulled onto many phones, a few at a time, each with its own progress and its own end.

A phone that fails stops no other. What broke off is tried again, and goes on where it stopped; the nodes are told to
stop when the caller leaves. What records and errors mean is in `server.pulls`. Afterwards a node is looked at, so that
the model can be routed at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from server.api.fields import Check, checked, flag, integer, short_name, texts
from server.api.model_places import ModelPlaces
from server.api.nodes_direct import NodesDirect
from server.api.services import Services
from server.backends.base import Patience
from server.backends.faults import text_of
from server.errors import NodeBroken, NodeError, NodeStalled, NoNodes, RequestInvalid
from server.nodes import Node, NodeId, NodeStatus, model_key
from server.placement import node_named
from server.pulls import SUCCESS, Progress, hindrance, is_final, listed_key, pulls_for_itself, shown, words_of

PULL_PATH = "/api/pull"
AT_ONCE, MOST_AT_ONCE = 3, 64
MOST_NODES = 4096
# Ollama tells of a download many times a second, also of one that stands still; nothing comes while it checks gigabytes
# on a slow phone.
SILENT_SECONDS = 300.0
ALL_SECONDS = 86_400.0  # of one node, over all its tries
PROGRESS_SECONDS = 0.25  # of one node: a bar cannot show more
MOST_WAITING = 1024  # records that a slow reader has not taken yet; further progress is left out

Record = dict[str, Any]
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


@dataclass(slots=True)
class _Telling:
    """The records of all nodes on their way to the caller, and how each ended."""

    records: asyncio.Queue[tuple[Record, bool]] = field(default_factory=lambda: asyncio.Queue(MOST_WAITING))  # its end?
    pulled: list[str] = field(default_factory=list)
    had: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def progress(self, record: Record) -> None:
        if not self.records.full():
            self.records.put_nowait((record, False))

    def summary(self, model: str) -> Record:
        return {"status": "done", "model": model, "pulled": self.pulled, "had": self.had, "failed": self.failed}


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
        limit, telling = asyncio.Semaphore(wish.at_once), _Telling()
        for label in labels.values():
            yield {"node": label, "status": "waiting"}, False
        tasks = [
            asyncio.create_task(self._in_turn(_Pull(self, node_id, label, model, telling), limit))
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

    async def _in_turn(self, pull: _Pull, limit: asyncio.Semaphore) -> None:
        async with limit:
            try:
                await pull.run()
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


class _Pull:
    """The pull on one node, over all its tries."""

    def __init__(self, pulling: Pulling, node_id: NodeId, label: str, model: str, telling: _Telling) -> None:
        self.label = label
        self._pulling, self._id, self._model, self._telling = pulling, node_id, model, telling
        self._progress = Progress()
        self._until = pulling.now() + ALL_SECONDS
        self._told_at = 0.0
        self._told: set[object] = set()  # by this try: steps, and digests that are whole

    async def run(self) -> None:
        node = self._pulling.node(self._id)
        before = self._digest(node)
        tried = False
        while True:
            node = self._pulling.node(self._id)  # its address may have changed meanwhile
            hindered = "it left the fleet" if node is None else hindrance(node, self._model, tried=tried)
            if node is None or hindered is not None:
                await self.end(hindered)
                return
            try:
                await self._once(node)
                if not self._has_left():
                    await self._pulling.look_again(node)
                break
            except NodeError as error:
                # one that fell silent in the middle and is silent to probes too is not waited for so long again
                tried = not (isinstance(error, NodeStalled) and error.phase != "connect")
                if not await self._again(error):
                    return
        if self._has_left():
            await self.end("it left the fleet")
            return
        after = self._digest(self._pulling.node(self._id))
        await self.end(None, had=before is not None and before == after)

    async def _once(self, node: Node) -> None:
        """One try. It ends early where the node leaves the fleet. Raises NodeError."""
        pulling = self._pulling
        self._told.clear()
        self._progress = replace(self._progress, advanced_at=pulling.now())
        left = max(1.0, self._until - pulling.now())
        async with aclosing(pulling.told_by(node, self._model, left)) as records:
            async for record in records:
                if record.get("status") == SUCCESS or self._has_left():
                    return
                told, now = shown(record), pulling.now()
                self._progress = self._progress.told(told, now)
                if now - self._progress.advanced_at > SILENT_SECONDS:
                    raise NodeStalled(f"it brought nothing more for {SILENT_SECONDS:g} s", "load")
                self._tell(told, now)

    def _has_left(self) -> bool:
        node = self._pulling.node(self._id)
        return node is None or node.status is NodeStatus.DRAINING

    async def _again(self, error: NodeError) -> bool:
        """Wait for the next try; False where there is none, which is told."""
        words = words_of(error)
        if is_final(error):
            await self.end(words)
            return False
        self._progress = self._progress.failed()
        pause = self._progress.pause_seconds
        if pause is None or self._pulling.now() + pause >= self._until:
            await self.end(words)
            return False
        self._telling.progress({"node": self.label, "status": "trying again", "reason": words, "in_seconds": pause})
        await self._pulling.pause(pause)
        return True

    def _tell(self, record: Record, now: float) -> None:
        """What is new at once, mere progress a few times a second."""
        digest = record.get("digest", "")
        news: set[object] = {(record["status"], digest)}
        if "total" in record and record.get("completed") == record["total"]:
            news.add(digest)
        if not news <= self._told or now - self._told_at >= PROGRESS_SECONDS:
            self._told |= news
            self._told_at = now
            self._telling.progress({"node": self.label, **record})

    async def end(self, error: str | None, *, had: bool = False) -> None:
        telling = self._telling
        if error is not None:
            telling.failed[self.label] = error
            await telling.records.put(({"node": self.label, "status": "error", "error": error}, True))
            return
        (telling.had if had else telling.pulled).append(self.label)
        await telling.records.put(({"node": self.label, "status": SUCCESS}, True))

    def _digest(self, node: Node | None) -> str | None:
        """Of the model as the node has it; None where it has none. Its owner may let it serve fewer than it has."""
        key = listed_key(self._model)
        copies = node.report.models if node is not None and node.report is not None else ()
        return next((copy.digest for copy in copies if model_key(copy.name) == key), None)


def _labels(nodes: Sequence[Node]) -> dict[NodeId, str]:
    """What each is called: its name, or its id where several have the name."""
    names = Counter(node.name for node in nodes)
    return {node.id: node.name if names[node.name] == 1 else str(node.id) for node in nodes}
