"""Go's durations, as Ollama takes them."""

from __future__ import annotations

import pytest

from server.durations import duration_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300.0), ("1h30m", 5400.0), ("-1s", -1.0), ("+2s", 2.0), ("0", 0.0), ("1.5h", 5400.0), ("250ms", 0.25),
     ("3us", 3e-6), ("3\u00b5s", 3e-6), ("3\u03bcs", 3e-6), ("1h0m0.5s", 3600.5), (".5s", 0.5)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert duration_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "-", "m", "5 m", "1.2.3s", "5d", "for ever", "5m1", ".s", "--5s", "1e3s"])
def test_what_is_none(text: str) -> None:
    assert duration_seconds(text) is None
