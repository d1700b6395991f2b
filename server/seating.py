"""Who sits where: binds requests to nodes, now or when a slot is free. The thin loop around `routing` and `waiting`.

Decisions are `routing.choose`'s; this keeps its rosters in step with the registry, runs the waiting room whenever
something changed (a slot given back, a node's news, a moment that a refusal named) and turns refusals into errors.
A seat that was taken is given back exactly once. Knows nothing of what is said at a seat.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from itertools import count

from server.affinity import Memories
from server.breaker import on_no_verdict, on_sent
from server.errors import DeadlineExceeded, GatewayError, NoNodes, QueueFull, RequestInvalid
from server.exchange import CallerId
from server.nodes import ModelKey, Node, NodeId, NodeStatus, ResidentModel
from server.registry import Registry, is_renewed
from server.roster import Roster, Seat
from server.routing import Choice, Demand, Policy, Refusal, choose
from server.waiting import Ticket, WaitingRoom

EXPECTED_REQUEST_SECONDS = 10.0  # for Retry-After, until requests have shown how long they take
LOOK_WHILE_STARTING_SECONDS = 1.0  # the embedded node may give up without a word
RETURNING_STATUSES = (NodeStatus.UNKNOWN, NodeStatus.READY, NodeStatus.SILENT)


@dataclass(frozen=True, slots=True)
class SeatingLimits:
    """Bounds of waiting, in seconds; `no_node_seconds` is how long one waits for any node to come back."""

    queue_limit: int = 1024
    queue_seconds: float = 300.0
    no_node_seconds: float = 3.0


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
    hopeless_since: float | None = None
    seated: bool = False  # had a seat before: a half-told answer is never turned away at the door
    future: asyncio.Future[Choice] | None = None

    def kind(self) -> Hashable | None:
        return ("plain", self.demand.model, self.demand.needs_memory) if self.demand.plain() else None


class Seating:
    """Rosters, the waiting room, and the loads that change when somebody sits down or gets up."""

    def __init__(
        self,
        registry: Registry,
        policy: Policy,
        limits: SeatingLimits,
        now: Callable[[], float],
        absence: Callable[[], str | None] = lambda: None,
        starting: Callable[[], bool] = lambda: False,
    ) -> None:
        """`absence` says what to do when there are no nodes at all; `starting`: the embedded node is on its way."""
        self.registry = registry
        self.policy = policy
        self.limits = limits
        self.memories = Memories()
        self.room: WaitingRoom[Claim] = WaitingRoom(limits.queue_limit)
        self.request_seconds = EXPECTED_REQUEST_SECONDS
        self._now = now
        self._absence = absence
        self._starting = starting
        self._rosters: dict[ModelKey | None, Roster] = {}
        self._sequence = count()
        self._timer: asyncio.Handle | None = None
        self._looks_at = 0.0  # when the timer rings: uvloop's handles of less than a millisecond do not tell
        self._hopeless = False  # somebody who waits has been told that no node is in service
        registry.listen(self._follow)

    def roster(self, model: ModelKey | None) -> Roster:
        roster = self._rosters.get(model)
        if roster is None:
            roster = self._rosters[model] = Roster(model)
            for node in self.registry.fleet.nodes.values():
                self._place(roster, node)
        return roster

    def claim(self, caller: CallerId, priority: int, demand: Demand, deadline: float | None) -> Claim:
        return Claim(caller, priority, demand, next(self._sequence), self._now(), deadline)

    def take(self, claim: Claim) -> Choice | None:
        """A seat now, or None: then wait. Raises what ends the request at once."""
        now = self._now()
        outcome = choose(claim.demand, self.roster(claim.demand.model), self.policy, now)
        if isinstance(outcome, Choice):
            return self._occupied(outcome, now)
        error = self._verdict(claim, outcome, now)
        if error is not None:
            raise error
        if self.room.full and not claim.seated:
            return self._take_anywhere(claim, now)
        return None

    def _take_anywhere(self, claim: Claim, now: float) -> Choice:
        """There is no room to wait in: not even for the node that holds the conversation."""
        outcome = choose(replace(claim.demand, home=None), self.roster(claim.demand.model), self.policy, now)
        if isinstance(outcome, Refusal):
            raise QueueFull("too many requests are waiting", self.expected_wait())
        return self._occupied(outcome, now)

    def expected_wait(self) -> float:
        """Seconds until a request that came now would get a seat, by the recent length of requests."""
        slots = sum(node.slots for node in self.registry.fleet.nodes.values() if node.status is NodeStatus.READY)
        return max(1.0, self.request_seconds * (self.room.waiting + 1) / max(1, slots))

    def wait(self, claim: Claim) -> Wait:
        return Wait(self, claim)

    def give_up(self, choice: Choice) -> None:
        """The seat was taken, and nothing was ever asked there."""
        load = choice.seat.load
        if choice.trial:
            load.breaker = on_no_verdict(load.breaker, self._now())
        self.give_back(choice.seat)

    def give_back(self, seat: Seat) -> None:
        """The request at this seat is over (its load has been judged by the caller)."""
        seat.load.in_flight -= 1
        by_model = seat.load.in_flight_by_model
        by_model[seat.model] -= 1
        if not by_model[seat.model]:
            del by_model[seat.model]
        self.touch(seat.id)
        self.pump()

    def touch(self, node_id: NodeId) -> None:
        """The node's load changed."""
        now = self._now()
        for roster in self._rosters.values():
            roster.touch(node_id, now)

    def reweigh(self, node_id: NodeId) -> None:
        for roster in self._rosters.values():
            roster.reweigh(node_id)

    def pump(self) -> None:
        """Offer free seats to those who wait. Called whenever something changed; cheap when nobody waits."""
        if not self.room.waiting:
            return
        now = self._now()
        refusals: dict[Hashable, Refusal] = {}

        def offer(claim: Claim) -> bool:
            assert claim.future is not None and not claim.future.done()
            outcome = choose(claim.demand, self.roster(claim.demand.model), self.policy, now)
            if isinstance(outcome, Refusal):
                refusals[claim.kind() or claim] = outcome
                return False
            claim.future.set_result(self._occupied(outcome, now))
            return True

        self.room.bind(offer)
        self._judge_waiting(refusals, now)

    def _judge_waiting(self, refusals: dict[Hashable, Refusal], now: float) -> None:
        """End the waiting of those that nobody can serve any more, and look again when a refusal says so."""
        look_at = min((r.retry_at for r in refusals.values() if r.retry_at is not None), default=None)
        hopeless = any(r.reason in ("none_in_service", "context") for r in refusals.values())
        affected = hopeless or self._hopeless  # also when hope has just returned: the next time begins anew
        self._hopeless = hopeless
        for ticket in list(self.room) if affected else ():
            claim = ticket.item
            refusal = refusals.get(claim.kind() or claim)
            error = self._verdict(claim, refusal, now) if refusal is not None else None
            if error is not None and claim.future is not None:
                self.room.leave(ticket)  # at once: its kind must not be refused because of it
                claim.future.set_exception(error)
            elif self._starting():
                look_at = min(look_at or math.inf, now + LOOK_WHILE_STARTING_SECONDS)
            elif claim.hopeless_since is not None:
                ends = claim.hopeless_since + self.limits.no_node_seconds
                look_at = min(look_at or math.inf, ends)
        if look_at is not None:
            self.look_at(look_at)

    def look_at(self, when: float) -> None:
        """Pump at that moment, on the clock of `now` (which must be the loop's)."""
        if self._timer is not None:
            if not self._timer.cancelled() and self._now() < self._looks_at <= when:
                return
            self._timer.cancel()
        self._looks_at = max(when, self._now() + 0.001)
        self._timer = asyncio.get_running_loop().call_at(self._looks_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.pump()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _occupied(self, choice: Choice, now: float) -> Choice:
        """The choice, with its seat taken."""
        seat, load = choice.seat, choice.seat.load
        load.in_flight += 1
        load.in_flight_by_model[seat.model] = load.in_flight_by_model.get(seat.model, 0) + 1
        before, load.breaker = load.breaker, on_sent(load.breaker, now)
        self.touch(seat.id)
        return choice if load.breaker is before else replace(choice, trial=True)

    def _verdict(self, claim: Claim, refusal: Refusal, now: float) -> GatewayError | None:
        """What the refusal means for the claim: an error that ends it, or None: worth waiting."""
        if refusal.reason == "context":
            return RequestInvalid(
                f"no node has a context of {claim.demand.context_tokens} tokens for this model",
                field="options.num_ctx",
                hint=f"the largest is {refusal.largest_context}",
            )
        if refusal.reason != "none_in_service" or self._starting():
            claim.hopeless_since = None
            return None
        if claim.hopeless_since is None:
            claim.hopeless_since = now
        if now - claim.hopeless_since < self.limits.no_node_seconds and self._may_return(claim.demand):
            return None
        return NoNodes(self._why_nobody(claim.demand), hint=self._absence())

    def _may_return(self, demand: Demand) -> bool:
        """Is there any node that could serve this if it came (back) into service?"""
        for node in self.registry.fleet.nodes.values():
            if node.id in demand.excluded or node.status not in RETURNING_STATUSES:
                continue
            if node.report is None or demand.model is None or demand.model in node.models:
                return True
        return False

    def _why_nobody(self, demand: Demand) -> str:
        nodes = self.registry.fleet.nodes.values()
        if not nodes:
            return "there are no nodes"
        silent = sum(1 for node in nodes if node.status is NodeStatus.SILENT)
        what = "any model" if demand.model is None else f"'{demand.model}'"
        return f"no node can serve {what} now: {len(nodes)} known, {silent} silent, the others resting after failures"

    def _follow(self, was: Node | None, now_node: Node | None) -> None:
        """The registry has news of a node: keep its seats and its memory true, then serve who waits."""
        node_id = now_node.id if now_node is not None else was.id if was is not None else NodeId("")
        if now_node is None:
            self.memories.remove(node_id)
            for roster in self._rosters.values():
                roster.remove(node_id)
            self.pump()
            return
        if was is not None:
            if is_renewed(was, now_node):
                self.memories.of(node_id).forget()
            for model, resident in was.resident.items():
                self._follow_resident(node_id, model, resident, now_node.resident.get(model))
        for roster in self._rosters.values():
            self._place(roster, now_node)
        self.pump()

    def _follow_resident(
        self, node_id: NodeId, model: ModelKey, was: ResidentModel, now_resident: ResidentModel | None
    ) -> None:
        """A model that left the node's memory, or was loaded anew with another context, holds nothing any more."""
        memory = self.memories.of(node_id)
        if now_resident is None:
            memory.forget(model)
        elif was.context_length is not None and now_resident.context_length not in (None, was.context_length):
            memory.forget_held(model)

    def _place(self, roster: Roster, node: Node) -> None:
        roster.place(node, self.registry.loads[node.id], self.memories.of(node.id), self._now())


class Wait:
    """One claim's time in the waiting room. Use as a context manager: leaving early gives everything back."""

    def __init__(self, seating: Seating, claim: Claim) -> None:
        self._seating = seating
        self._claim = claim
        self._ticket = Ticket(claim.caller, claim.priority, claim.sequence, claim.since, claim, claim.kind())
        self._got: Choice | None = None
        self._entered = 0.0

    def __enter__(self) -> Wait:
        seating, claim = self._seating, self._claim
        self._entered = seating._now()
        claim.future = asyncio.get_running_loop().create_future()
        seating.room.enter(self._ticket)
        seating.pump()  # the refusal that sent it here may name a moment to look again
        return self

    def __exit__(self, *_: object) -> None:
        seating, future = self._seating, self._claim.future
        seating.room.leave(self._ticket)
        self._claim.waited += seating._now() - self._entered
        if future is not None and future.done() and not future.cancelled() and self._got is None:
            if future.exception() is None:  # bound, and the request left before it heard of it
                seating.give_up(future.result())
        elif future is not None and not future.done():
            future.cancel()

    @property
    def position(self) -> int:
        return self._seating.room.position(self._ticket)

    async def seat(self, within_seconds: float) -> Choice | None:
        """The seat, or None when it took longer. Raises NoNodes, DeadlineExceeded, QueueFull (waited too long)."""
        future = self._claim.future
        assert future is not None
        now = self._seating._now()
        ends = self._entered + self._seating.limits.queue_seconds - self._claim.waited
        if self._claim.deadline is not None:
            ends = min(ends, self._claim.deadline)
        await asyncio.wait((future,), timeout=max(0.0, min(within_seconds, ends - now)))
        if future.done():
            self._got = future.result()
            return self._got
        if self._seating._now() < ends:
            return None
        if self._claim.deadline is not None and ends == self._claim.deadline:
            raise DeadlineExceeded("the request's deadline passed while it was waiting")
        raise QueueFull("waited too long for a free node", self._seating.expected_wait())
