"""What the head tells of a split model, for any thread: read from what runs, nothing asked of anybody.

Single numbers may change while they are read; the value that comes of it is whole. Must not know HTTP.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gpu_node.pipeline.course import Course, Switch
from gpu_node.pipeline.lineup import LineUp, Seat
from gpu_node.pipeline.split_model import SplitModel
from gpu_node.pipeline_status import LinkStatus, PipelineState, PipelineStatus, StageState, StageStatus
from gpu_node.plan_picture import Picture, plan_lines, record_of

PICTURE_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Measures:
    """What the engine's side has counted. `inside_bytes`: weights and cache of a model in this process."""

    steps: int = 0
    hops: int = 0
    seconds: Sequence[float] = ()  # of the latest decodes
    recovery_seconds: float | None = None
    inside_bytes: tuple[int, int] = (0, 0)


def status_of(
    model: SplitModel, course: Course, switch: Switch | None, measures: Measures, clock: Callable[[], float]
) -> PipelineStatus:
    """`switch`: what the engine uses now."""
    picture, plan = course.picture, course.plan
    told = None if picture is None or plan is None else replace(picture, plan=plan)
    lineup = course.lineup
    ring = None if switch is None else switch.ring
    predicted = None if plan is None or not model.paces_measured else plan.latency_seconds
    return PipelineStatus(
        model=model.shape.name,
        epoch=course.epoch,
        state=_state(course),
        error=str(course.error) if course.error is not None else "",
        plan=None if told is None else record_of(told, model.paces_measured),
        depth=1 if switch is None else switch.depth,
        depths_measured={} if switch is None else dict(switch.depths),
        stages=_stages(course, lineup, clock(), measures),
        replans=course.replans,
        steps=measures.steps,
        hops=measures.hops,
        predicted_step_seconds=predicted,
        measured_step_seconds=statistics.median(measures.seconds) if measures.seconds else None,
        last_recovery_seconds=measures.recovery_seconds,
        picture=() if told is None else tuple(plan_lines(told, PICTURE_WIDTH)),
        links=() if switch is None or ring is None or course.broken else _links(switch),
    )


def _state(course: Course) -> PipelineState:
    if course.error is not None:
        return "broken"
    return "changing" if course.broken or course.changing or course.next is not None else "running"


def _stages(course: Course, lineup: LineUp | None, now: float, measures: Measures) -> tuple[StageStatus, ...]:
    if lineup is not None:
        return tuple(_stage(number, seat, lineup, course, now) for number, seat in enumerate(lineup.seats))
    if course.plan is None or course.picture is None:
        return ()
    return tuple(_inside(course.picture, budget, measures) for budget in list(course.budgets.values())[:1])


def _stage(number: int, seat: Seat, lineup: LineUp, course: Course, now: float) -> StageStatus:
    hand, report = seat.hand, seat.hand.report
    loads = [hand.progress.get(order, (0, 0)) for order in tuple(hand.loading)]
    return StageStatus(
        number=number,
        device=seat.device.name,
        kind=seat.device.kind,
        first_layer=seat.plan.first,
        behind_layer=seat.plan.behind,
        state=_stage_state(seat, course),
        pid=hand.process.pid,
        weights_bytes=seat.loaded.weights_bytes if seat.loaded is not None else 0,
        cache_bytes=lineup.cache_bytes.get(seat.device.name, 0),
        budget_bytes=seat.device.budget_bytes,
        blocks=lineup.near_counts[number] if lineup.near_counts else 0,
        steps=hand.steps,
        busy_seconds=report.busy_seconds if report is not None else 0.0,
        heard_seconds_ago=max(now - hand.heard, 0.0),
        loaded_bytes=sum(done for done, _ in loads),
        total_bytes=sum(total for _, total in loads),
        hop_microseconds=(report.hop_microseconds or None) if report is not None else None,
    )


def _stage_state(seat: Seat, course: Course) -> StageState:
    if seat.hand.gone:
        return "stopping" if seat.hand.dismissed else "lost"
    if seat.hand.loading:
        return "loading"
    return "ready" if course.broken else "running"


def _inside(picture: Picture, budget: int | None, measures: Measures) -> StageStatus:
    """The only stage, in this process."""
    (stage,) = picture.plan.stages
    kind = next(device.kind for device in picture.devices if device.name == stage.device)
    weights, cache = measures.inside_bytes
    return StageStatus(
        0, stage.device, kind, stage.first, stage.behind, "running", None, weights, cache, budget, steps=measures.steps
    )


def _links(switch: Switch) -> tuple[LinkStatus, ...]:
    """Those that the head has an end of."""
    out, back = (link.counters for link in switch.ring.links)
    last = str(len(switch.lineup.seats) - 1)
    return (
        LinkStatus("head", "0", out.frames_sent, out.bytes_sent, 0, out.sending_microseconds / 1e6),
        LinkStatus(last, "head", back.frames_received, back.bytes_received, back.frames_dropped),
    )
