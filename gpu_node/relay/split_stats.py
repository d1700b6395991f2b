"""Split models as the records that STATS carries. Pure: a runner's status and the devices in, records of `wire` out.

Invariants: every record is within its bounds, whatever a device or an error is called; devices of a split that compute
no layer follow its stages, so that a reader sees all of its memory. Must not know sessions or how anything is measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpu_node.device_table import FleetDevice
from gpu_node.pipeline_record import StageMemory, lent_by_device, memory_of
from gpu_node.pipeline_status import DeviceEvent, PipelineStatus, StageStatus
from gpu_node.relay.errors import shortened
from wire.messages_stats import EVENTS, STAGES, WORD_BYTES, EventRecord, PipelineRecord, StageRecord

NAME_BYTES = 128
ERROR_BYTES = 512
DETAIL_BYTES = 256


def pipeline_of(status: PipelineStatus) -> PipelineRecord:
    lending = status.lending
    return PipelineRecord(
        status.model,
        status.state,
        epoch=status.epoch,
        error=shortened(status.error, ERROR_BYTES),
        depth=status.depth,
        replans=status.replans,
        steps=status.steps,
        hops=status.hops,
        step_seconds=status.measured_step_seconds,
        predicted_seconds=status.predicted_step_seconds,
        recovery_seconds=status.last_recovery_seconds,
        leases=len(lending.leases) if lending else 0,
        lent_bytes=lending.lent_bytes if lending else 0,
        host_bytes=lending.host_bytes if lending else 0,
        reclaimed=lending.reclaimed if lending else 0,
        refused=lending.refused if lending else 0,
    )


def stages_of(pipelines: Sequence[PipelineStatus], devices: Sequence[FleetDevice]) -> tuple[StageRecord, ...]:
    """As many as STATS takes."""
    told: list[StageRecord] = []
    for status in pipelines:
        told += [_stage(status.model, stage, memory_of(stage, status)) for stage in status.stages]
        told += _idle(status, devices)
    return tuple(told[:STAGES])


def events_of(events: Sequence[DeviceEvent]) -> tuple[EventRecord, ...]:
    """The latest."""
    return tuple(
        EventRecord(max(one.at, 0.0), shortened(one.device, NAME_BYTES), one.what, shortened(one.detail, DETAIL_BYTES))
        for one in events[-EVENTS:]
    )


def _stage(model: str, stage: StageStatus, memory: StageMemory) -> StageRecord:
    return StageRecord(
        model,
        stage.number,
        shortened(stage.device, NAME_BYTES),
        shortened(stage.kind, WORD_BYTES),
        stage.state,
        first_layer=stage.first_layer,
        behind_layer=stage.behind_layer,
        weights_bytes=stage.weights_bytes,
        cache_bytes=stage.cache_bytes,
        step_bytes=memory.step_bytes,
        lent_bytes=memory.lent_bytes,
        borrowed_bytes=memory.borrowed_bytes,
        budget_bytes=stage.budget_bytes,
        loaded_bytes=stage.loaded_bytes,
        total_bytes=stage.total_bytes,
        steps=stage.steps,
        busy_seconds=stage.busy_seconds,
        hop_microseconds=stage.hop_microseconds,
    )


def _idle(status: PipelineStatus, devices: Sequence[FleetDevice]) -> list[StageRecord]:
    """Devices that have no layer of this model and are not gone."""
    used = {stage.device for stage in status.stages}
    lent = lent_by_device(status.lending.leases) if status.lending else {}
    idle = [one for one in devices if one.name not in used and one.state != "gone"]
    return [
        StageRecord(
            status.model,
            len(status.stages) + place,
            shortened(one.name, NAME_BYTES),
            one.device.kind,
            one.state,
            lent_bytes=lent.get(one.name, 0),
            budget_bytes=one.device.budget_bytes if one.device.budget_bytes is not None else one.free_bytes,
        )
        for place, one in enumerate(idle)
    ]
