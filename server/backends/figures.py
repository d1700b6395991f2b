"""Numbers that a node tells, none of them believed unseen: counts, times, embeddings. Pure.

Raises ValueError or TypeError for what is no such number; the callers make a `NodeBroken` of it. Learned speeds,
budgets and metrics are made of these numbers, so one absurd value would spoil them for good.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

MOST_TOKENS = 1 << 31  # far beyond any context
MOST_NANOSECONDS = 1 << 53  # a hundred days, and still exact as a float
MOST_MILLISECONDS = MOST_NANOSECONDS / 1e6


def figure(record: Mapping[str, Any], name: str, most: float) -> float:
    """A number from 0 to `most`; 0 where the node leaves it out, as old versions do with what they did not do."""
    value = record.get(name) or 0
    if type(value) not in (int, float) or not 0 <= value <= most:
        raise ValueError(f"{name} is {str(value)[:60]}")
    return float(value)


def tokens(record: Mapping[str, Any], name: str) -> int:
    return int(figure(record, name, MOST_TOKENS))


def nanoseconds(record: Mapping[str, Any], name: str) -> int:
    return int(figure(record, name, MOST_NANOSECONDS))


def vectors(value: Any) -> list[list[float]]:
    """A list of lists of numbers."""
    if type(value) is not list or not all(type(vector) is list for vector in value):
        raise TypeError("embeddings that are no lists")
    for vector in value:
        array("d", vector)  # the quickest look at every number
    return value
