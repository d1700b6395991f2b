"""GET /api/pipeline/status: how each model lies on the devices, what each stage does, and what happened to the devices.

A model on one device is told in the same words as a split one: one stage, in the node's own process. Invariants:
facts only, no prompts and no keys; nothing is asked of a device for this, so that it may be read every second. Must
not know how a plan is made or carried out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gpu_node.api.operations import waiting_of
from gpu_node.api.replies import json_reply
from gpu_node.api.service import Service
from gpu_node.device_table import FleetDevice
from gpu_node.engine.step import ModelRunner
from gpu_node.host import ModelHost
from gpu_node.pipeline_record import event_record, pipeline_record
from gpu_node.pipeline_status import PipelineStatus, StageStatus
from gpu_node.vram import Account

Record = dict[str, Any]
LAYER_COUNTS = ("num_hidden_layers", "n_layer")


class PipelineApi:
    def __init__(self, service: Service) -> None:
        self._residents, self._fleet = service.residents, service.fleet

    async def status(self, request: Request) -> Response:
        residents, fleet = self._residents, self._fleet
        return json_reply(
            {
                "models": {host.name: model_record(host, residents.accounts) for host in residents.hosts},
                "devices": device_records(fleet.devices if fleet is not None else (), residents.accounts),
                "events": [event_record(event) for event in fleet.events] if fleet is not None else [],
            }
        )


def model_record(host: ModelHost, accounts: Sequence[Account]) -> Record:
    """A model that is not in memory has no stages."""
    runner, stats = host.engine.runner, host.engine.stats()
    status = status_of(host, accounts) or PipelineStatus(host.name, 0, "running")
    return {
        "state": host.state,
        "split": host.pipeline is not None,
        "pipeline": status.state if runner is not None else None,
        "error": status.error or host.failure or None,
        "activity": host.activity or None,
        "loaded_bytes": host.read_bytes,
        "total_bytes": host.total_bytes,
        "dtype": runner.dtype if runner is not None else None,
        "context_length": host.context_tokens,
        "running": stats.running,
        "waiting": waiting_of(host, stats),
        "max_running": stats.max_running,
        "tokens_per_second": round(stats.tokens_per_second, 2),
        **pipeline_record(status),
    }


def status_of(host: ModelHost, accounts: Sequence[Account]) -> PipelineStatus | None:
    """What the runner says, or one stage for a model that is not split; None while it is not in memory."""
    runner = host.engine.runner
    if runner is None:
        return None
    return host.pipeline or single_stage(host, runner, accounts)


def single_stage(host: ModelHost, runner: ModelRunner, accounts: Sequence[Account]) -> PipelineStatus:
    """All layers on one device, in this process."""
    stats, cache = host.engine.stats(), runner.cache
    stage = StageStatus(
        number=0,
        device=runner.device,
        kind=runner.device.partition(":")[0],
        first_layer=0,
        behind_layer=layer_count(host),
        state="running" if stats.running else "ready",
        weights_bytes=runner.memory_bytes,
        cache_bytes=cache.block_count * cache.block_bytes,
        budget_bytes=next((one.budget_bytes for one in accounts if one.device == runner.device), None),
        blocks=cache.block_count,
        steps=stats.steps,
    )
    return PipelineStatus(host.name, 0, "running", stages=(stage,), steps=stats.steps)


def layer_count(host: ModelHost) -> int:
    """0 where the files do not say."""
    config = host.description.config if host.description is not None else {}
    found = next((config[name] for name in LAYER_COUNTS if isinstance(config.get(name), int)), 0)
    return int(found)


def device_records(devices: Sequence[FleetDevice], held: Sequence[Account]) -> list[Record]:
    """Those that splits are planned over, then the others where something is held: who holds how much of each."""
    accounts = {account.device: account for account in held}
    listed = {one.name for one in devices}
    others = [one for one in held if one.device not in listed and not one.is_pool and (one.used_bytes or not listed)]
    return [
        *(_fleet_record(one, accounts.get(one.name)) for one in devices),
        *(_account_record(account) for account in others),
    ]


def _fleet_record(one: FleetDevice, account: Account | None) -> Record:
    device = one.device
    return {
        "device": one.name,
        "kind": device.kind,
        "state": one.state,
        "listed": True,
        "budget_bytes": device.budget_bytes if device.budget_bytes is not None else one.free_bytes,
        "wanted_bytes": one.wanted_bytes,
        "speed": device.speed,
        "losses": one.losses,
        "reason": one.reason or None,
        "held": dict(one.held),
        "buffer_bytes": sum(account.buffers.values()) if account is not None else 0,
    }


def _account_record(account: Account) -> Record:
    return {
        "device": account.device,
        "kind": account.device.partition(":")[0],
        "state": "present",
        "listed": False,  # splits are not planned over it
        "budget_bytes": account.budget_bytes,
        "wanted_bytes": None,  # of a budget that a new plan has to make room for first
        "speed": None,
        "losses": 0,
        "reason": None,
        "held": {model: claim.total_bytes for model, claim in account.claims.items()},
        "buffer_bytes": sum(account.buffers.values()),
    }
