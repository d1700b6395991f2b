"""Finds out which nodes are there: one loop per listed node asks it every few seconds and tells the registry.

Probes make a node's status, models and residency, never its breaker: a phone that answers probes and stalls on every
prompt must leave by its requests. After a failed probe the next ones start every second, whether or not the last has
ended, so that a node that hangs is silent within ten seconds; so are a thousand that hang together, larger fleets take
longer, since probes wait for a place. Nodes taken from the list leave with their last request.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace

from server.backends.base import Backend
from server.clock import Clock
from server.errors import NodeError
from server.nodes import Node, NodeId, NodeKind, NodeSpec, NodeStatus
from server.registry import NodeGone, NodeProbed, ProbeFailed, Registry

# How many probes may run at once, by what was known of their nodes.
PLACES = {
    NodeStatus.READY: 2048,  # a thousand nodes that hang at once: each has two probes under way on its way to silent
    NodeStatus.UNKNOWN: 256,  # a large fleet's first probes must not eat each other's two seconds
    NodeStatus.SILENT: 128,  # a fleet of dead addresses must neither eat all sockets nor make the others wait
}
DRAIN_LOOK_SECONDS = 0.25
JITTER = 0.2  # of the interval; always earlier, never later, so that the interval is a promise
FIRST_JITTER = 0.8  # nodes that were listed together are soon asked one after the other

log = logging.getLogger(__name__)


LOOPBACK = ("127.0.0.1", "localhost", "::1")  # where forwards end
CABLE_INTERVAL_SECONDS = 3.0  # a dead cable or wireless link stays listed, and nobody but probes tells of its end


@dataclass(frozen=True, slots=True)
class ProbePace:
    interval_seconds: float = 5.0
    timeout_seconds: float = 2.0
    retry_seconds: float = 1.0

    def of(self, spec: NodeSpec) -> ProbePace:
        """Phones that are reached through adb are asked oftener: to ask costs nothing on a cable."""
        if spec.origin != "adb" and (spec.serial is None or spec.host not in LOOPBACK):
            return self
        return replace(self, interval_seconds=min(self.interval_seconds, CABLE_INTERVAL_SECONDS))


def next_probe_at(started: float, now: float, pace: ProbePace, *, failing: bool, jitter: float) -> float:
    """When the next probe starts. `jitter` is the share of the interval to take off, 0 to 1. Pure."""
    if failing:
        return max(now, started + pace.retry_seconds)
    return max(now, started + pace.interval_seconds * (1.0 - jitter))


class Health:
    """Run `run` as a task; it follows the registry by itself. `draw` gives numbers from 0 to 1."""

    def __init__(
        self,
        registry: Registry,
        backends: Mapping[NodeKind, Backend],
        pace: ProbePace,
        clock: Clock | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._registry = registry
        self._backends = backends
        self._pace = pace
        self._clock = clock or Clock()
        self._draw = draw
        self._places = {status: asyncio.Semaphore(count) for status, count in PLACES.items()}
        self._followers: dict[NodeId, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._good_since: dict[NodeId, float] = {}  # when the last probe that succeeded was started
        self._stopped = False

    async def run(self) -> None:
        """Probe until cancelled."""
        self._registry.listen(self._on_change)
        for node in list(self._registry.fleet.nodes.values()):
            self._follow(node.id)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._stopped = True
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _on_change(self, before: Node | None, after: Node | None) -> None:
        if self._stopped:
            return
        if after is None:
            if before is not None:
                self._forget(before.id)
        elif before is None or before.spec != after.spec or _is_led_out(before) != _is_led_out(after):
            self._follow(after.id)

    def _follow(self, node_id: NodeId) -> None:
        """Ask the node now, and then again and again."""
        self._forget(node_id)
        self._followers[node_id] = self._start(self._follow_node(node_id))

    def _forget(self, node_id: NodeId) -> None:
        self._good_since.pop(node_id, None)
        follower = self._followers.pop(node_id, None)
        if follower is not None and follower is not asyncio.current_task():
            follower.cancel()

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _follow_node(self, node_id: NodeId) -> None:
        spread = FIRST_JITTER
        while (node := self._registry.node(node_id)) is not None:
            if node.status is NodeStatus.DISABLED:
                return  # listed anew when it is enabled
            if node.status is NodeStatus.DRAINING:
                await self._see_off(node_id)
                continue
            places = self._places[node.status]
            await places.acquire()  # here, so that a node's next probe is not due while its last one waits for a place
            started = self._clock.monotonic()
            probe = self._start(self._probe(node, started))
            probe.add_done_callback(lambda _, places=places: places.release())  # type: ignore[misc]
            if node.failed_probes == 0 or node.status is NodeStatus.SILENT:
                await asyncio.wait([probe])  # only one that is on its way to silent is asked before it has answered
            failing = self._is_failing(node_id)
            jitter, spread = spread * self._draw(), JITTER
            now = self._clock.monotonic()
            pace = self._pace.of(node.spec)
            await self._clock.sleep(next_probe_at(started, now, pace, failing=failing, jitter=jitter) - now)

    def _is_failing(self, node_id: NodeId) -> bool:
        node = self._registry.node(node_id)
        return node is not None and node.failed_probes > 0

    async def _see_off(self, node_id: NodeId) -> None:
        """A draining node leaves with its last request, unless it is listed again meanwhile."""
        load = self._registry.loads.get(node_id)
        if load is None or load.in_flight == 0:
            self._registry.emit(NodeGone(node_id))
            return
        await self._clock.sleep(DRAIN_LOOK_SECONDS)

    async def _probe(self, node: Node, started: float) -> None:
        spec = node.spec
        try:
            report = await self._backends[spec.kind].probe(spec, self._pace.timeout_seconds)
        except NodeError as problem:
            self._failed(spec, started, problem.message, isinstance(problem.__cause__, ConnectionRefusedError))
        except Exception as problem:
            log.exception("the probe of %s broke", spec.name)
            self._failed(spec, started, f"the probe broke: {problem!r}", refused=False)
        else:
            if self._is_current(spec):
                self._good_since[spec.id] = max(started, self._good_since.get(spec.id, started))
                self._registry.emit(NodeProbed(spec.id, report, self._clock.wall()))

    def _failed(self, spec: NodeSpec, started: float, error: str, refused: bool) -> None:
        if self._is_current(spec) and started >= self._good_since.get(spec.id, started):
            self._registry.emit(ProbeFailed(spec.id, error, self._clock.wall(), refused))

    def _is_current(self, spec: NodeSpec) -> bool:
        """Is the node still where this probe went? An answer from an old address says nothing about the new one."""
        node = self._registry.node(spec.id)
        return node is not None and _place(node) == (spec.host, spec.port, spec.kind)


def _is_led_out(node: Node) -> bool:
    return node.status is NodeStatus.DRAINING


def _place(node: Node) -> tuple[str, int, NodeKind]:
    return node.spec.host, node.spec.port, node.spec.kind
