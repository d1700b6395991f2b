"""How long something lasts, as Ollama's clients write it: seconds, or Go's "10m0s"; negative is for ever."""

from __future__ import annotations

import math
import re

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PIECE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|us|µs|ns|h|m|s)")
FOREVER = math.inf


def parse_duration(value: float | str) -> float:
    """Seconds; `FOREVER` for anything negative. Raises `ValueError` with a sentence."""
    seconds = _from_text(value.strip()) if isinstance(value, str) else float(value)
    if math.isnan(seconds):
        raise ValueError("a duration must be a number")
    return FOREVER if seconds < 0 else seconds


def _from_text(text: str) -> float:
    sign = -1.0 if text.startswith("-") else 1.0
    body = text.lstrip("+-")
    try:
        return sign * float(body)
    except ValueError:
        pass
    pieces = _PIECE.findall(body)
    if not pieces or "".join(number + unit for number, unit in pieces) != body:
        raise ValueError(f'"{text}" is no duration: write seconds, or a text like "5m" or "1h30m", or -1 for ever')
    return sign * sum(float(number) * _UNITS[unit] for number, unit in pieces)
