"""Says in the log when a phone begins to rest, why, and when it works again: once for each change, never per reading.

A listener of the registry. Knows no limits and decides nothing.
"""

from __future__ import annotations

import logging

from server.nodes import Node

log = logging.getLogger(__name__)


def told(before: Node | None, after: Node | None) -> str | None:
    """What to say of this change of a node, if anything. Pure."""
    if after is None:
        return None  # it left, and that is said elsewhere
    had = (before.care.hot, before.care.low, before.care.spent) if before is not None else (False, False, False)
    has = after.care.hot, after.care.low, after.care.spent
    if has == had:
        return None
    if after.resting is not None:
        unless = "bears no work at all" if after.care.spent else "rests"
        return f"the phone {after.name} {unless}: {after.resting}"
    return f"the phone {after.name} works again: {_now_told(after)}"


def log_rests(before: Node | None, after: Node | None) -> None:
    """For `Registry.listen`."""
    words = told(before, after)
    if words is not None:
        log.info("%s", words)


def _now_told(node: Node) -> str:
    condition = node.condition
    if condition is None:
        return "nothing is known of it"
    degrees = [] if condition.temperature_c is None else [f"{condition.temperature_c:.1f} °C"]
    level = [] if condition.level is None else [f"charged to {condition.level:.0f} %"]
    word = [] if condition.thermal_word is None else [f"thermal status {condition.thermal_word}"]
    return "it last told " + (", ".join([*degrees, *word, *level]) or "nothing")
