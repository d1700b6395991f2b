"""The exposition of split models: every family always, labels of the node's own, values of the status."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client.core import Metric

from gpu_node.pipeline_metrics import pipeline_families
from gpu_node.pipeline_status import PipelineStatus
from tests.gpu_node.played_pipeline import BROKEN, FIRST, MB, SPLIT
from tests.gpu_node.serving import NAME

Labels = tuple[tuple[str, str], ...]


def samples(*pipelines: PipelineStatus, events: dict[str, int] | None = None) -> dict[tuple[str, Labels], float]:
    return {
        (sample.name.removeprefix("potluck_node_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in pipeline_families(pipelines, events or {})
        for sample in family.samples
    }


def of(name: str, **labels: str) -> tuple[str, Labels]:
    return name, tuple(sorted(labels.items()))


def test_stages_links_plans_and_lending() -> None:
    found = samples(SPLIT, events={"lost": 2})
    first = {"model": NAME, "stage": "0", "device": "cpu:0"}
    assert found[of("stage_layers", **first)] == 18
    assert found[of("stage_weights_bytes", **first)] == 150 * MB
    assert found[of("stage_cache_bytes", **first)] == 40 * MB
    assert found[of("stage_budget_bytes", **first)] == 220 * MB
    assert (found[of("stage_blocks", **first)], found[of("stage_far_blocks", **first)]) == (120, 12)
    assert found[of("stage_steps_total", **first)] == 900
    assert found[of("stage_busy_seconds_total", **first)] == 12.5
    assert found[of("stage_hop_seconds", **first)] == pytest.approx(82.4e-6)
    ends = {"model": NAME, "source": "0", "target": "1"}
    assert found[of("link_sent_bytes_total", **ends)] == 4_000_000
    assert found[of("link_frames_total", **ends)] == 1800
    assert found[of("link_dropped_frames_total", **ends)] == 2
    assert found[of("pipeline_steps_total", model=NAME)] * 2 == found[of("pipeline_hops_total", model=NAME)] == 1800
    assert (found[of("pipeline_depth", model=NAME)], found[of("pipeline_epoch", model=NAME)]) == (2, 2)
    assert found[of("pipeline_replans_total", model=NAME)] == 1
    assert found[of("pipeline_predicted_step_seconds", model=NAME)] == 0.004
    assert found[of("pipeline_measured_step_seconds", model=NAME)] == 0.0045
    assert found[of("pipeline_recovery_seconds", model=NAME)] == 2.5
    assert found[of("leases", model=NAME)] == 1
    assert found[of("lent_bytes", model=NAME, device="cpu:1")] == 12 * MB
    assert found[of("host_cache_bytes", model=NAME)] == 2 * MB
    counts = ("leases_granted", "leases_reclaimed", "leases_refused", "moved_blocks", "recomputed_blocks")
    assert [found[of(f"{name}_total", model=NAME)] for name in counts] == [4, 2, 1, 7, 6]
    assert found[of("device_events_total", event="lost")] == 2


def test_what_is_not_known_is_left_out() -> None:
    bare = PipelineStatus(NAME, 1, "running", stages=(replace(FIRST, budget_bytes=None, hop_microseconds=None),))
    names = {name for name, _ in samples(bare)}
    assert "stage_layers" in names
    assert not names & {"stage_budget_bytes", "stage_hop_seconds", "pipeline_measured_step_seconds", "leases"}


def test_a_pipeline_that_cannot_run() -> None:
    assert samples(BROKEN)[of("pipeline_broken", model=NAME)] == 1
    assert samples(SPLIT)[of("pipeline_broken", model=NAME)] == 0


def test_every_family_is_told_also_where_nothing_is_split() -> None:
    def names(families: list[Metric]) -> list[str]:
        return [family.name for family in families]

    none = list(pipeline_families((), {}))
    assert names(none) == names(list(pipeline_families((SPLIT,), {"lost": 1})))
    assert not any(family.samples for family in none)
