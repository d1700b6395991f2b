"""Split models in STATS: plans, stages, devices without a layer, events; within the protocol's bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpu_node.pipeline_status import DeviceEvent
from gpu_node.relay.split_stats import events_of, pipeline_of, stages_of
from tests.gpu_node.played_pipeline import BROKEN, FIRST, MB, SPLIT, played_fleet
from tests.gpu_node.relay.relayed import NAME, scripted
from wire.frames import FrameType
from wire.messages import decode_message, encode_message
from wire.messages_stats import EVENTS, STAGES, Stats


async def test_a_client_is_told_of_a_split() -> None:
    async with scripted(devices=played_fleet()) as (here, _):
        link = await here.connect()
        plain = await link.ask(Stats())
        runner: Any = here.host.engine.runner
        runner.pipeline = SPLIT
        told = await link.ask(Stats())
    assert isinstance(plain, Stats) and isinstance(told, Stats)
    assert (plain.pipelines, plain.stages) == ((), ()) and len(plain.events) == 4
    (pipeline,) = told.pipelines
    assert (pipeline.model, pipeline.state, pipeline.epoch, pipeline.depth) == (NAME, "running", 2, 2)
    assert (pipeline.leases, pipeline.lent_bytes, pipeline.refused) == (1, 12 * MB, 1)
    assert [(stage.device, stage.state) for stage in told.stages] == [
        ("cpu:0", "running"), ("cpu:1", "ready"), ("cpu:2", "present"),
    ]  # fmt: skip
    first, second, idle = told.stages
    assert (first.first_layer, first.behind_layer, first.borrowed_bytes, first.step_bytes) == (0, 18, 12 * MB, 5 * MB)
    assert (second.lent_bytes, second.budget_bytes, second.hop_microseconds) == (12 * MB, 180 * MB, 91.0)
    assert (idle.behind_layer, idle.budget_bytes, idle.stage) == (0, 100 * MB, 2)
    assert (told.events[-1].device, told.events[-1].what) == ("cpu:1", "lost")


def test_a_device_that_is_lost_is_told_and_one_that_is_gone_is_not() -> None:
    fleet = played_fleet("cpu:220MB,cpu:180MB,cpu:100MB,cpu:90MB")
    fleet.remove("cpu:2", force=True)
    assert [one.state for one in fleet.devices] == ["present", "lost", "gone", "present"]
    told = stages_of((replace(SPLIT, stages=(FIRST,)),), fleet.devices)
    assert {stage.device: stage.state for stage in told} == {"cpu:0": "running", "cpu:1": "lost", "cpu:3": "present"}


def test_whatever_it_is_called_it_fits() -> None:
    broken = replace(BROKEN, error="ż" * 1000, stages=(replace(FIRST, device="ü" * 200, kind="k" * 100),) * 2000)
    events = [DeviceEvent(-1.0, "ö" * 200, "lost", "ß" * 1000)] * 100
    stats = Stats(pipelines=(pipeline_of(broken),), events=events_of(events), stages=stages_of((broken,), ()))
    assert (len(stats.events), len(stats.stages)) == (EVENTS, STAGES)
    assert decode_message(FrameType.STATS, b"".join(map(bytes, encode_message(stats)))) == stats
