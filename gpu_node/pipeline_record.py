"""A split model's status as records for JSON: the same words for the node's API, its page and the gateway. Pure.

Invariants: every key is always there, null where nothing is known; times are told in seconds unless the key says
otherwise. Must not know HTTP, nor where a status comes from.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gpu_node.pipeline_status import DeviceEvent, LendingStatus, PipelineStatus, StageStatus

Record = dict[str, Any]


def pipeline_record(status: PipelineStatus) -> Record:
    """All of it but the model's name, under which it is listed."""
    return {
        "epoch": status.epoch,
        "state": status.state,
        "error": status.error or None,
        "plan": dict(status.plan) if status.plan is not None else None,
        "picture": list(status.picture),
        "depth": status.depth,
        "depths_measured": {str(depth): round(speed, 3) for depth, speed in sorted(status.depths_measured.items())},
        "stages": [stage_record(stage) for stage in status.stages],
        "links": [{**asdict(link), "sending_seconds": _rounded(link.sending_seconds)} for link in status.links],
        "lending": None if status.lending is None else lending_record(status.lending),
        "replans": status.replans,
        "steps": status.steps,
        "hops": status.hops,
        "predicted_step_seconds": status.predicted_step_seconds,
        "measured_step_seconds": status.measured_step_seconds,
        "last_recovery_seconds": status.last_recovery_seconds,
    }


def stage_record(stage: StageStatus) -> Record:
    record = asdict(stage)
    del record["number"]
    record["busy_seconds"] = _rounded(stage.busy_seconds)
    record["heard_seconds_ago"] = None if stage.heard_seconds_ago is None else _rounded(stage.heard_seconds_ago)
    return {"stage": stage.number, **record, "layers": stage.layers}


def lending_record(lending: LendingStatus) -> Record:
    record = asdict(lending)
    for lease in record["leases"]:
        lease["age_seconds"] = round(lease["age_seconds"], 3)
    record["leases"] = list(record["leases"])
    return record


def event_record(event: DeviceEvent) -> Record:
    return asdict(event)


def _rounded(seconds: float) -> float:
    return round(seconds, 6)
