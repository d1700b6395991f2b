"""Durations as Ollama takes them: numbers of seconds, or Go's texts such as "5m" and "1h30m". Pure."""

from __future__ import annotations

# the micro sign and the Greek letter that looks like it: Go knows both
_UNIT_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ns": 1e-9}


def duration_seconds(value: str) -> float | None:
    """Seconds of a Go duration ("10m0s", "-1s", "0"); None when it is none."""
    sign, rest = (-1.0, value[1:]) if value[:1] == "-" else (1.0, value.removeprefix("+"))
    if rest == "0":
        return 0.0
    total = 0.0
    while rest:
        digits = _leading(rest, "0123456789.")
        unit = _leading(rest[len(digits) :], "hmsnu\u00b5\u03bc")
        if unit not in _UNIT_SECONDS or digits.count(".") > 1 or digits in ("", "."):
            return None
        total += float(digits) * _UNIT_SECONDS[unit]
        rest = rest[len(digits) + len(unit) :]
    return sign * total if value.strip("+-") else None


def _leading(value: str, characters: str) -> str:
    return value[: len(value) - len(value.lstrip(characters))]
