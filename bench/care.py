"""What care for heat brings: hours of load on 20 phones that warm up, with care and without. A simulation, no clock.

The gateway's own parts decide (registry, care, rosters, routing, learned speeds, breakers) over phones of four kinds
that heat up and throttle as published (`rig/heat.py`). A second is one step, nothing is drawn at random, so a run gives
the same figures on every machine. Not simulated: reading prompts, charging, and the network.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.rig.heat import AS_ASSUMED, KINDS, TIME_CONSTANT_SECONDS, Assumed, Body
from bench.rig.report import Report, Target, at_least, at_most, percentile, table
from server.affinity import Memories
from server.breaker import BreakerLimits, on_sent
from server.care import CareLimits, Condition
from server.errors import NodeStalled
from server.exchange import Durations, NodeDone, Usage
from server.nodes import ModelCopy, ModelKey, Node, NodeId, NodeSpec, ProbeReport
from server.registry import NodeCondition, NodeListed, NodeProbed, Registry
from server.roster import Roster, Seat
from server.routing import STRATEGIES, Choice, Demand, Policy, choose
from server.verdicts import Outcome, learn_failure, learn_success

PHONES = 20
MODEL = ModelKey("qwen2.5:1.5b")
ANSWER_TOKENS = 256.0
READING_SECONDS = 30  # how often a phone tells its condition
STALL_SECONDS = 15  # without a token, until the gateway goes on elsewhere
ROOMS_C = (22.0, 25.0, 28.0, 31.0, 34.0)  # a shelf, a drawer, a windowsill
LOADS = {"30 %": 0.3, "45 %": 0.45, "all they can": 2.0}  # of what the fleet would write if it never slowed down
PEAK_ABOVE_HOT_C = 1.5  # a reading is 30 s old at most, and the answer that runs is told to its end
BEARABLE = "45 %"  # more than this no such fleet writes for hours without becoming hot
VARIED = {  # what is assumed and nobody has published: how much hangs on it?
    "a quarter more heat": Assumed(heat=1.25),
    "a quarter less heat": Assumed(heat=0.75),
    "warm in half the time": Assumed(time_constant_seconds=TIME_CONSTANT_SECONDS / 2),
    "warm in twice the time": Assumed(time_constant_seconds=TIME_CONSTANT_SECONDS * 2),
}
LEAST_KEPT, LEAST_KEPT_FULL = 0.99, 0.75  # of the tokens: under a load that is bearable, and under all that they can


@dataclass(slots=True)
class Answer:
    """One request: what is left of it, and when it came."""

    came: float
    left: float = ANSWER_TOKENS
    told_here: float = 0.0
    begun: float = 0.0
    silent: int = 0
    trial: bool = False


@dataclass(slots=True)
class Phone:
    body: Body
    seat: Seat | None = None
    answer: Answer | None = None
    peak_c: float = 0.0
    hot_seconds: int = 0
    stopped_seconds: int = 0


@dataclass(slots=True)
class Fleet:
    """The phones, and the gateway's books on them."""

    limits: CareLimits
    registry: Registry = field(init=False)
    roster: Roster = field(default_factory=lambda: Roster(MODEL))
    memories: Memories = field(default_factory=Memories)
    phones: dict[NodeId, Phone] = field(default_factory=dict)
    waiting: deque[Answer] = field(default_factory=deque)
    policy: Policy = field(default_factory=lambda: Policy(STRATEGIES["weighted_round_robin"], affinity=False))
    tokens: float = 0.0
    waits: list[float] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.registry = Registry(self.limits)
        self.registry.listen(self._follow)

    def join(self, node_id: NodeId, body: Body) -> None:
        self.phones[node_id] = Phone(body)
        self.registry.emit(NodeListed(NodeSpec(node_id, node_id, "ollama", "10.0.0.1", 11434, weight=None), 0.0))
        self.registry.emit(NodeProbed(node_id, ProbeReport("0.31.1", (ModelCopy(MODEL, "d"),)), 0.0))

    def _follow(self, _: Node | None, node: Node | None) -> None:
        if node is not None:
            self.roster.place(node, self.registry.loads[node.id], self.memories.of(node.id), self.now)

    @property
    def full_speed(self) -> float:
        return sum(phone.body.kind.tokens_per_second for phone in self.phones.values())

    def second(self) -> None:
        """One second of the fleet: readings, seats for those who wait, and tokens."""
        for index, (node_id, phone) in enumerate(self.phones.items()):
            if (self.now + index) % READING_SECONDS == 0:
                self._tell(node_id, phone.body)
        self._seat()
        self.now += 1.0
        for phone in self.phones.values():
            self._live(phone)

    def _tell(self, node_id: NodeId, body: Body) -> None:
        told = Condition(100.0, True, body.temperature_c, body.thermal_status, at=self.now)
        self.registry.emit(NodeCondition(node_id, told, self.now))

    def _seat(self) -> None:
        while self.waiting:
            outcome = choose(Demand(MODEL, needs_memory=False), self.roster, self.policy, self.now)
            if not isinstance(outcome, Choice):
                return
            seat, answer = outcome.seat, self.waiting.popleft()
            answer.told_here, answer.begun, answer.silent = 0.0, self.now, 0
            before, seat.load.breaker = seat.load.breaker, on_sent(seat.load.breaker, self.now)
            answer.trial = before is not seat.load.breaker
            seat.load.in_flight += 1
            phone = self.phones[seat.id]
            phone.seat, phone.answer = seat, answer
            self.roster.touch(seat.id, self.now)

    def _live(self, phone: Phone) -> None:
        answer, body = phone.answer, phone.body
        told = body.live(1.0, working=answer is not None)
        phone.peak_c = max(phone.peak_c, body.temperature_c)
        phone.hot_seconds += body.temperature_c >= CareLimits().hot_c
        phone.stopped_seconds += body.stopped
        if answer is None:
            return
        told = min(told, answer.left)
        answer.left, answer.told_here, self.tokens = answer.left - told, answer.told_here + told, self.tokens + told
        answer.silent = 0 if told else answer.silent + 1
        if answer.left <= 0.0:
            self._finish(phone, answer)
        elif answer.silent >= STALL_SECONDS:
            self._give_up(phone, answer)

    def _finish(self, phone: Phone, answer: Answer) -> None:
        self.waits.append(self.now - answer.came)
        assert phone.seat is not None
        usage = Usage(0, round(answer.told_here))
        done = NodeDone("stop", MODEL, usage, Durations())
        outcome = Outcome(done, round(answer.told_here), None, self.now - answer.begun, self.now)
        learn_success(phone.seat, outcome, 0, answer.trial)
        self._get_up(phone)

    def _give_up(self, phone: Phone, answer: Answer) -> None:
        """No token for too long: the answer goes on elsewhere, before all that has not begun."""
        assert phone.seat is not None
        stalled = NodeStalled("no token", "between_tokens")
        learn_failure(phone.seat.load, stalled, self.now, BreakerLimits(), answer.trial)
        self.waiting.appendleft(answer)
        self._get_up(phone)

    def _get_up(self, phone: Phone) -> None:
        assert phone.seat is not None
        phone.seat.load.in_flight -= 1
        self.roster.reweigh(phone.seat.id, self.now)
        self.roster.touch(phone.seat.id, self.now)
        phone.seat = phone.answer = None


def fleet_of(phones: int, *, care: bool, assumed: Assumed = AS_ASSUMED) -> Fleet:
    """Phones of all kinds in rooms of all kinds, in equal shares."""
    fleet = Fleet(CareLimits(enabled=care))
    names = list(KINDS)
    for number in range(phones):
        name = names[number % len(names)]
        room = ROOMS_C[number // len(names) % len(ROOMS_C)]
        fleet.join(NodeId(f"{name} {number}"), Body.at_rest(KINDS[name], room, assumed))
    return fleet


def arrivals(fleet: Fleet, share: float) -> Iterator[float]:
    """Moments at even distances; a fleet that is asked for more than it can never waits for work."""
    gap = ANSWER_TOKENS / (fleet.full_speed * share)
    number = 0
    while True:
        yield number * gap
        number += 1


def simulate(hours: float, share: float, *, care: bool, assumed: Assumed = AS_ASSUMED) -> dict[str, float]:
    """Tokens per hour, temperatures and waits of one fleet under one load."""
    fleet = fleet_of(PHONES, care=care, assumed=assumed)
    moments = arrivals(fleet, share)
    following = next(moments)
    most_waiting = 2 * PHONES  # beyond, those that come are turned away, as from a full queue
    for _ in range(round(hours * 3600)):
        while following <= fleet.now:
            if len(fleet.waiting) < most_waiting:
                fleet.waiting.append(Answer(following))
            following = next(moments)
        fleet.second()
    people = fleet.phones.values()
    return {
        "tokens_per_hour": fleet.tokens / hours,
        "peak_c": max(phone.peak_c for phone in people),
        "hot_phones": sum(phone.hot_seconds for phone in people) / 3600 / hours,
        "stopped_phones": sum(phone.stopped_seconds for phone in people) / 3600 / hours,
        "median_s": percentile(fleet.waits, 0.5),
        "p95_s": percentile(fleet.waits, 0.95),
    }


def both_ways(hours: float, share: float, assumed: Assumed = AS_ASSUMED) -> dict[str, dict[str, float]]:
    ways = (("without", False), ("with", True))
    return {way: simulate(hours, share, care=care, assumed=assumed) for way, care in ways}


def measured(hours: float) -> dict[str, dict[str, dict[str, float]]]:
    return {load: both_ways(hours, share) for load, share in LOADS.items()}


def varied(hours: float) -> dict[str, dict[str, dict[str, float]]]:
    """The bearable load, with other assumptions."""
    return {f"{BEARABLE}, {name}": both_ways(hours, LOADS[BEARABLE], assumed) for name, assumed in VARIED.items()}


def promised(figures: dict[str, dict[str, dict[str, float]]]) -> list[Target]:
    def kept(load: str) -> float:
        return figures[load]["with"]["tokens_per_hour"] / figures[load]["without"]["tokens_per_hour"]

    peak = max(ways["with"]["peak_c"] for ways in figures.values())
    return [
        at_most("peak temperature with care", peak, CareLimits().hot_c + PEAK_ABOVE_HOT_C, " °C"),
        at_least(f"tokens with care beside those without, {BEARABLE}", kept(BEARABLE), LEAST_KEPT),
        at_least("the same, all they can", kept("all they can"), LEAST_KEPT_FULL),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.care", description=__doc__)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    report = Report("care", vars(arguments))
    figures, others = measured(arguments.hours), varied(arguments.hours)
    report.figures = {**figures, **others}
    head = ("load", "care", "tokens/h", "peak °C", "hot phones", "stopped phones", "median s", "p95 s")
    rows = [(load, way, *row.values()) for load, ways in report.figures.items() for way, row in ways.items()]
    print(table(head, rows))
    report.targets = promised(figures)
    report.finish(write=not arguments.no_write)


if __name__ == "__main__":
    main()
