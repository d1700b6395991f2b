"""A relay node's splits in the shape of its HTTP status."""

from __future__ import annotations

from dataclasses import replace

from server.backends.relay_split import split_record
from tests.fakes.relay_node import fake_relay_node
from tests.server.backends.relay_asking import REPORT, relay_backend, spec_of
from wire.messages_stats import EventRecord, PipelineRecord, StageRecord, Stats

STAGES = (
    StageRecord("Tiny", 0, "cpu:0", "cpu", "running", 0, 18, 150, 40, 5, 0, 12, 220, steps=9, hop_microseconds=82.5),
    StageRecord("Tiny", 1, "cpu:1", "cpu", "lost", 18, 30, 120, 26, 4, 12, 0, 180),
    StageRecord("Tiny", 2, "cpu:2", "cpu", "leaving", budget_bytes=100),
)
PIPELINE = PipelineRecord(
    "tiny", "changing", 3, "", 2, 1, 900, 1800, 0.5, 0.25, 2.5, 1, lent_bytes=12, host_bytes=3, reclaimed=2, refused=1
)
EVENT = EventRecord(1.5, "cpu:1", "lost", "its process ended")
SPLIT = replace(REPORT, stages=STAGES, pipelines=(PIPELINE,), events=(EVENT,))


def test_a_split_is_told_stage_by_stage():
    told = split_record(SPLIT)
    model = told["models"]["tiny"]
    assert (model["split"], model["pipeline"], model["epoch"], model["depth"], model["error"]) == (
        True,
        "changing",
        3,
        2,
        None,
    )
    assert (model["measured_step_seconds"], model["predicted_step_seconds"]) == (0.5, 0.25)
    first, second = model["stages"]
    assert first == {
        "stage": 0, "device": "cpu:0", "kind": "cpu", "state": "running", "first_layer": 0, "behind_layer": 18,
        "layers": 18, "weights_bytes": 150, "cache_bytes": 40, "step_bytes": 5, "lent_bytes": 0, "borrowed_bytes": 12,
        "budget_bytes": 220, "loaded_bytes": 0, "total_bytes": 0, "steps": 9, "busy_seconds": 0.0,
        "hop_microseconds": 82.5,
    }  # fmt: skip
    assert (second["layers"], second["lent_bytes"], model["lent_bytes"]) == (12, 12, {"cpu:1": 12})
    assert model["lending"] == {"lease_count": 1, "lent_bytes": 12, "host_bytes": 3, "reclaimed": 2, "refused": 1}
    states = [(one["device"], one["state"], one["budget_bytes"], one["listed"]) for one in told["devices"]]
    assert states == [
        ("cpu:0", "present", 220, True), ("cpu:1", "lost", 180, True), ("cpu:2", "leaving", 100, True),
    ]  # fmt: skip
    assert told["events"] == [{"at": 1.5, "device": "cpu:1", "what": "lost", "detail": "its process ended"}]


def test_a_model_on_one_device_is_one_stage():
    told = split_record(REPORT)
    model = told["models"]["tiny"]
    assert (model["split"], model["pipeline"], model["running"], model["max_running"]) == (False, "running", 2, 32)
    (stage,) = model["stages"]
    assert (stage["device"], stage["kind"], stage["weights_bytes"], stage["cache_bytes"]) == (
        "cuda:0",
        "cuda",
        1000,
        500,
    )
    assert [(one["device"], one["listed"]) for one in told["devices"]] == [("cuda", False), ("cpu", False)]
    assert told["events"] == []


def test_a_node_without_anything():
    assert split_record(Stats()) == {"models": {}, "devices": [], "events": []}


async def test_it_is_asked_for_by_the_path_of_http():
    async with fake_relay_node(report=SPLIT) as node, relay_backend() as backend:
        told = await backend.operations.ask(spec_of(node), "/api/pipeline/status", 5)
    assert told == split_record(SPLIT)
