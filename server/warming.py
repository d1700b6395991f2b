"""Loads models into phones before anybody asks: the loop around `warmth`, which decides.

Looks at a node when the registry has news of it, and every two seconds while it is to be given a model; a warm fleet
costs nothing. A loading is an empty prompt, and afterwards the node is probed, so that routing knows. Failures are
lines in the log and a longer pause; they never count against a node.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from server.backends.base import Backend, Call
from server.clock import Clock
from server.errors import NodeError, NodeRefused
from server.nodes import Load, ModelKey, Node, NodeId, NodeKind, NodeSpec
from server.patience import Patience
from server.registry import NodeProbed, Registry
from server.warmth import (
    Warmth,
    WarmthRules,
    due,
    failed,
    is_in_service,
    is_in_the_way,
    is_lost,
    loaded,
    looked,
    refused,
)

LOOK_SECONDS = 2.0
ONLY_EMBEDS = "does not support generate"  # Ollama's words; it says no more than that
LOADINGS_AT_ONCE = 32  # each is one quiet connection

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WarmingOptions:
    rules: WarmthRules = field(default_factory=WarmthRules)
    connect_seconds: float = 5.0
    load_seconds: float = 125.0
    probe_seconds: float = 2.0


async def load(backend: Backend, spec: NodeSpec, call: Call, patience: Patience) -> None:
    """Run an empty call, which loads its model. One that only embeds is asked for embeddings of nothing instead.

    Ollama loads the model for these too before it looks for texts. Raises NodeError.
    """
    try:
        await _run(backend, spec, call, patience)
    except NodeRefused as refusal:
        if ONLY_EMBEDS not in refusal.message:
            raise
        await _run(backend, spec, replace(call, operation="embed", fields={**call.fields, "input": []}), patience)


async def _run(backend: Backend, spec: NodeSpec, call: Call, patience: Patience) -> None:
    async with aclosing(backend.stream(spec, call, patience)) as batches:
        async for _ in batches:
            pass


class Warming:
    """Run `run` as a task."""

    def __init__(
        self,
        registry: Registry,
        backends: Mapping[NodeKind, Backend],
        options: WarmingOptions | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._registry, self._backends = registry, backends
        self._options, self._clock = options or WarmingOptions(), clock or Clock()
        self._known: dict[NodeId, Warmth] = {}
        self._loadings: dict[NodeId, asyncio.Task[None]] = {}
        self._stopped = False

    async def run(self) -> None:
        """Look until cancelled."""
        self._registry.listen(self._on_change)
        try:
            for node in list(self._registry.fleet.nodes.values()):
                self._look_at(node)
            while True:
                await self._clock.sleep(LOOK_SECONDS)
                waiting = [node_id for node_id, warmth in self._known.items() if warmth.pending]
                for node in filter(None, map(self._registry.node, waiting)):
                    self._look_at(node)
        finally:
            self._stopped = True
            loadings = list(self._loadings.values())
            for loading in loadings:
                loading.cancel()
            await asyncio.gather(*loadings, return_exceptions=True)

    def _on_change(self, before: Node | None, after: Node | None) -> None:
        if self._stopped:
            return
        if after is not None:
            self._look_at(after)
        elif before is not None:
            self._known.pop(before.id, None)
            self._give_up(before.id)

    def _look_at(self, node: Node) -> None:
        """Remember what became of it, and begin what is due."""
        now, rules = self._clock.monotonic(), self._options.rules
        if not is_in_service(node) and self._give_up(node.id) and is_lost(node):
            self._judge(node, self._failed)
        load = self._registry.loads.get(node.id) or Load()
        warmth = self._known[node.id] = looked(self._known.get(node.id, Warmth()), node, load, rules, now)
        if warmth.pending and is_in_the_way(load, warmth.pending[0]):
            self._give_up(node.id)
        model = due(warmth, load, rules, now)
        if model is not None and node.id not in self._loadings and len(self._loadings) < LOADINGS_AT_ONCE:
            self._begin(node, model)

    def _give_up(self, node_id: NodeId) -> bool:
        """Was there a loading to be ended? One that is ending already is none."""
        loading = self._loadings.get(node_id)
        return loading is not None and not loading.cancelling() and loading.cancel()

    def _begin(self, node: Node, model: ModelKey) -> None:
        loading = self._loadings[node.id] = asyncio.create_task(self._load(node, model))
        loading.add_done_callback(lambda _: self._loadings.pop(node.id, None))

    async def _load(self, node: Node, model: ModelKey) -> None:
        try:
            await self._touch(node, model)
        except NodeRefused as error:
            log.info("%s refuses to be warmed with %s: %s", node.name, model, error.message)
            self._judge(node, lambda warmth: refused(warmth, model))
        except NodeError as error:
            log.info("%s was not warmed with %s: %s", node.name, model, error.message)
            self._judge(node, self._failed)
        except Exception:
            log.exception("warming %s broke", node.name)
            self._judge(node, self._failed)
        else:
            self._judge(node, lambda warmth: loaded(warmth, model))

    async def _touch(self, node: Node, model: ModelKey) -> None:
        spec, options = node.spec, self._options
        backend = self._backends[spec.kind]
        fields = {} if spec.keep_alive is None else {"keep_alive": spec.keep_alive}
        patience = Patience(options.connect_seconds, *[options.load_seconds] * 3)
        await load(backend, spec, Call("generate", node.models[model].name, fields=fields), patience)
        await self._look_again(spec, backend)

    async def _look_again(self, spec: NodeSpec, backend: Backend) -> None:
        try:
            report = await backend.probe(spec, self._options.probe_seconds)
        except NodeError:
            return  # it is loaded all the same; the regular probes tell the rest
        known = self._registry.node(spec.id)
        if known is not None and known.spec == spec:
            self._registry.emit(NodeProbed(spec.id, report, self._clock.wall()))

    def _failed(self, warmth: Warmth) -> Warmth:
        return failed(warmth, self._options.rules, self._clock.monotonic())

    def _judge(self, node: Node, outcome: Callable[[Warmth], Warmth]) -> None:
        warmth = self._known.get(node.id)
        if warmth is not None:
            self._known[node.id] = outcome(warmth)
