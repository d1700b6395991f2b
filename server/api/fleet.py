"""What the gateway tells about itself: /health, /live, /ready, /api/nodes, /api/queue/status, /metrics.

Facts only, no keys and no prompts. /health answers 200 as long as the gateway lives, so that its body can be read;
/ready is the one whose status means something to a load balancer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Any

import orjson

from server.api.incoming import Incoming
from server.api.reply import JSON
from server.api.services import Services
from server.breaker import BreakerState
from server.care import Condition
from server.moments import SECOND_NS, utc_text
from server.nodes import Load, Node, NodeStatus
from server.version import VERSION


class FleetApi:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def health(self, incoming: Incoming) -> None:
        services = self._services
        health: dict[str, Any] = {
            "status": self._status(),
            "version": VERSION,
            "uptime_s": round(time.time() - services.started_at, 1),
            "draining": services.open_requests.draining,
            "fleet_file": self._fleet_file(),
            "embedded": services.embedded_status(),
            "adb": services.adb_status(),
            "queue": services.dispatch.queue_status(),
            "cache": services.dispatch.cache_status(),
            "nodes": self._nodes(),
        }
        await incoming.reply.answer(orjson.dumps(health))

    async def live(self, incoming: Incoming) -> None:
        await incoming.reply.answer(b'{"status":"alive"}')

    async def ready(self, incoming: Incoming) -> None:
        draining = self._services.open_requests.draining
        usable = sum(map(self._is_usable, self._listed()))
        ready = usable > 0 and not draining
        body = {"ready": ready, "usable_nodes": usable, "draining": draining}
        await incoming.reply.answer(orjson.dumps(body), JSON, 200 if ready else 503)

    async def nodes(self, incoming: Incoming) -> None:
        await incoming.reply.answer(orjson.dumps({"nodes": self._nodes()}))

    async def queue(self, incoming: Incoming) -> None:
        await incoming.reply.answer(orjson.dumps(self._services.dispatch.queue_status()))

    async def metrics(self, incoming: Incoming) -> None:
        # In a thread: the text of a thousand nodes takes a tenth of a second, in which streams would stand still.
        content_type, text = await asyncio.to_thread(self._services.metrics.exposition)
        await incoming.reply.answer(text, content_type)

    def _listed(self) -> Collection[Node]:
        return self._services.registry.fleet.nodes.values()

    def _load(self, node: Node) -> Load:
        return self._services.registry.loads.get(node.id) or Load()

    def _is_usable(self, node: Node) -> bool:
        at_rest = self._load(node).breaker.state is BreakerState.OPEN
        able = node.status is NodeStatus.READY and not node.care.spent
        return able and not at_rest and bool(node.models)

    def _is_fine(self, node: Node) -> bool:
        """One that rests for heat or a low battery is usable only where nothing else is."""
        return self._is_usable(node) and node.resting is None

    def _status(self) -> str:
        """ok: all that should serve can; unavailable: none can; degraded: something between."""
        if not any(map(self._is_usable, self._listed())):
            return "unavailable"
        wanted = [node for node in self._listed() if node.status not in (NodeStatus.DISABLED, NodeStatus.DRAINING)]
        fine = all(map(self._is_fine, wanted)) and self._services.fleet_file().error is None
        return "ok" if fine else "degraded"

    def _fleet_file(self) -> dict[str, Any]:
        state = self._services.fleet_file()
        loaded_at, error = state.loaded_at, state.error
        if error is not None and state.line is not None:
            error = f"line {state.line}, column {state.column}: {error}"
        return {
            "path": str(state.path),
            "loaded_at": None if loaded_at is None else iso_time(loaded_at),
            "error": error,
        }

    def _nodes(self) -> list[dict[str, Any]]:
        return [self._node(node, self._load(node)) for node in self._listed()]

    def _node(self, node: Node, load: Load) -> dict[str, Any]:
        spec = node.spec
        now = self._services.loop_time()
        rest = load.breaker.open_until - now if load.breaker.state is BreakerState.OPEN else None
        return {
            "id": spec.id,
            "name": spec.name,
            "kind": spec.kind,
            "address": spec.address,
            "origin": spec.origin,
            "status": node.status,
            "since": iso_time(node.since),
            "breaker": load.breaker.state,
            "breaker_open_for_s": None if rest is None else round(max(0.0, rest), 1),
            "version": node.report.version if node.report else None,
            "models": [copy.name for copy in node.models.values()],
            "resident": [model.name for model in node.resident.values()],
            "held_conversations": self._services.dispatch.held_conversations(spec.id),
            "in_flight": load.in_flight,
            "slots": node.slots,
            "reported_slots": node.report.slots if node.report else None,
            "gpu_node": node.is_gpu_node,
            "tokens_per_second": _rounded(load.tokens_per_second),
            "prompt_tokens_per_second": _rounded(load.prompt_tokens_per_second),
            "first_token_s": _rounded(load.first_token_seconds, 3),
            "model_speeds": _model_speeds(node, load),
            "weight": "auto" if spec.weight is None else spec.weight,
            "last_resort": spec.last_resort,
            "answered": load.answered,
            "failed": load.failed,
            "last_error": load.last_error or node.last_error,
            "tags": spec.tags,
            "condition": None if node.condition is None else condition_record(node.condition),
            "care_factor": node.care.factor,
            "resting": node.resting,
            "resting_since": None if node.resting is None else iso_time(node.care.since),
        }


def _model_speeds(node: Node, load: Load) -> dict[str, Any]:
    """What each model has shown there, of those that it still has."""
    shown = ((copy.name, load.speeds.of(key)) for key, copy in node.models.items())
    return {
        name: {
            "tokens_per_second": _rounded(speed.tokens_per_second),
            "prompt_tokens_per_second": _rounded(speed.prompt_tokens_per_second),
            "first_token_s": _rounded(speed.first_token_seconds, 3),
        }
        for name, speed in shown
        if speed is not None
    }


def condition_record(condition: Condition) -> dict[str, Any]:
    """Null is what the phone did not tell."""
    return {
        "battery_percent": condition.level,
        "charging": condition.charging,
        "temperature_c": condition.temperature_c,
        "thermal_status": condition.thermal_word,
        "overheated": condition.overheated is True,
        "told_at": iso_time(condition.at),
    }


def _rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)


def iso_time(seconds: float) -> str:
    return utc_text(int(seconds * SECOND_NS))
