"""Which node gets the next request: pure decisions over the seats of one model.

A `Seat` is one node seen from one model; a `Roster` is all seats of a model in one epoch of the fleet. `choose` looks
at who may serve (has the model, breaker admits, slot free, not excluded), lets a conversation come home, and leaves the
rest to the strategy: smooth weighted round robin (`rotation`), least busy or fastest. It neither waits nor sends.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Literal

from server.affinity import Match, Memories, NodeMemory, ReturnRate, loss_seconds
from server.breaker import BreakerState
from server.nodes import Load, ModelCopy, ModelKey, Node, NodeId, NodeKind, NodeStatus
from server.rotation import Rotation

StrategyName = Literal["weighted_round_robin", "least_busy", "fastest"]
UNKNOWN_PROMPT_SPEED = 30.0  # tokens/s of a mid-range phone, until the node has shown its own
UNKNOWN_SPEED = 10.0  # tokens/s, likewise
TYPICAL_ANSWER_TOKENS = 128  # of a chat; only the balance of first-token time against speed depends on it
EQUAL_LOSS = 0.05  # losses within this share of the newcomer's own reading time count as equal
LOOKED_AT = 32  # seats weighed one by one: keeps a choice among a thousand under 100 us


@dataclass(slots=True)
class Seat:
    """One node, as the place where one model runs."""

    node: Node
    load: Load
    memory: NodeMemory
    model: ModelKey
    copy: ModelCopy
    slots: int
    weight: float
    expected_seconds: float = 0.0  # for a typical answer, kept up by `Roster.touch`; 0 until measured

    @property
    def id(self) -> NodeId:
        return self.node.spec.id

    @property
    def identity(self) -> str:
        """What tells this copy's conversations from another's: the digest, or the name where there is none."""
        return self.copy.digest or self.model

    @property
    def prompt_speed(self) -> float:
        return self.load.prompt_tokens_per_second or UNKNOWN_PROMPT_SPEED

    def admits(self, now: float) -> bool:
        """In service, busy or not: its breaker does not rest."""
        return self.load.breaker.state is not BreakerState.OPEN or self.load.breaker.admits(now)

    @property
    def rests_until(self) -> float:
        """When its breaker, a failure just now or its own word lets it be asked again."""
        load, breaker = self.load, self.load.breaker
        opens = breaker.open_until if breaker.state is BreakerState.OPEN else 0.0
        return max(opens, load.shunned_until, load.busy_until)


@dataclass(slots=True)
class Roster:
    """All seats of one model (None: of every node's own) and, kept up by `touch`, the free ones among them.

    The index of free seats spares each choice a look at a thousand busy nodes. Who changes a node's load must `touch`
    its seats; a rest that ends by time alone is in `resting`. Last resorts stand apart, out of the rotation, so that
    they take nothing from the weights of the others.
    """

    model: ModelKey | None
    seats: dict[NodeId, Seat] = field(default_factory=dict)
    free: dict[NodeId, Seat] = field(default_factory=dict)
    resting: list[tuple[float, NodeId]] = field(default_factory=list)  # a heap: when to look again
    rotation: Rotation = field(default_factory=Rotation)
    reserve: dict[NodeId, Seat] = field(default_factory=dict)  # free last resorts
    last_resorts: set[NodeId] = field(default_factory=set)
    cursor: int = 0

    def touch(self, node_id: NodeId, now: float) -> None:
        """The node's load changed: is its seat free now, or when will it be worth a look?"""
        seat = self.seats.get(node_id)
        if seat is None:
            return
        load = seat.load
        seat.expected_seconds = expected_seconds(load)
        if load.in_flight >= seat.slots or load.breaker.state is BreakerState.HALF_OPEN:
            self._take(node_id)
            return
        until = seat.rests_until
        if until > now:
            self._take(node_id)
            heapq.heappush(self.resting, (until, node_id))
        elif seat.node.spec.last_resort:
            self.reserve[node_id] = seat
        else:
            self.free[node_id] = seat
            self.rotation.join(node_id, seat.weight)

    def is_free(self, node_id: NodeId) -> bool:
        return node_id in self.free or node_id in self.reserve

    def _take(self, node_id: NodeId) -> None:
        self.reserve.pop(node_id, None)
        if self.free.pop(node_id, None) is not None:
            self.rotation.leave(node_id)

    def wake(self, now: float) -> None:
        """Look again at the seats whose rest is over."""
        while self.resting and self.resting[0][0] <= now:
            self.touch(heapq.heappop(self.resting)[1], now)

    def place(self, node: Node, load: Load, memory: NodeMemory, now: float) -> None:
        """The node is new or has changed: give it the seat it deserves now, or none."""
        key = self.model if self.model is not None else node.own_model
        if node.status is not NodeStatus.READY or key is None or key not in node.models:
            self.remove(node.id)
            return
        weight = node.spec.weight or learned_weight(load)
        if node.spec.last_resort != (node.id in self.last_resorts):
            self.remove(node.id)
        if node.spec.last_resort:
            self.last_resorts.add(node.id)
        self.seats[node.id] = Seat(node, load, memory, key, node.models[key], node.slots, weight)
        self.touch(node.id, now)

    def remove(self, node_id: NodeId) -> None:
        self._take(node_id)
        self.seats.pop(node_id, None)
        self.last_resorts.discard(node_id)

    def window(self) -> Sequence[Seat]:
        """`LOOKED_AT` free seats, the next ones each time: enough to find a good one in a fleet of any size."""
        if len(self.free) <= LOOKED_AT:
            return list(self.free.values())
        start = self.cursor = (self.cursor + LOOKED_AT) % len(self.free)
        seats = list(islice(self.free.values(), start, start + LOOKED_AT))
        return seats + list(islice(self.free.values(), LOOKED_AT - len(seats)))

    def reweigh(self, node_id: NodeId) -> None:
        """A node whose weight is "auto" has shown its speed."""
        seat = self.seats.get(node_id)
        if seat is not None and seat.node.spec.weight is None:
            seat.weight = learned_weight(seat.load)
            if node_id in self.free:
                self.rotation.join(node_id, seat.weight)


def learned_weight(load: Load) -> float:
    """Tokens/s in steps of a tenth of a power of two: speeds that are equal but for noise share a weight."""
    speed = load.tokens_per_second or UNKNOWN_SPEED
    return float(2.0 ** (round(math.log2(speed) * 10) / 10))


def expected_seconds(load: Load) -> float:
    """How long a typical answer would take now; 0 for a node that has not been measured."""
    if load.tokens_per_second is None:
        return 0.0
    return (load.first_token_seconds or 0.0) + TYPICAL_ANSWER_TOKENS / load.tokens_per_second * (1 + load.in_flight)


@dataclass(frozen=True, slots=True)
class Home:
    """Where a conversation is held, and until when a request waits for that node (loop clock)."""

    node_id: NodeId
    match: Match
    saving_seconds: float
    waits_until: float


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request needs of a node; grows by exclusions while attempts fail."""

    model: ModelKey | None
    prompt_tokens: int = 0
    context_tokens: int | None = None  # options.num_ctx
    excluded: frozenset[NodeId] = frozenset()
    able: Callable[[Seat], bool] | None = None  # who may go on with a half-told answer
    home: Home | None = None
    needs_memory: bool = True  # chat and generate move the node's prompt cache; embed does not

    def plain(self) -> bool:
        """Could any free node do? Then one refusal answers for all such demands of the model."""
        return not self.excluded and self.able is None and self.home is None and self.context_tokens is None


@dataclass(frozen=True, slots=True)
class Choice:
    seat: Seat
    at_home: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nobody takes it now. `busy` and `home` mean wait; `retry_at` says when a look is worth it again."""

    reason: Literal["busy", "home", "none_in_service", "context"]
    retry_at: float | None = None
    largest_context: int | None = None


@dataclass(slots=True)
class Policy:
    """How to choose: the strategy, and what is known of conversations that come back."""

    strategy: Strategy
    returns: ReturnRate = field(default_factory=ReturnRate)
    affinity: bool = True


def choose(demand: Demand, roster: Roster, policy: Policy, now: float) -> Choice | Refusal:
    """Pick a seat for the demand, or say why not. Mutates only the rotation of the roster."""
    roster.wake(now)
    last_resort = bool(roster.last_resorts) and _needs_last_resort(demand, roster, now)
    home = demand.home
    if home is not None and (last_resort or home.node_id not in roster.last_resorts):
        outcome = _come_home(home, demand, roster, now)
        if outcome is not None:
            return outcome
    if last_resort:
        return _take_last_resort(demand, roster, now)
    weighed = policy.affinity and demand.needs_memory and policy.returns.share > 0.0
    only = _candidates(demand, roster, weighed)
    if not (roster.free if only is None else only):
        return _refusal(demand, roster, now)
    if weighed and only is not None:
        only = losing_least(demand, only, policy.returns, now)
    return Choice(policy.strategy(roster, only))


def _come_home(home: Home, demand: Demand, roster: Roster, now: float) -> Choice | Refusal | None:
    """The home's seat if it is free; else a wait, while that can still save something; None: go elsewhere."""
    seat = roster.seats.get(home.node_id)
    if seat is None or not suits(seat, demand):
        return None
    if roster.is_free(home.node_id):
        if home.node_id in roster.free:
            roster.rotation.charge(home.node_id)
        return Choice(seat, at_home=True)
    rests_until = seat.rests_until
    if now < home.waits_until and rests_until < home.waits_until:
        return Refusal("home", retry_at=rests_until if rests_until > now else home.waits_until)
    return None


def _take_last_resort(demand: Demand, roster: Roster, now: float) -> Choice | Refusal:
    willing = [seat for seat in roster.reserve.values() if suits(seat, demand)]
    if not willing:
        return _refusal(demand, roster, now)
    return Choice(min(willing, key=lambda seat: seat.load.in_flight / seat.slots))


def _candidates(demand: Demand, roster: Roster, weighed: bool) -> Sequence[Seat] | None:
    """The free seats that may take it: those of one window, or where it has none, all. None: any free seat will do."""
    if demand.plain():
        return roster.window() if weighed else None
    near = [seat for seat in roster.window() if suits(seat, demand)]
    if near or len(roster.free) <= LOOKED_AT:
        return near
    return [seat for seat in roster.free.values() if suits(seat, demand)]


def suits(seat: Seat, demand: Demand) -> bool:
    if seat.node.spec.id in demand.excluded:
        return False
    if demand.able is not None and not demand.able(seat):
        return False
    return demand.context_tokens is None or fits_context(seat, demand.context_tokens)


def same_copy(seat: Seat, copy: ModelCopy, kind: NodeKind) -> bool:
    """Same weights and template? Kinds without digests can only be compared by name."""
    if copy.digest:
        return seat.copy.digest == copy.digest
    return seat.node.spec.kind == kind and seat.copy.name == copy.name


def fits_context(seat: Seat, wanted: int) -> bool:
    """Another `num_ctx` would reload the model and forget all conversations: a loaded model keeps what it has."""
    length = context_length(seat)
    return length is None or length >= wanted


def context_length(seat: Seat) -> int | None:
    """What the model's context is, as we had it loaded or as the node tells; None: not loaded, or nobody knows."""
    pinned = seat.memory.pinned_contexts.get(seat.model)
    if pinned is not None:  # also before a probe has seen it loaded: a second request must not take it for free
        return pinned
    resident = seat.node.resident.get(seat.model)
    return None if resident is None else resident.context_length


def _needs_last_resort(demand: Demand, roster: Roster, now: float) -> bool:
    """The embedded node serves only while no other can, busy or not."""
    return not any(
        seat.admits(now) and suits(seat, demand) for seat in roster.seats.values() if not seat.node.spec.last_resort
    )


def losing_least(demand: Demand, free: Sequence[Seat], returns: ReturnRate, now: float) -> Sequence[Seat]:
    """The free seats where a newcomer pushes out nothing worth keeping, else those that lose least."""
    losses = [loss_seconds(seat.memory.next_lost(seat.model), seat.prompt_speed, returns, now) for seat in free]
    bound = min(losses) + EQUAL_LOSS * demand.prompt_tokens / UNKNOWN_PROMPT_SPEED
    return [seat for seat, loss in zip(free, losses, strict=True) if loss <= bound]


def _refusal(demand: Demand, roster: Roster, now: float) -> Refusal:
    """No seat is free: is there anything to wait for, and when is a look worth it again?"""
    retry_at = roster.resting[0][0] if roster.resting else None
    if any(seat.admits(now) and suits(seat, demand) for seat in roster.seats.values()):
        return Refusal("busy", retry_at)
    wanted = demand.context_tokens
    willing = [seat for seat in roster.seats.values() if seat.id not in demand.excluded]
    if wanted is not None and willing and not any(fits_context(seat, wanted) for seat in willing):
        return Refusal("context", largest_context=max(context_length(seat) or 0 for seat in willing))
    return Refusal("none_in_service", retry_at)


Strategy = Callable[[Roster, "Sequence[Seat] | None"], Seat]
"""(roster, the free seats to choose from, None for all of them) -> the seat. Turns the rotation by one."""


def weighted_round_robin(roster: Roster, only: Sequence[Seat] | None) -> Seat:
    if only is None:
        return roster.free[roster.rotation.pick()]
    return roster.free[roster.rotation.pick_among([seat.id for seat in only])]


def least_busy(roster: Roster, only: Sequence[Seat] | None) -> Seat:
    """The smallest share of slots in use; weighted rotation among equals."""
    idle = [seat for seat in (roster.window() if only is None else only) if not seat.load.in_flight]
    if idle:
        return weighted_round_robin(roster, idle)
    candidates = list(roster.free.values()) if only is None else only
    least = min(seat.load.in_flight / seat.slots for seat in candidates)
    equals = [seat for seat in candidates if seat.load.in_flight / seat.slots == least]
    return weighted_round_robin(roster, equals)


def fastest(roster: Roster, only: Sequence[Seat] | None) -> Seat:
    """The shortest expected time for a typical answer, by learned speed; nodes not yet measured go first."""
    candidates = roster.free.values() if only is None else only
    quickest = min(candidates, key=attrgetter("expected_seconds"))
    if quickest.expected_seconds == 0.0:
        near = roster.window() if only is None else only
        return weighted_round_robin(roster, [seat for seat in near if seat.expected_seconds == 0.0] or [quickest])
    roster.rotation.charge(quickest.id)
    return quickest


STRATEGIES: Mapping[StrategyName, Strategy] = {
    "weighted_round_robin": weighted_round_robin,
    "least_busy": least_busy,
    "fastest": fastest,
}


def _will_hold(seat: Seat, match: Match) -> bool:
    """Is it worth waiting for? Who speaks there now pushes out what the node cannot hold beside it."""
    return match.certain and (not seat.load.in_flight or match.depth + seat.load.in_flight <= seat.memory.warm_depth)


def find_home(prefixes: Sequence[tuple[int, int]], roster: Roster, memories: Memories, now: float) -> Home | None:
    """The node that holds the longest part of the conversation, and how long coming home is worth waiting for.

    Coming home saves the reading of what is held: cold minus warm reading there.
    """
    for key, _ in prefixes:
        best: Home | None = None
        best_rank = (False, -1)
        for node_id in islice(memories.holders.get(key, ()), LOOKED_AT):
            seat = roster.seats.get(node_id)
            match = seat.memory.find(prefixes, seat.identity) if seat else None
            if seat is None or match is None:
                continue
            rank = (roster.is_free(node_id), match.tokens)  # among several that hold it, one need not wait
            if rank > best_rank:
                saving = match.tokens / seat.prompt_speed
                best = Home(node_id, match, saving, now + saving if _will_hold(seat, match) else now)
                best_rank = rank
        if best is not None:
            return best
    return None
