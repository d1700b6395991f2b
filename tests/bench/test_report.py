"""The small statistics and the result files behind every measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.rig.machine import cpu_model
from bench.rig.report import Report, at_least, at_most, percentile, rounded, slope, table


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_percentiles_are_values_that_were_seen(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_a_percentile_of_nothing_and_of_one() -> None:
    assert percentile([], 0.5) == 0.0
    assert percentile([7.0], 0.99) == 7.0


def test_the_slope_of_a_line_is_found() -> None:
    assert slope([(0, 5), (1, 7), (2, 9)]) == 2.0
    assert slope([(0, 5), (1, 5)]) == 0.0
    assert slope([(1, 1)]) == 0.0
    assert slope([(1, 1), (1, 9)]) == 0.0


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (3, "3"), (0.0, "0"), (1234.5, "1,234"), (0.012345, "0.0123"), (True, "True")]
)
def test_numbers_are_shown_with_what_they_mean(value: object, text: str) -> None:
    assert rounded(value) == text


def test_a_table_has_columns() -> None:
    lines = table(["name", "per second"], [["gateway", 1500.0], ["x", None]]).splitlines()
    assert lines == ["name     per second", "gateway       1,500", "x                 -"]


def test_targets_are_judged() -> None:
    assert at_least("a", 2.0, 1).reached and not at_least("a", 0.5, 1).reached
    assert at_most("a", 0.5, 1).reached and not at_most("a", 2.0, 1).reached
    missing = at_least("a", None, 1)
    assert not missing.reached and "not measured" in missing.line and missing.line.startswith("MISSED")


def test_a_result_is_written_with_machine_and_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("sample", {"rounds": 3, "file": tmp_path})
    report.figures = {"share": 0.123456789, "rows": [(1, 2.0)]}
    report.targets = [at_least("share", 0.12, 0.5)]
    report.notes.append("nothing else ran")
    report.finish(folder=tmp_path)
    written = json.loads((tmp_path / "sample.json").read_text())
    assert written["figures"] == {"share": 0.12346, "rows": [[1, 2.0]]}
    assert written["arguments"]["rounds"] == 3
    assert written["targets"][0]["reached"] is False
    assert {"cpu", "cores", "python"} <= written["machine"].keys()
    assert written["notes"] == ["nothing else ran"]
    assert "MISSED" in capsys.readouterr().out


def test_the_processor_is_named() -> None:
    assert cpu_model("processor\t: 0\nmodel name\t: Good CPU @ 2\nmodel name\t: other") == "Good CPU @ 2"
