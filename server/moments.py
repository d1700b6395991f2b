"""Moments as text: UTC in ISO 8601 with a Z, as every record, page and log line of the gateway has them. Pure."""

from __future__ import annotations

import time
from functools import lru_cache

SECOND_NS = 1_000_000_000


def utc_text(moment_ns: int, digits: int = 0) -> str:
    """A moment in nanoseconds of Unix time, with that many digits behind the second: none, 3, or Ollama's 9."""
    seconds, rest = divmod(moment_ns, SECOND_NS)
    if not digits:
        return _second(seconds) + "Z"
    return f"{_second(seconds)}.{rest // 10 ** (9 - digits):0{digits}d}Z"


@lru_cache(maxsize=64)  # a stream writes the same second for each of its tokens
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
