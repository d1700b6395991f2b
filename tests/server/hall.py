"""A seating with its registry, visitors that sit for a while, and the book they sign: for tests on a clock loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from server.affinity import Match
from server.breaker import Breaker, BreakerState, on_success
from server.errors import GatewayError
from server.exchange import CallerId
from server.nodes import Load, NodeId
from server.registry import Registry
from server.roster import UNKNOWN_PROMPT_SPEED
from server.routing import STRATEGIES, Choice, Demand, Home, Policy
from server.seating import Claim, Seating, SeatingLimits
from tests.server.scripted_nodes import MODEL, list_node

A, B = NodeId("a"), NodeId("b")


@dataclass
class Hall:
    """A seating over a registry of its own, and what its visitors got."""

    registry: Registry = field(default_factory=Registry)
    limits: SeatingLimits = field(default_factory=SeatingLimits)
    starting: bool = False
    events: list[str] = field(default_factory=list)
    seating: Seating = field(init=False)

    def __post_init__(self) -> None:
        self.seating = Seating(
            self.registry,
            Policy(STRATEGIES["weighted_round_robin"]),
            self.limits,
            self.now,
            absence=lambda: "plug in a phone",
            starting=lambda: self.starting,
        )

    @staticmethod
    def now() -> float:
        return asyncio.get_running_loop().time()

    def load(self, name: str) -> Load:
        return self.registry.loads[NodeId(name)]

    def claim(self, caller: str = "alice", priority: int = 0, deadline: float | None = None, **demand: Any) -> Claim:
        wanted = Demand(**{"model": MODEL, "prompt_tokens": 10, **demand})
        return self.seating.claim(CallerId(caller), priority, wanted, deadline)

    async def seat(self, claim: Claim) -> Choice:
        """A seat, however long it takes."""
        choice = self.seating.take(claim)
        if choice is None:
            with self.seating.wait(claim) as waiting:
                while choice is None:
                    choice = await waiting.seat(0.5)
        claim.seated = True
        return choice

    async def visit(self, name: str, seconds: float = 1.0, claim: Claim | None = None) -> str:
        """Sit down, stay for a while, get up. What happened is written down."""
        try:
            choice = await self.seat(claim or self.claim())
        except GatewayError as error:
            self.events.append(f"{name} {error.code} {self.now():g}")
            raise
        self.events.append(f"{name} {choice.seat.id} {self.now():g}")
        try:
            await asyncio.sleep(seconds)
        finally:
            choice.seat.load.breaker = on_success(choice.seat.load.breaker)
            self.seating.give_back(choice.seat)
        return choice.seat.id

    def rest(self, name: str, seconds: float) -> None:
        self.load(name).breaker = Breaker(BreakerState.OPEN, 3, 1, self.now() + seconds)
        self.seating.touch(NodeId(name))

    def is_empty(self) -> bool:
        loads = self.registry.loads.values()
        nothing_runs = all(load.in_flight == 0 and not load.in_flight_by_model for load in loads)
        return (
            nothing_runs
            and self.seating.room.waiting == 0
            and not self.seating.room.callers
            and not self.seating.room.groups
        )


@asynccontextmanager
async def hall_with(*nodes: str, **changes: Any) -> AsyncIterator[Hall]:
    """Every node has one slot, unless the test lists its own. At the end nobody sits or waits."""
    hall = Hall(**changes)
    for name in nodes:
        list_node(hall.registry, name)
    yield hall
    assert hall.is_empty()
    hall.seating.close()


def started(*visits: Any) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(visit) for visit in visits]


async def results(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def home_at(hall: Hall, name: str, waits: float) -> Home:
    tokens = round(waits * UNKNOWN_PROMPT_SPEED)  # what takes so long to read anew
    return Home(NodeId(name), Match(tokens, 0, True), waits, hall.now() + waits)
