"""How long the gateway thinks about where a request goes: `routing.choose` over a fleet of 1,000 nodes.

Measured beside a plain scan (the smooth weighted round robin of nginx, written down as simply as possible), with the
whole fleet free, a tenth of it and none of it, with and without conversations in the nodes' memories. A full turn
(choose, take the seat, give it back) is measured too, since the index of free seats is paid for there.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.rig.report import Report, at_most, median, table
from server.affinity import Held, Match, Memories
from server.nodes import Load, ModelCopy, ModelKey, Node, NodeId, NodeSpec, NodeStatus
from server.roster import Roster
from server.routing import STRATEGIES, Choice, Demand, Home, Policy, choose

MODEL = ModelKey("smollm2:135m")
DIGEST = "d" * 64
WANTED_MICROSECONDS = 100.0
HELD_TOKENS = (80, 4000)  # the conversations in the memories: a short one to a long one


@dataclass(slots=True)
class Fleet:
    """A roster of one model with everything that `choose` looks at."""

    roster: Roster
    loads: dict[NodeId, Load]
    memories: Memories
    spare: random.Random = field(default_factory=lambda: random.Random(7))

    @classmethod
    def of(cls, count: int, *, held: int, last_resort: bool = False) -> Fleet:
        """`held` conversations in each node's memory; weights 1, 2 and 3 in turn."""
        fleet = cls(Roster(MODEL), {}, Memories())
        for index in range(count):
            fleet._add(_node(index), held)
        if last_resort:
            fleet._add(_node(count, last_resort=True), 0)
        return fleet

    def _add(self, node: Node, held: int) -> None:
        memory = self.memories.of(node.id)
        for number in range(held):
            key = hash((node.id, number))
            memory.write(Held((key,), MODEL, DIGEST, self.spare.randint(*HELD_TOKENS), self.spare.uniform(-60, 0)))
        self.loads[node.id] = Load()
        self.roster.place(node, self.loads[node.id], memory, 0.0)

    def occupy_all_but(self, every: int | None) -> None:
        """Only one node in `every` stays free; None: not one."""
        for index, (node_id, load) in enumerate(self.loads.items()):
            load.in_flight = 0 if every is not None and index % every == 0 else 1
            self.roster.touch(node_id, 0.0)


def _node(index: int, *, last_resort: bool = False) -> Node:
    spec = NodeSpec(
        NodeId(f"phone-{index}"),
        f"phone {index}",
        "ollama",
        "10.0.0.1",
        index,
        weight=1.0 + index % 3,
        last_resort=last_resort,
    )
    return Node(spec, NodeStatus.READY, models={MODEL: ModelCopy("smollm2:135m", DIGEST)})


class PlainScan:
    """The reference: look at every node, add its weight, take the largest sum, charge it the total."""

    def __init__(self, fleet: Fleet) -> None:
        self._seats = list(fleet.roster.seats.values())
        self._sums = {seat.id: 0.0 for seat in self._seats}

    def choose(self) -> NodeId | None:
        total, largest, chosen = 0.0, float("-inf"), None
        sums = self._sums
        for seat in self._seats:
            if seat.load.in_flight >= seat.slots:
                continue
            node_id = seat.node.spec.id
            total += seat.weight
            sums[node_id] += seat.weight
            if sums[node_id] > largest:
                largest, chosen = sums[node_id], node_id
        if chosen is not None:
            sums[chosen] -= total
        return chosen


def full_turn(fleet: Fleet, demand: Demand, policy: Policy) -> Callable[[float], object]:
    """Choose, sit down, get up again: what a request costs the roster in all."""

    def turn(now: float) -> object:
        outcome = choose(demand, fleet.roster, policy, now)
        if isinstance(outcome, Choice):
            load = outcome.seat.load
            load.in_flight += 1
            fleet.roster.touch(outcome.seat.id, now)
            load.in_flight -= 1
            fleet.roster.touch(outcome.seat.id, now)
        return outcome

    return turn


def microseconds(call: Callable[[float], object], calls: int) -> float:
    """The mean of one batch of calls; the clock moves on as in real traffic."""
    began = time.perf_counter()
    for number in range(calls):
        call(number * 0.001)
    return (time.perf_counter() - began) / calls * 1e6


def policy_of(strategy: str, *, returning: bool) -> Policy:
    """`returning`: the traffic has shown that conversations come back, so newcomers are weighed for what they push
    out."""
    policy = Policy(STRATEGIES[strategy])  # type: ignore[index]
    for number in range(200):
        policy.returns.observe(returning and number % 3 > 0)
    return policy


def cases(count: int) -> dict[str, Callable[[float], object]]:
    """Every way of asking that is measured, by name."""
    result: dict[str, Callable[[float], object]] = {}
    for label, every in (("all free", 1), ("a tenth free", 10), ("none free", None)):
        for memory, held in (("no conversations", 0), ("20 conversations each", 20)):
            fleet = Fleet.of(count, held=held)
            fleet.occupy_all_but(every)
            policy = policy_of("weighted_round_robin", returning=held > 0)
            demand = Demand(MODEL, prompt_tokens=200)
            result[f"{label}, {memory}"] = _choosing(demand, fleet, policy)
            if every is not None:
                result[f"{label}, {memory}: full turn"] = full_turn(fleet, demand, policy)
        result[f"{label}: plain scan"] = _scanning(Fleet.of(count, held=0), every)
    result.update(_special_cases(count))
    return result


def _special_cases(count: int) -> dict[str, Callable[[float], object]]:
    """What only some requests ask: a homecoming, a second attempt, other strategies, an embedded node in the fleet."""
    fleet = Fleet.of(count, held=20)
    returning = policy_of("weighted_round_robin", returning=True)
    home = Home(NodeId("phone-500"), Match(500, 0, certain=True), 16.0, 1e9)
    second = Demand(MODEL, 200, excluded=frozenset({NodeId("phone-3")}))
    plain = Fleet.of(count, held=0)
    quiet = policy_of("weighted_round_robin", returning=False)
    embedded = Fleet.of(count, held=0, last_resort=True)
    return {
        "a homecoming": _choosing(Demand(MODEL, 200, home=home), fleet, returning),
        "a second attempt": _choosing(second, Fleet.of(count, held=0), quiet),
        "a context asked for": _choosing(Demand(MODEL, 200, context_tokens=4096), plain, quiet),
        "an embedded node in the fleet": _choosing(Demand(MODEL, 200), embedded, quiet),
        "least_busy": _choosing(Demand(MODEL, 200), plain, policy_of("least_busy", returning=False)),
        "fastest": _choosing(Demand(MODEL, 200), plain, policy_of("fastest", returning=False)),
    }


def _choosing(demand: Demand, fleet: Fleet, policy: Policy) -> Callable[[float], object]:
    return lambda now: choose(demand, fleet.roster, policy, now)


def _scanning(fleet: Fleet, every: int | None) -> Callable[[float], object]:
    fleet.occupy_all_but(every)
    scan = PlainScan(fleet)
    return lambda now: scan.choose()


def measured(count: int, rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """All cases, round robin over the rounds so that a busy moment of the machine touches all of them."""
    chosen = cases(count)
    samples: dict[str, list[float]] = {name: [] for name in chosen}
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        for name, call in chosen.items():
            samples[name].append(microseconds(call, calls))
    return {name: {"median_us": median(values), "best_us": min(values)} for name, values in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.choose", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=300, help="in each round")
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    report = Report("choose", vars(arguments))
    figures = measured(arguments.nodes, arguments.rounds, arguments.calls)
    print(table(("choose", "median us", "best us"), [(name, *row.values()) for name, row in figures.items()]))
    report.figures = figures
    report.targets = [
        at_most(name, row["median_us"], WANTED_MICROSECONDS, " us")
        for name, row in figures.items()
        if "plain scan" not in name
    ]
    report.finish(write=not arguments.no_write)


if __name__ == "__main__":
    main()
