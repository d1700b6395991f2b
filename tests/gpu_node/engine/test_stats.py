from __future__ import annotations

import pytest

from gpu_node.engine.stats import Counters, Gauges, RecentRate, Tally


def test_a_histogram_is_cumulative_and_its_bounds_belong_below() -> None:
    tally = Tally((1.0, 2.0, 4.0))
    for value in (0.5, 1.0, 1.5, 4.0, 9.0):
        tally.observe(value)
    tally.observe(3.0, times=2)
    histogram = tally.snapshot()
    assert histogram.counts == (2, 3, 6, 7)
    assert (histogram.count, histogram.total, histogram.mean) == (7, 22.0, 22.0 / 7)
    assert [histogram.quantile(share) for share in (0.1, 0.5, 1.0)] == [1.0, 4.0, float("inf")]


def test_an_empty_histogram_has_no_mean() -> None:
    empty = Tally((1.0,)).snapshot()
    assert (empty.count, empty.mean, empty.quantile(0.5)) == (0, 0.0, 0.0)


def test_the_recent_rate_forgets_what_is_long_ago() -> None:
    rate = RecentRate(10)
    assert rate.per_second(100.0) == 0.0
    for second in range(100, 120):
        rate.add(second + 0.5, 30)
    assert rate.per_second(119.9) == pytest.approx(30, rel=0.12)
    assert rate.per_second(125.5) == pytest.approx(15, rel=0.2)
    assert rate.per_second(131.0) == 0.0


def test_a_rate_that_has_just_begun_is_not_divided_by_the_whole_window() -> None:
    rate = RecentRate(10)
    rate.add(50.0, 100)
    rate.add(51.9, 100)
    assert rate.per_second(52.0) == pytest.approx(100)


def test_a_snapshot_has_counts_and_gauges_and_does_not_change() -> None:
    counters = Counters()
    counters.count_step(rows=3, tokens=40)
    before = counters.snapshot(Gauges(running=2, waiting=1, max_running=32), now=0.0)
    counters.count_step(rows=5, tokens=5)
    assert (before.steps, before.step_tokens, before.last_batch, before.running) == (1, 40, 3, 2)
    after = counters.snapshot(Gauges(), now=0.0)
    assert (after.steps, after.step_tokens, after.last_batch) == (2, 45, 5)
    assert after.batch_size.total == 8


def test_what_was_counted_with_a_model_stays_when_it_leaves() -> None:
    counters, gauges = Counters(), Gauges(prompt_tokens=5, cached_prompt_tokens=4, preemptions=3, drafts=2)
    during = counters.snapshot(gauges, now=0.0)
    counters.keep(gauges)
    after = counters.snapshot(Gauges(accepted_drafts=1), now=0.0)
    for stats in (during, after):
        assert (stats.prompt_tokens, stats.cached_prompt_tokens, stats.preemptions, stats.drafts) == (5, 4, 3, 2)
    assert after.accepted_drafts == 1
