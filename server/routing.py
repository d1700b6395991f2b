"""Which node gets the next request: pure decisions over the seats of one model (`roster`).

`choose` looks at who may serve (has the model, breaker admits, slot free, not excluded), lets a conversation come home,
and leaves the rest to the strategy: smooth weighted round robin, least busy or fastest. It neither waits nor sends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Literal

from server.affinity import Match, Memories, ReturnRate, loss_seconds
from server.contexts import fits_context, largest_context
from server.nodes import ModelCopy, ModelKey, NodeId, NodeKind
from server.roster import LOOKED_AT, UNKNOWN_PROMPT_SPEED, Roster, Seat

StrategyName = Literal["weighted_round_robin", "least_busy", "fastest"]
EQUAL_LOSS = 0.05  # costs within this share of the own reading time count as equal


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
    """`trial`: the one request that a breaker lets through after its rest; only it decides what comes then."""

    seat: Seat
    at_home: bool = False
    trial: bool = False


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
    emergency = bool(roster.last_resorts or roster.troubled) and _is_emergency(demand, roster, now)
    home = demand.home
    if home is not None and (emergency or home.node_id not in roster.last_resorts):
        outcome = _come_home(home, demand, roster, now)
        if outcome is not None:
            return outcome
    if emergency:
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
    if seat is None or seat.resting or not suits(seat, demand):
        return None
    cheaper = _cheaper_than_home(home, seat, demand, roster, now)
    if cheaper is not None:
        roster.rotation.charge(cheaper.id)
        return Choice(cheaper)
    if roster.is_free(home.node_id):
        if home.node_id in roster.free:
            roster.rotation.charge(home.node_id)
        return Choice(seat, at_home=True)
    rests_until = seat.rests_until
    if now < home.waits_until and rests_until < home.waits_until:
        return Refusal("home", retry_at=rests_until if rests_until > now else home.waits_until)
    return None


def _cheaper_than_home(home: Home, seat: Seat, demand: Demand, roster: Roster, now: float) -> Seat | None:
    """The free seat that reads everything anew before the home would have read the rest, if there is one.

    A node's cost is the wait for a slot (here: what is left of it at most) and its unread tokens at its own speed. A
    free home that holds most of the prompt is not compared.
    """
    whole = max(demand.prompt_tokens, home.match.tokens)  # the one is estimated, the other was counted
    unread = whole - home.match.tokens
    wait = 0.0 if roster.is_free(home.node_id) else max(0.0, home.waits_until - now)
    if not wait and 2 * unread <= whole:
        return None
    others = [other for other in roster.window() if other.id != seat.id and suits(other, demand)]
    best = max(others, key=attrgetter("prompt_speed"), default=None)
    if best is None or wait + unread / seat.prompt_speed <= whole / best.prompt_speed * (1 + EQUAL_LOSS):
        return None
    return best


def _take_last_resort(demand: Demand, roster: Roster, now: float) -> Choice | Refusal:
    """The embedded node while it is in service, busy or not; else, of the phones that rest, the least strained one.

    Refusing everybody would help no phone for long, and people would switch care off. What cannot bear any work is not
    among the seats.
    """
    willing = [seat for seat in roster.reserve.values() if suits(seat, demand)]
    if willing:
        return Choice(min(willing, key=attrgetter("busyness")))
    last_resorts = (roster.seats[node_id] for node_id in roster.last_resorts)
    if any(seat.serves(now) and suits(seat, demand) for seat in last_resorts):
        return _refusal(demand, roster, now)
    spared = [seat for seat in roster.spared.values() if suits(seat, demand)]
    if not spared:
        return _refusal(demand, roster, now)
    return Choice(min(spared, key=lambda seat: (seat.node.care.strain, seat.busyness)))


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


def _is_emergency(demand: Demand, roster: Roster, now: float) -> bool:
    """The embedded node, and phones that rest, serve only while no other can, busy or not.

    One on trial has yet to show that it can.
    """
    others = (seat for seat in roster.seats.values() if not seat.node.spec.last_resort)
    return not any(seat.serves(now) and suits(seat, demand) for seat in others)


def losing_least(demand: Demand, free: Sequence[Seat], returns: ReturnRate, now: float) -> Sequence[Seat]:
    """The free seats where a newcomer pushes out nothing worth keeping, else those that lose least."""
    losses = []
    for seat in free:
        lost = seat.memory.next_lost(seat.model)
        losses.append(0.0 if lost is None else loss_seconds(lost, seat.prompt_speed, returns, now))
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
        return Refusal("context", largest_context=max(largest_context(seat) or 0 for seat in willing))
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
    least = min(seat.busyness for seat in candidates)
    equals = [seat for seat in candidates if seat.busyness == least]
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
            if seat is None or seat.resting or match is None:
                continue
            rank = (roster.is_free(node_id), match.tokens)  # among several that hold it, one need not wait
            if rank > best_rank:
                saving = match.tokens / seat.prompt_speed
                best = Home(node_id, match, saving, now + saving if _will_hold(seat, match) else now)
                best_rank = rank
        if best is not None:
            return best
    return None
