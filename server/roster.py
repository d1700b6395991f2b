"""Who can run one model: a seat for each node that has it, and an index of the free ones. Pure data.

A `Seat` is one node seen from one model; a `Roster` is all seats of a model. Who changes a node's load must `touch` it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from server.affinity import NodeMemory
from server.breaker import BreakerState
from server.nodes import Load, ModelCopy, ModelKey, Node, NodeId, NodeStatus, model_key
from server.rotation import Rotation
from server.speeds import times_as_fast

UNKNOWN_PROMPT_SPEED = 30.0  # tokens/s of a mid-range phone, until the node has shown its own
UNKNOWN_SPEED = 10.0  # tokens/s, likewise
SLOWEST, FASTEST = 0.01, 1e4  # tokens/s; beyond, a node's clock is wrong, and must not have all the work or none
TYPICAL_ANSWER_TOKENS = 128  # of a chat; only the balance of first-token time against speed depends on it
SWEPT_AT = 16  # stale entries of the heap of rests: fewer are not worth sweeping
WEIGHED_SECONDS = 60.0  # how often all seats are looked at for speeds that are too old to count
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
    weight: float = 1.0  # this and the next three are kept up by `weigh`, so that a look at many seats costs little
    speed: float | None = None  # tokens/s; None where nothing was learned, or not for long
    prompt_speed: float = UNKNOWN_PROMPT_SPEED
    first_token_seconds: float = 0.0
    expected_seconds: float = 0.0  # for a typical answer, kept up by `Roster.touch`; 0 until measured

    @property
    def id(self) -> NodeId:
        return self.node.spec.id

    @property
    def identity(self) -> str:
        """What tells this copy's conversations from another's: the digest, or the name where there is none."""
        return self.copy.digest or self.model

    def weigh(self, now: float) -> None:
        """Speeds of this model here, shown or reckoned from another, else what the node has shown in all."""
        load, model, size = self.load, self.model, self.copy.size_bytes
        speeds = load.speeds
        in_all = None if load.pace.is_forgotten(now) else load.tokens_per_second
        self.speed = speeds.writing(model, size, now) or in_all
        self.prompt_speed = speeds.reading(model, size) or load.prompt_tokens_per_second or UNKNOWN_PROMPT_SPEED
        self.first_token_seconds = speeds.first_token(model) or load.first_token_seconds or 0.0
        self.weight = weight_of(self)

    @property
    def sure_prompt_speed(self) -> float | None:
        """For limits: what is merely reckoned makes nobody impatient with a node that is slower in truth."""
        speeds, model = self.load.speeds, self.model
        shown = speeds.of(model)
        if shown is not None and shown.prompt_tokens_per_second is not None:
            return shown.prompt_tokens_per_second
        return _slower(self.load.prompt_tokens_per_second, speeds.reading(model, self.copy.size_bytes))

    @property
    def sure_speed(self) -> float | None:
        """Likewise, of writing; as far back as is known."""
        speeds, model = self.load.speeds, self.model
        shown = speeds.of(model)
        if shown is not None and shown.tokens_per_second is not None:
            return shown.tokens_per_second
        return _slower(self.load.tokens_per_second, speeds.writing(model, self.copy.size_bytes, -math.inf))

    def is_out_of_date(self, now: float) -> bool:
        """Does it stand on a speed that is too old to count?"""
        return (self.load.speeds.of(self.model) or self.load).pace.is_forgotten(now)

    @property
    def resting(self) -> bool:
        """It is too hot or too low: only when all others are, too, may it be asked."""
        return self.node.care.resting is not None

    @property
    def busyness(self) -> float:
        """The share of slots in use; those of a warm phone count for less."""
        return self.load.in_flight / (self.slots * (self.node.care.factor or 1.0))

    def admits(self, now: float) -> bool:
        """In service, busy or not: its breaker does not rest."""
        return self.load.breaker.state is not BreakerState.OPEN or self.load.breaker.admits(now)

    def serves(self, now: float) -> bool:
        """In service, and neither for a trial only nor in an emergency."""
        return not self.resting and self.admits(now) and self.load.breaker.state is not BreakerState.HALF_OPEN

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
    they take nothing from the weights of the others; so do phones that rest for heat or a low battery.
    """

    model: ModelKey | None
    seats: dict[NodeId, Seat] = field(default_factory=dict)
    free: dict[NodeId, Seat] = field(default_factory=dict)
    resting: list[tuple[float, NodeId]] = field(default_factory=list)  # a heap: when to look again; some are stale
    looks: dict[NodeId, float] = field(default_factory=dict)  # the one entry of `resting` that counts for each node
    rotation: Rotation = field(default_factory=Rotation)
    reserve: dict[NodeId, Seat] = field(default_factory=dict)  # free last resorts
    last_resorts: set[NodeId] = field(default_factory=set)
    spared: dict[NodeId, Seat] = field(default_factory=dict)  # free, but they rest
    troubled: set[NodeId] = field(default_factory=set)  # all that rest, free or not
    cursor: int = 0
    weighed_at: float = 0.0

    def touch(self, node_id: NodeId, now: float) -> None:
        """The node's load changed: is its seat free now, or when will it be worth a look?"""
        seat = self.seats.get(node_id)
        if seat is None:
            return
        load = seat.load
        seat.expected_seconds = expected_seconds(seat) / (seat.node.care.factor or 1.0)
        if load.in_flight >= seat.slots or load.breaker.state is BreakerState.HALF_OPEN:
            self._take(node_id)
            return
        until = seat.rests_until
        if until > now:
            self._take(node_id)
            self._look_at(until, node_id)
        elif seat.resting:
            self._take(node_id)
            self.spared[node_id] = seat
        elif seat.node.spec.last_resort:
            self.reserve[node_id] = seat
        else:
            self.free[node_id] = seat
            self.rotation.join(node_id, seat.weight)

    def is_free(self, node_id: NodeId) -> bool:
        return node_id in self.free or node_id in self.reserve or node_id in self.spared

    def _take(self, node_id: NodeId) -> None:
        self.reserve.pop(node_id, None)
        self.spared.pop(node_id, None)
        if self.free.pop(node_id, None) is not None:
            self.rotation.leave(node_id)

    def _look_at(self, when: float, node_id: NodeId) -> None:
        """One look for each node, the earliest, which knows what is left of its rest: nobody may ever come to ask."""
        if self.looks.get(node_id, math.inf) <= when:
            return
        self.looks[node_id] = when
        heapq.heappush(self.resting, (when, node_id))
        if len(self.resting) > 2 * len(self.looks) + SWEPT_AT:
            self.resting = [(due, resting_id) for resting_id, due in self.looks.items()]
            heapq.heapify(self.resting)

    def wake(self, now: float) -> None:
        """Look again at the seats whose rest is over, and now and then at all, for speeds that are too old."""
        if now - self.weighed_at >= WEIGHED_SECONDS:
            self.weighed_at = now
            for node_id in [seat.id for seat in self.seats.values() if seat.is_out_of_date(now)]:
                self.reweigh(node_id, now)
                self.touch(node_id, now)
        while self.resting and self.resting[0][0] <= now:
            when, node_id = heapq.heappop(self.resting)
            if self.looks.get(node_id) == when:
                del self.looks[node_id]
                self.touch(node_id, now)

    def place(self, node: Node, load: Load, memory: NodeMemory, now: float) -> None:
        """The node is new or has changed: give it the seat it deserves now, or none."""
        key = self.model if self.model is not None else node.own_model
        if node.status is not NodeStatus.READY or key is None or key not in node.models or node.care.spent:
            self.remove(node.id)
            return
        troubled = node.care.resting is not None
        if node.spec.last_resort != (node.id in self.last_resorts) or troubled != (node.id in self.troubled):
            self.remove(node.id)
        if troubled:
            self.troubled.add(node.id)
        if node.spec.last_resort:
            self.last_resorts.add(node.id)
        seat = self.seats[node.id] = Seat(node, load, memory, key, node.models[key], node.slots)
        seat.weigh(now)
        self.touch(node.id, now)

    def remove(self, node_id: NodeId) -> None:
        self._take(node_id)
        self.seats.pop(node_id, None)
        self.looks.pop(node_id, None)
        self.last_resorts.discard(node_id)
        self.troubled.discard(node_id)

    def forget(self, node_id: NodeId) -> None:
        """The node is gone for good: nothing of it is kept, not even its place in the rotation."""
        self.remove(node_id)
        self.rotation.forget(node_id)

    def window(self) -> Sequence[Seat]:
        """`LOOKED_AT` free seats, the next ones each time: enough to find a good one in a fleet of any size."""
        if len(self.free) <= LOOKED_AT:
            return list(self.free.values())
        start = self.cursor = (self.cursor + LOOKED_AT) % len(self.free)
        seats = list(islice(self.free.values(), start, start + LOOKED_AT))
        return seats + list(islice(self.free.values(), LOOKED_AT - len(seats)))

    def reweigh(self, node_id: NodeId, now: float) -> None:
        """A node has shown its speed, or not for long. `touch` it afterwards."""
        seat = self.seats.get(node_id)
        if seat is None:
            return
        before = seat.weight
        seat.weigh(now)
        if seat.weight != before and node_id in self.free:
            self.rotation.join(node_id, seat.weight)


def weight_of(seat: Seat) -> float:
    """The owner's weight or the learned one; less while the phone is warm. One that rests is not weighed."""
    own = seat.node.spec.weight
    return (learned_weight(seat) if own is None else own) * (seat.node.care.factor or 1.0)


def learned_weight(seat: Seat) -> float:
    """Tokens/s in steps of a tenth of a power of two: speeds that are equal but for noise share a weight.

    Until one is learned, and once it is forgotten, what a joined phone measured when it was set up counts.
    """
    speed = seat.speed or measured_speed(seat) or UNKNOWN_SPEED
    return float(2.0 ** (round(math.log2(min(max(speed, SLOWEST), FASTEST)) * 10) / 10))


def measured_speed(seat: Seat) -> float | None:
    """Tokens/s as the set-up measured them; reckoned where that was with another model whose size is known."""
    details = seat.node.spec.details
    told, model = details.get("tokens_per_second"), details.get("model")
    if not isinstance(told, float | int) or not 0 < told < FASTEST:
        return None
    copy = seat.node.models.get(model_key(model)) if isinstance(model, str) else None
    if copy is None or not copy.size_bytes or not seat.copy.size_bytes:
        return told
    return told * times_as_fast(seat.copy.size_bytes, copy.size_bytes)


def expected_seconds(seat: Seat) -> float:
    """How long a typical answer would take now; 0 for a node that has not been measured, or not for long."""
    if seat.speed is None:
        return 0.0
    return seat.first_token_seconds + TYPICAL_ANSWER_TOKENS / seat.speed * (1 + seat.load.in_flight)


def _slower(one: float | None, other: float | None) -> float | None:
    return min(one, other) if one is not None and other is not None else one
