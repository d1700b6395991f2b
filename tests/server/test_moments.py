"""Moments as text."""

from __future__ import annotations

import pytest

from server.moments import utc_text


@pytest.mark.parametrize(
    ("digits", "text"),
    [(0, "2026-11-21T13:02:12Z"), (3, "2026-11-21T13:02:12.036Z"), (9, "2026-11-21T13:02:12.036593581Z")],
)
def test_digits_behind_the_second(digits: int, text: str):
    assert utc_text(1_795_266_132_036_593_581, digits) == text
