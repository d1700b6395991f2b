"""One roster and what is asked of it: short words for the tests of routing."""

from __future__ import annotations

from typing import Any

from server.affinity import Held, Match, ReturnRate
from server.nodes import Node, NodeId
from server.roster import Roster, Seat
from server.routing import STRATEGIES, Choice, Demand, Home, Policy, Refusal, choose
from tests.server.scripted_nodes import MODEL, node_of, report_of

DEMAND = Demand(MODEL, prompt_tokens=100)
NOW = 100.0


def policy_of(strategy: Any = "weighted_round_robin", share: float = 0.0, affinity: bool = True) -> Policy:
    return Policy(STRATEGIES[strategy], ReturnRate(share=share), affinity)


POLICY = policy_of()


def chosen(roster: Roster, demand: Demand = DEMAND, policy: Policy = POLICY, now: float = NOW) -> str:
    choice = choose(demand, roster, policy, now)
    assert isinstance(choice, Choice), choice
    return choice.seat.id


def refused(roster: Roster, demand: Demand = DEMAND, policy: Policy = POLICY, now: float = NOW) -> Refusal:
    refusal = choose(demand, roster, policy, now)
    assert isinstance(refusal, Refusal), refusal
    return refusal


def change(roster: Roster, name: str, now: float = NOW, **changes: Any) -> Seat:
    """The load of a node changes, and its seat is weighed and touched as whoever changes it must."""
    seat = roster.seats[NodeId(name)]
    for field, value in changes.items():
        setattr(seat.load, field, value)
    roster.reweigh(seat.id, now)
    roster.touch(seat.id, now)
    return seat


def occupy(roster: Roster, name: str, requests: int = 1) -> None:
    change(roster, name, in_flight=roster.seats[NodeId(name)].load.in_flight + requests)


def home_at(name: str, waits: float = 5.0, tokens: int = 500) -> Home:
    return Home(NodeId(name), Match(tokens, 0, True), waits, NOW + waits)


def memory_with(roster: Roster, name: str, key: int, tokens: int = 300, at: float = 0.0, digest: str = "") -> None:
    seat = roster.seats[NodeId(name)]
    seat.memory.write(Held((key,), seat.model, digest or seat.identity, tokens, at))


def sized(name: str, context: int | None, **changes: Any) -> Node:
    return node_of(name, report_of(resident=[MODEL], context=context), **changes)
