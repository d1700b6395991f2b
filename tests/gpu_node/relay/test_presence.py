"""When a session is over."""

from __future__ import annotations

import pytest

from gpu_node.relay.presence import Presence, SessionTerms, over_at

TERMS = SessionTerms(idle_seconds=300, grace_seconds=30)


@pytest.mark.parametrize(
    ("presence", "at", "state"),
    [
        (Presence(connected=True, busy=True, since=100), None, "live"),
        (Presence(connected=True, busy=False, since=100), 400, "idle"),
        (Presence(connected=False, busy=False, since=100), 130, "cut"),
        (Presence(connected=False, busy=True, since=100), 130, "cut"),  # an answer does not lengthen the grace
    ],
)
def test_times_of_a_session(presence: Presence, at: float | None, state: str) -> None:
    assert over_at(presence, TERMS) == at
    assert presence.state == state
