from __future__ import annotations

import pytest

from gpu_node.durations import FOREVER, parse_duration


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5m", 300), ("10m0s", 600), ("1h30m", 5400), ("0s", 0), ("0", 0), (0, 0), (90, 90), (1.5, 1.5),
        ("250ms", 0.25), ("1.5h", 5400), ("-1", FOREVER), (-1, FOREVER), ("-5m", FOREVER), (" 3s ", 3), ("100us", 1e-4),
    ],
)  # fmt: skip
def test_ollamas_ways_to_write_a_duration(value: float | str, seconds: float) -> None:
    assert parse_duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "soon", "5x", "5m later", "m5", "nan"])
def test_anything_else_is_a_sentence(value: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(value)
