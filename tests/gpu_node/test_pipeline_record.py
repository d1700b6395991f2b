"""A split model's status as JSON: every key always there, memory told part by part."""

from __future__ import annotations

import json
from dataclasses import fields, replace

from gpu_node.pipeline_record import lent_by_device, memory_of, pipeline_record
from gpu_node.pipeline_status import PipelineStatus, StageStatus
from tests.gpu_node.played_pipeline import FIRST, LEASE, LENDING, MB, SECOND, SPLIT


def test_all_of_a_status_is_told() -> None:
    record = json.loads(json.dumps(pipeline_record(SPLIT)))
    told_elsewhere = {"model", "state", "error"}
    assert {field.name for field in fields(PipelineStatus)} - told_elsewhere <= set(record)
    assert {field.name for field in fields(StageStatus)} - {"number"} <= set(record["stages"][0])
    assert record["depths_measured"] == {"1": 80.0, "2": 130.5}
    assert record["links"][1]["dropped_frames"] == 2
    (lease,) = record["lending"]["leases"]
    assert (lease["lender"], lease["holder"], lease["blocks"], lease["priority"], lease["age_seconds"]) == (
        "cpu:1", "cpu:0", 12, 5, 4.25,
    )  # fmt: skip


def test_a_status_without_anything_has_the_same_keys() -> None:
    empty = pipeline_record(PipelineStatus("m", 0, "running"))
    assert set(empty) == set(pipeline_record(SPLIT))
    assert (empty["lending"], empty["plan"], empty["stages"], empty["lent_bytes"]) == (None, None, [], {})


def test_what_a_stage_lends_and_borrows_stands_beside_its_own() -> None:
    assert memory_of(FIRST, SPLIT).borrowed_bytes == 12 * MB == memory_of(SECOND, SPLIT).lent_bytes
    assert (memory_of(FIRST, SPLIT).lent_bytes, memory_of(SECOND, SPLIT).borrowed_bytes) == (0, 0)
    assert memory_of(FIRST, SPLIT).step_bytes == 5 * MB
    assert memory_of(FIRST, replace(SPLIT, plan=None, lending=None)).step_bytes == 0


def test_lent_bytes_add_up_by_lender() -> None:
    assert lent_by_device((*LENDING.leases, LEASE, replace(LEASE, lender="cuda:0", size_bytes=1))) == {
        "cpu:1": 24 * MB, "cuda:0": 1,
    }  # fmt: skip
