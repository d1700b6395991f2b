"""What a request wants of the seating, over all its attempts, and what makes waiting requests alike. Data, no I/O."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from server.exchange import CallerId
from server.nodes import NodeId
from server.routing import Choice, Demand, Refusal


class Kind(NamedTuple):
    """What makes waiting requests alike: the wish, and the home they wait for (None: any node will do)."""

    wish: Demand
    home: NodeId | None


@dataclass(slots=True, eq=False)
class Claim:
    """One request's wish for a seat. Lives over all attempts of the request, so that it keeps its place in the line."""

    caller: CallerId
    priority: int
    demand: Demand
    sequence: int
    since: float
    deadline: float | None = None
    waited: float = 0.0  # in all, between its attempts
    seated: bool = False  # had a seat before: a half-told answer is never turned away at the door
    refusal: Refusal | None = None  # why `take` sent it to the waiting room
    future: asyncio.Future[Choice] | None = None

    def kind(self) -> Kind:
        home = self.demand.home if self.refusal is not None and self.refusal.reason == "home" else None
        return Kind(self._wish(), home.node_id if home is not None else None)

    def waits_until(self) -> float:
        return -math.inf if self.demand.home is None else self.demand.home.waits_until

    def any_node_will_do(self, now: float) -> Kind:
        """It waits for its home no longer; it still takes that seat when it is free."""
        if self.waits_until() > now and self.demand.home is not None:
            self.demand = replace(self.demand, home=replace(self.demand.home, waits_until=now))
        return Kind(self._wish(), None)

    def _wish(self) -> Demand:
        return replace(self.demand, home=None, prompt_tokens=0)  # by these nobody is refused who waits for any node
