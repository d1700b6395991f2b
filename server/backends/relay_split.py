"""How a relay node's models lie on its devices, in the shape of a GPU node's GET /api/pipeline/status. Pure.

A model on one device is one stage, as there. Over the relay a node tells the sums of what its devices lend each other
and not every lease. Must not know how a split is made.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from server.nodes import model_key
from wire.messages_stats import EventRecord, PipelineRecord, ResidentRecord, StageRecord, Stats

Record = dict[str, Any]


def split_record(stats: Stats) -> Record:
    pipelines = {model_key(one.model): one for one in stats.pipelines}
    return {
        "models": {
            one.model: _model(one, pipelines.get(model_key(one.model)), _stages(one.model, stats))
            for one in stats.residents
        },
        "devices": _devices(stats),
        "events": [_event(one) for one in stats.events],
    }


def _stages(model: str, stats: Stats) -> list[StageRecord]:
    return [one for one in stats.stages if model_key(one.model) == model_key(model)]


def _model(resident: ResidentRecord, pipeline: PipelineRecord | None, stages: list[StageRecord]) -> Record:
    record: Record = {
        "state": resident.state,
        "split": pipeline is not None,
        "pipeline": "running",
        "error": None,
        "context_length": resident.context_tokens,
        "running": resident.running,
        "waiting": resident.waiting,
        "max_running": resident.slots,
        "depth": 1,
        "lending": None,
    }
    if pipeline is None:
        return record | {"stages": [_single(resident)], "lent_bytes": {}}
    return record | {
        "pipeline": pipeline.state,
        "error": pipeline.error or None,
        "epoch": pipeline.epoch,
        "depth": pipeline.depth,
        "replans": pipeline.replans,
        "steps": pipeline.steps,
        "hops": pipeline.hops,
        "predicted_step_seconds": pipeline.predicted_seconds,
        "measured_step_seconds": pipeline.step_seconds,
        "last_recovery_seconds": pipeline.recovery_seconds,
        "stages": [_stage(stage) for stage in stages if _layers(stage)],
        "lent_bytes": {stage.device: stage.lent_bytes for stage in stages if stage.lent_bytes},
        "lending": {
            "lease_count": pipeline.leases,
            "lent_bytes": pipeline.lent_bytes,
            "host_bytes": pipeline.host_bytes,
            "reclaimed": pipeline.reclaimed,
            "refused": pipeline.refused,
        },
    }


def _stage(stage: StageRecord) -> Record:
    record = {name: value for name, value in asdict(stage).items() if name != "model"}
    return record | {"layers": _layers(stage)}


def _layers(stage: StageRecord) -> int:
    return max(stage.behind_layer - stage.first_layer, 0)


def _single(resident: ResidentRecord) -> Record:
    """All of it on one device, in the node's own process."""
    weights = max(resident.device_bytes - resident.cache_bytes, 0)
    record = StageRecord(
        resident.model, 0, resident.device or "unknown", resident.device.partition(":")[0],
        "running" if resident.running else "ready", weights_bytes=weights, cache_bytes=resident.cache_bytes,
    )  # fmt: skip
    return _stage(record)


def _devices(stats: Stats) -> list[Record]:
    """Those of its splits, each once; of a node that splits nothing, those that it has accounts of."""
    if not stats.stages:
        return [_device(one.name, one.kind, "present", one.total_bytes, listed=False) for one in stats.devices]
    found: dict[str, Record] = {}
    for one in stats.stages:
        state = one.state if not _layers(one) else "lost" if one.state == "lost" else "present"
        found.setdefault(one.device, _device(one.device, one.kind, state, one.budget_bytes, listed=True))
    return list(found.values())


def _device(name: str, kind: str, state: str, budget_bytes: int | None, *, listed: bool) -> Record:
    return {
        "device": name,
        "kind": kind,
        "state": state,
        "listed": listed,  # splits are planned over it
        "budget_bytes": budget_bytes,
        "buffer_bytes": 0,
    }


def _event(event: EventRecord) -> Record:
    return {"at": event.at_s, "device": event.device, "what": event.what, "detail": event.detail}
