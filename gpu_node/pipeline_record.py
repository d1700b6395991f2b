"""A split model's status as records for JSON: the same words for the node's API, its page and the gateway. Pure.

Invariants: every key is always there, null where nothing is known; what a stage lends, borrows and needs for a step
stands beside its weights and its cache, so that a reader can draw it without adding up. Must not know HTTP, nor where
a status comes from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from gpu_node.pipeline_status import DeviceEvent, LeaseStatus, LendingStatus, PipelineStatus, StageStatus

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StageMemory:
    """What of a stage's device is neither its weights nor its cache, in bytes. Borrowed ones lie elsewhere."""

    step_bytes: int = 0
    lent_bytes: int = 0
    borrowed_bytes: int = 0


def pipeline_record(status: PipelineStatus) -> Record:
    """All of it but the model's name, under which it is listed, and its state and error, which are the model's too."""
    return {
        "epoch": status.epoch,
        "plan": dict(status.plan) if status.plan is not None else None,
        "picture": list(status.picture),
        "depth": status.depth,
        "depths_measured": {str(depth): round(speed, 3) for depth, speed in sorted(status.depths_measured.items())},
        "stages": [stage_record(stage, memory_of(stage, status)) for stage in status.stages],
        "links": [{**asdict(link), "sending_seconds": _rounded(link.sending_seconds)} for link in status.links],
        "lent_bytes": lent_by_device(status.lending.leases if status.lending is not None else ()),
        "lending": None if status.lending is None else lending_record(status.lending),
        "replans": status.replans,
        "steps": status.steps,
        "hops": status.hops,
        "predicted_step_seconds": status.predicted_step_seconds,
        "measured_step_seconds": status.measured_step_seconds,
        "last_recovery_seconds": status.last_recovery_seconds,
    }


def memory_of(stage: StageStatus, status: PipelineStatus) -> StageMemory:
    leases = status.lending.leases if status.lending is not None else ()
    return StageMemory(
        _planned_step(stage, status),
        lent_bytes=sum(lease.size_bytes for lease in leases if lease.lender == stage.device),
        borrowed_bytes=sum(lease.size_bytes for lease in leases if lease.holder == stage.device),
    )


def lent_by_device(leases: Iterable[LeaseStatus]) -> dict[str, int]:
    """Bytes by the lender's name."""
    lent: dict[str, int] = {}
    for lease in leases:
        lent[lease.lender] = lent.get(lease.lender, 0) + lease.size_bytes
    return lent


def stage_record(stage: StageStatus, memory: StageMemory) -> Record:
    record = asdict(stage)
    del record["number"]
    record["busy_seconds"] = _rounded(stage.busy_seconds)
    record["heard_seconds_ago"] = None if stage.heard_seconds_ago is None else _rounded(stage.heard_seconds_ago)
    return {"stage": stage.number, **record, "layers": stage.layers, **asdict(memory)}


def lending_record(lending: LendingStatus) -> Record:
    record = asdict(lending)
    record["leases"] = [{**lease, "age_seconds": round(lease["age_seconds"], 3)} for lease in record["leases"]]
    return record


def event_record(event: DeviceEvent) -> Record:
    return asdict(event)


def _planned_step(stage: StageStatus, status: PipelineStatus) -> int:
    """What the plan keeps for the activations of a step on the stage's device."""
    devices = (status.plan or {}).get("devices") or ()
    return next((int(one.get("step_bytes") or 0) for one in devices if one.get("device") == stage.device), 0)


def _rounded(seconds: float) -> float:
    return round(seconds, 6)
