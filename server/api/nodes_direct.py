"""Calls that go to nodes directly, past the queue, because they ask for no answer: load, unload, show, render.

Loading and unloading reach every node that has the model, and succeed when one of them did it; the rest of the calls
go to one node after another until one answers. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from server.api.services import Services
from server.backends.base import Backend, Call
from server.catalog import resolve
from server.errors import AnswerBroken, GatewayError, NodeError, NodeRefused, NodeStalled, NoNodes, RequestInvalid
from server.exchange import AskRequest
from server.nodes import Load, ModelKey, Node, NodeSpec, NodeStatus
from server.patience import Patience
from server.registry import NodeProbed
from server.warming import load

# A fleet of hundreds is told in waves: each call is one connection.
CALLS_AT_ONCE = 64
# Dropping a model takes a node no time: who is silent for longer has other troubles, and nobody should wait for them.
UNLOAD_SECONDS = 5.0
# Asking further nodes for a description costs its caller time; who three nodes do not answer gets the reason.
NODES_ASKED = 3

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Target:
    """A node and the name under which it has the model meant."""

    node: Node
    backend: Backend
    model: str


class NodesDirect:
    def __init__(self, services: Services, unload_seconds: float = UNLOAD_SECONDS) -> None:
        self._unload_seconds = unload_seconds
        self._registry = services.registry
        self._backends = services.backends
        self._settings = services.settings

    def check_known(self, model: str | None) -> None:
        """Raises ModelNotFound."""
        resolve(model, self._registry.fleet.nodes.values(), self._settings.model_aliases)

    def targets(self, model: str | None) -> list[Target]:
        """The nodes that can be asked about a model now. Raises ModelNotFound, or NoNodes when all are away."""
        nodes = list(self._registry.fleet.nodes.values())
        key = resolve(model, nodes, self._settings.model_aliases)
        targets = [
            target
            for node in nodes
            if node.status is NodeStatus.READY and (target := self._target(node, key)) is not None
        ]
        if not targets:
            raise NoNodes("no node that could do this is there now", hint="GET /health says what is wrong with each")
        return targets

    def _target(self, node: Node, key: ModelKey | None) -> Target | None:
        own = key or node.own_model
        backend = self._backends.get(node.spec.kind)
        if own is None or own not in node.models or backend is None:
            return None
        return Target(node, backend, node.models[own].name)

    async def load(self, request: AskRequest, *, unload: bool) -> None:
        """Load the model into, or drop it from, the memory of nodes that have it. Dropping waits for no slow one."""
        targets = [target for target in self.targets(request.model) if target.node.spec.kind != "openai"]
        if not targets:
            return  # a server of its own keeps its models as it likes
        longest = self._settings.load_allowance_s + self._settings.first_token_floor_s
        longest = self._unload_seconds if unload else longest
        limit = asyncio.Semaphore(CALLS_AT_ONCE)

        async def tell(target: Target) -> NodeError | None:
            async with limit:
                try:
                    keep_alive, fields = target.node.spec.keep_alive, request.fields
                    if keep_alive is not None and "keep_alive" not in fields:
                        fields = {**fields, "keep_alive": keep_alive}
                    call = Call(request.operation, target.model, options=request.options, fields=fields)
                    await self.touch(target, call, longest)
                except NodeError as error:
                    return error
                return None

        tasks = [asyncio.create_task(tell(target)) for target in targets]
        try:
            done, _ = await asyncio.wait(tasks, timeout=self._unload_seconds if unload else None)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        errors = [task.result() if task in done else _late(self._unload_seconds) for task in tasks]
        first = errors[0]
        if first is not None and None not in errors:
            word = "unload" if unload else "load"
            raise as_gateway_error(first, targets[0].node.name, f"could not {word} the model")

    async def touch(self, target: Target, call: Call, longest_seconds: float) -> None:
        """Run an empty call, which loads or drops the model. Raises NodeError."""
        patience = Patience(self._settings.connect_timeout_s, longest_seconds, longest_seconds, longest_seconds)
        await load(target.backend, target.node.spec, call, patience)
        await self.look_again(target.node.spec)

    async def look_again(self, spec: NodeSpec) -> None:
        """What is in the node's memory has just changed: whoever asks next should see it."""
        try:
            report = await self._backends[spec.kind].probe(spec, self._settings.probe_timeout_s)
        except NodeError:
            return  # the model was loaded or dropped all the same; the regular probes will tell the rest
        known = self._registry.node(spec.id)
        if known is not None and known.spec == spec:
            self._registry.emit(NodeProbed(spec.id, report, time.time()))

    async def show(self, model: str | None, verbose: bool = False) -> dict[str, Any]:
        """The description of a model by a node that has it."""
        timeout = self._settings.probe_timeout_s * 5  # a node under load reads its files slowly

        async def ask(target: Target) -> dict[str, Any]:
            return await target.backend.show(target.node.spec, target.model, timeout, verbose)

        return await self._first(self.targets(model), ask, "could not describe the model")

    async def render(self, request: AskRequest) -> str:
        """The prompt that a node's template makes of the request."""
        timeout = self._settings.load_allowance_s + self._settings.first_token_floor_s

        async def ask(target: Target) -> str:
            call = Call(
                request.operation,
                target.model,
                request.messages,
                request.prompt,
                request.options,
                request.fields,
            )
            return await target.backend.render(target.node.spec, call, timeout)

        able = [
            target
            for target in self.targets(request.model)
            if target.node.report is not None and target.node.report.renders
        ]
        if not able:
            raise NoNodes("no node here tells how it renders a prompt", hint="Ollama does since 0.11.5")
        return await self._first(able, ask, "could not render the prompt")

    async def _first(
        self, targets: Sequence[Target], ask: Callable[[Target], Awaitable[Result]], failure: str
    ) -> Result:
        """The first answer, least loaded node first."""
        loads, idle = self._registry.loads, Load()
        ordered = sorted(targets, key=lambda target: loads.get(target.node.id, idle).in_flight)
        failed: tuple[NodeError, Target] | None = None
        for target in ordered[:NODES_ASKED]:
            try:
                return await ask(target)
            except NodeRefused as error:
                raise as_gateway_error(error, target.node.name, failure) from error
            except NodeError as error:
                failed = error, target
        assert failed is not None, "targets is never empty"
        raise as_gateway_error(failed[0], failed[1].node.name, failure)


def as_gateway_error(error: NodeError, node: str, failure: str) -> GatewayError:
    if isinstance(error, NodeRefused):
        return RequestInvalid(error.message, status=error.status)
    return AnswerBroken(f"{failure}: {node}: {error.message}", node=node, tokens_told=0)


def _late(seconds: float) -> NodeStalled:
    return NodeStalled(f"silent for {seconds:g} s", "load")
