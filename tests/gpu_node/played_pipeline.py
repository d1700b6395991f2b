"""A split model as its runner would tell it: played values for tests of what is told and shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpu_node.device_fleet import DeviceFleet
from gpu_node.devices import parse_devices
from gpu_node.pipeline_status import (
    LeaseStatus,
    LendingStatus,
    LinkStatus,
    PipelineStatus,
    StageStatus,
)

MB = 1_000_000
NAME = "smollm2:135m"

LEASE = LeaseStatus(
    3, lender="cpu:1", holder="cpu:0", blocks=12, size_bytes=12 * MB, priority=5, age_seconds=4.25, state="granted"
)
LENDING = LendingStatus(
    0.7, 0.8, lent_bytes=12 * MB, host_bytes=2 * MB, granted=4, reclaimed=2, refused=1, recomputed_blocks=6,
    moved_blocks=7, leases=(LEASE,),
)  # fmt: skip
FIRST = StageStatus(
    0, "cpu:0", "cpu", 0, 18, "running", pid=4001, weights_bytes=150 * MB, cache_bytes=40 * MB, budget_bytes=220 * MB,
    blocks=120, far_blocks=12, steps=900, busy_seconds=12.5, heard_seconds_ago=0.05, hop_microseconds=82.4,
)  # fmt: skip
SECOND = StageStatus(
    1, "cpu:1", "cpu", 18, 30, "ready", pid=4002, weights_bytes=120 * MB, cache_bytes=26 * MB, budget_bytes=180 * MB,
    blocks=132, steps=899, busy_seconds=9.0, heard_seconds_ago=0.1, hop_microseconds=91.0,
)  # fmt: skip
PLAN: dict[str, Any] = {
    "fits": True,
    "strategy": "profiled",
    "reason": "each device has as many layers as it has speed",
    "capacity_tokens": 4096,
    "devices": [{"device": "cpu:0", "step_bytes": 5 * MB}, {"device": "cpu:1", "step_bytes": 4 * MB}],
}
SPLIT = PipelineStatus(
    NAME, 2, "running", plan=PLAN, depth=2, depths_measured={1: 80.0, 2: 130.5}, stages=(FIRST, SECOND),
    lending=LENDING, replans=1, steps=900, hops=1800, predicted_step_seconds=0.004, measured_step_seconds=0.0045,
    last_recovery_seconds=2.5, picture=("DEVICE  LAYERS", "cpu:0   0-17"),
    links=(LinkStatus("head", "0", 900, 50_000), LinkStatus("0", "1", 1800, 4_000_000, 2, 0.5)),
)  # fmt: skip
BROKEN = replace(
    SPLIT, state="broken", error="the model does not fit: short by 0.10 GB",
    stages=(replace(FIRST, state="ready"), replace(SECOND, state="lost")),
)  # fmt: skip
CHANGING = replace(
    SPLIT, state="changing", stages=(FIRST, replace(SECOND, state="loading", loaded_bytes=30, total_bytes=120))
)


def played_fleet(text: str = "cpu:220MB,cpu:180MB@0.5,cpu:100MB") -> DeviceFleet:
    """Of the second device it is known that its process ended; times stand still."""
    fleet = DeviceFleet(parse_devices(text), clock=lambda: 0.0, wall=lambda: 1_800_000_000.0)
    fleet.lost("cpu:1", "its process ended")
    return fleet
