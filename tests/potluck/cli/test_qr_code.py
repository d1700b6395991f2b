"""The QR code in characters that the terminal has."""

from __future__ import annotations

import pytest

from potluck.cli.qr_code import drawn


def test_two_rows_a_line_where_there_are_half_blocks() -> None:
    assert "█" in drawn("x", "utf-8")
    assert len(drawn("x", "utf-8").splitlines()) * 2 >= len(drawn("x", "ascii").splitlines())


@pytest.mark.parametrize("encoding", ["ascii", None, "no-such-encoding"])
def test_colours_elsewhere(encoding: str | None) -> None:
    assert "\x1b[" in drawn("x", encoding) and "█" not in drawn("x", encoding)
