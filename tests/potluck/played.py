"""The asyncio client for a node that is played, with pauses that nobody feels."""

from __future__ import annotations

from typing import Any

from potluck import AsyncRelay
from tests.fakes.relay_node import FakeRelayNode
from transport.pauses import PausePolicy
from transport.session import SessionSettings

QUICK = SessionSettings(name="test", pauses=PausePolicy(first_seconds=0.001, longest_seconds=0.01))


def relay_of(node: FakeRelayNode, **options: Any) -> AsyncRelay:
    return AsyncRelay((node.place.host, node.place.port), settings=QUICK, **options)
