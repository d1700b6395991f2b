"""What operators and supervisors ask: alive, ready, healthy, devices, queue, batches, sessions and metrics."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import sys
import time
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gpu_node import __version__
from gpu_node.api.replies import error_reply, json_reply
from gpu_node.api.service import Service
from gpu_node.device_profiles import Findings
from gpu_node.engine.stats import EngineStats, Histogram
from gpu_node.host import ModelHost
from gpu_node.metrics import CONTENT_TYPE, NodeMetrics
from gpu_node.relay.sessions import ClientSession

Record = dict[str, Any]
STATUS = {"ready": "ok", "empty": "idle", "closed": "stopping"}
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")


class Operations:
    def __init__(self, service: Service, metrics: NodeMetrics) -> None:
        self._service, self._residents, self._metrics = service, service.residents, metrics
        self._begun = time.monotonic()

    async def live(self, request: Request) -> Response:
        return json_reply({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        """Ready from the first load on: an idle model comes back with the next request."""
        host = self._residents.main
        if host.state in ("ready", "empty") and host.loaded_once:
            return json_reply({"status": "ready"})
        return error_reply(host.failure or f"the model is not loaded yet ({host.state})", 503)

    async def health(self, request: Request) -> Response:
        host = self._residents.main
        runner, stats = host.engine.runner, host.engine.stats()
        return json_reply(
            {
                "status": STATUS.get(host.state, host.state),
                "version": __version__,
                "uptime_seconds": round(time.monotonic() - self._begun, 1),
                "model": host.name,
                "loaded": runner is not None,
                "device": runner.device if runner else None,
                "dtype": runner.dtype if runner else None,
                "memory_bytes": runner.memory_bytes if runner else 0,
                "context_length": host.context_tokens,
                "slots": host.slots.running,
                "in_flight": host.running,
                "waiting": waiting_of(host, stats),
                "error": host.failure or None,
                "engine": {
                    "state": host.engine.state,
                    "restarts": sum(one.engine.stats().restarts for one in self._residents.hosts),
                    "out_of_memory": sum(one.engine.stats().out_of_memory for one in self._residents.hosts),
                    "failed": sum(one.engine.stats().failed for one in self._residents.hosts),
                },
                "models": {one.name: STATUS.get(one.state, one.state) for one in self._residents.hosts},
            }
        )

    async def queue(self, request: Request) -> Response:
        queues = {}
        for host in self._residents.hosts:
            stats = host.engine.stats()
            queues[host.name] = {
                "running": stats.running,
                "waiting": waiting_of(host, stats),
                "in_flight": host.slots.inside,
                "slots": host.slots.running,
                "limit": host.slots.max_waiting,
                "state": host.state,
            }
        return json_reply(
            {
                "waiting": sum(queue["waiting"] for queue in queues.values()),
                "in_flight": sum(queue["in_flight"] for queue in queues.values()),
                "models": queues,
            }
        )

    async def batcher(self, request: Request) -> Response:
        return json_reply({"models": {host.name: batch_record(host) for host in self._residents.hosts}})

    async def gpu(self, request: Request) -> Response:
        """`?measure=true` waits until all devices are measured, where that was not done just now."""
        findings = await self._findings(request.query_params.get("measure", "").lower() in ("1", "true", "yes", "on"))
        found = await asyncio.to_thread(self._service.gpus)
        accounts = [
            {
                "device": account.device,
                "budget_bytes": account.budget_bytes,
                "used_bytes": account.used_bytes,
                "free_bytes": account.free_bytes,
                "models": {
                    name: {"weights_bytes": claim.weights_bytes, "cache_bytes": claim.cache_bytes}
                    for name, claim in account.claims.items()
                },
                "buffers": dict(account.buffers),
            }
            for account in self._residents.accounts
        ]
        measured = None if findings is None else asdict(findings)
        return json_reply({"gpus": [asdict(gpu) for gpu in found], "accounts": accounts, "measured": measured})

    async def _findings(self, measure: bool) -> Findings | None:
        probing = self._service.probing
        if probing is None or not measure:
            return None if probing is None else probing.known
        return await asyncio.to_thread(probing.findings, True)

    async def system(self, request: Request) -> Response:
        here = await asyncio.to_thread(self._service.machine)
        return json_reply(
            {
                "version": __version__,
                "python": sys.version.split()[0],
                "libraries": {name: _version(name) for name in LIBRARIES},
                "process": {"pid": os.getpid(), "uptime_seconds": round(time.monotonic() - self._begun, 1)},
                "machine": asdict(here),
            }
        )

    async def sessions(self, request: Request) -> Response:
        """Clients of the relay and what they hold. Their names are their own words; their keys are nobody's."""
        relay = self._service.relay()
        return json_reply(
            {
                "relay": relay is not None,
                "connections": relay.figures.connections if relay else 0,
                "sessions": [session_record(session) for session in relay.sessions.all] if relay else [],
            }
        )

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})


def session_record(session: ClientSession) -> Record:
    return {
        "session": session.number,
        "name": session.name,
        "state": session.state,
        "models": sorted(session.models),
        "buffers": len(session.buffers),
        "buffer_bytes": session.buffers.bytes_held,
        "running": len(session.tasks),
    }


def batch_record(host: ModelHost) -> Record:
    stats = host.engine.stats()
    return {
        "running": stats.running,
        "waiting": stats.waiting,
        "max_running": stats.max_running,
        "last_batch": stats.last_batch,
        "mean_batch": round(stats.batch_size.mean, 3),
        "steps": stats.steps,
        "step_tokens": stats.step_tokens,
        "step_token_limit": stats.step_token_limit,
        "tokens_per_second": round(stats.tokens_per_second, 2),
        "prompt_tokens": stats.prompt_tokens,
        "cached_prompt_tokens": stats.cached_prompt_tokens,
        "output_tokens": stats.output_tokens,
        "blocks": {
            "used": stats.blocks_used,
            "free": stats.blocks_free,
            "cached": stats.blocks_cached,
            "block_tokens": stats.block_tokens,
        },
        "preemptions": stats.preemptions,
        "speculation": {"drafts": stats.drafts, "accepted": stats.accepted_drafts},
        "done": stats.done,
        "failed": stats.failed,
        "cancelled": stats.cancelled,
        "restarts": stats.restarts,
        "out_of_memory": stats.out_of_memory,
        "first_token_seconds": _summary(stats.first_token),
        "between_tokens_seconds": _summary(stats.between_tokens),
    }


def _summary(histogram: Histogram) -> Record:
    """Quantiles are the upper bounds of their buckets; null beyond the last."""
    return {
        "count": histogram.count,
        "mean": round(histogram.mean, 6),
        **{f"p{share}": _bound(histogram.quantile(share / 100)) for share in (50, 90, 99)},
    }


def _bound(value: float) -> float | None:
    return None if value == float("inf") else value


def waiting_of(host: ModelHost, stats: EngineStats) -> int:
    """In the engine's line, or for the model to be there."""
    return stats.waiting + max(host.slots.inside - host.running, 0)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
