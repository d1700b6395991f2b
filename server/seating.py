"""Who sits where: binds requests to nodes, now or when a slot is free. The thin loop around `routing` and `waiting`.

Decisions are `routing.choose`'s; this keeps its rosters in step with the registry, runs the waiting room whenever
something changed (a slot given back, a node's news, a moment that a refusal named) and turns refusals into errors.
Whoever waits has been refused in the present state of things, so that a change asks those only whom it can concern.
A seat that was taken is given back exactly once. Knows nothing of what is said at a seat.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from operator import itemgetter

from server.affinity import Memories
from server.breaker import on_no_verdict, on_sent
from server.claims import Claim as Claim
from server.claims import Kind
from server.errors import DeadlineExceeded, GatewayError, NoNodes, QueueFull, RequestInvalid
from server.exchange import CallerId
from server.nodes import ModelKey, Node, NodeId, ResidentModel
from server.outlook import Outlook
from server.registry import Registry, is_renewed
from server.roster import Roster, Seat
from server.routing import Choice, Demand, Policy, Refusal, choose, suits
from server.waiting import Ticket, WaitingRoom

EXPECTED_REQUEST_SECONDS = 10.0  # for Retry-After, until requests have shown how long they take
LOOK_WHILE_STARTING_SECONDS = 1.0  # the embedded node may give up without a word


@dataclass(frozen=True, slots=True)
class SeatingLimits:
    """Bounds of waiting, in seconds; `no_node_seconds` is how long one waits for any node to come back."""

    queue_limit: int = 1024
    queue_seconds: float = 300.0
    no_node_seconds: float = 3.0


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
        self.room: WaitingRoom[Claim, Kind] = WaitingRoom(limits.queue_limit)
        self.request_seconds = EXPECTED_REQUEST_SECONDS
        self.now = now
        self._absence = absence
        self._starting = starting
        self._rosters: dict[ModelKey | None, Roster] = {}
        self._sequence = count()
        self._timer: asyncio.Handle | None = None
        self._looks_at = 0.0  # when the timer rings: uvloop's handles of less than a millisecond do not tell
        self._outlook = Outlook(registry.fleet)
        registry.listen(self._follow)

    def roster(self, model: ModelKey | None) -> Roster:
        roster = self._rosters.get(model)
        if roster is None:
            roster = self._rosters[model] = Roster(model)
            for node in self.registry.fleet.nodes.values():
                self._place(roster, node)
        return roster

    def claim(self, caller: CallerId, priority: int, demand: Demand, deadline: float | None) -> Claim:
        return Claim(caller, priority, demand, next(self._sequence), self.now(), deadline)

    def take(self, claim: Claim) -> Choice | None:
        """A seat now, or None: then wait. Raises what ends the request at once."""
        now = self.now()
        outcome = choose(claim.demand, self.roster(claim.demand.model), self.policy, now)
        if isinstance(outcome, Choice):
            return self._occupied(outcome, now)
        error = self._end(claim.demand, outcome)
        if error is not None:
            raise error
        if self.room.full and not claim.seated:
            return self._take_anywhere(claim, now)
        claim.refusal = outcome
        return None

    def _take_anywhere(self, claim: Claim, now: float) -> Choice:
        """There is no room to wait in: not even for the node that holds the conversation."""
        outcome = choose(replace(claim.demand, home=None), self.roster(claim.demand.model), self.policy, now)
        if isinstance(outcome, Refusal):
            raise QueueFull("too many requests are waiting", self.expected_wait())
        return self._occupied(outcome, now)

    def expected_wait(self) -> float:
        """Seconds until a request that came now would get a seat, by the recent length of requests."""
        return max(1.0, self.request_seconds * (self.room.waiting + 1) / max(1, self.outlook.slots))

    @property
    def outlook(self) -> Outlook:
        if self._outlook.fleet is not self.registry.fleet:
            self._outlook = Outlook(self.registry.fleet)
        return self._outlook

    def wait(self, claim: Claim) -> Wait:
        """For a claim that `take` has just refused."""
        return Wait(self, claim)

    def enter(self, ticket: Ticket[Claim, Kind]) -> None:
        """Only the new one is looked at, and only at what `take` said: nothing has changed for the others."""
        claim = ticket.item
        assert claim.refusal is not None, "take refuses first"
        if claim.kind().home is None:
            claim.any_node_will_do(self.now())
        self.room.enter(ticket)
        self._heed(ticket, claim.refusal)

    def give_up(self, choice: Choice) -> None:
        """The seat was taken, and nothing was ever asked there."""
        load = choice.seat.load
        if choice.trial:
            load.breaker = on_no_verdict(load.breaker, self.now())
        self.give_back(choice.seat)

    def give_back(self, seat: Seat) -> None:
        """The request at this seat is over (its load has been judged by the caller)."""
        seat.load.in_flight -= 1
        by_model = seat.load.in_flight_by_model
        by_model[seat.model] -= 1
        if not by_model[seat.model]:
            del by_model[seat.model]
        self.touch(seat.id)
        now, there = self.now(), self.roster(seat.model).seats.get(seat.id)
        in_service = there is not None and there.admits(now) and there.rests_until <= now
        self.pump(seat.id, freed=in_service)

    def touch(self, node_id: NodeId) -> None:
        """The node's load changed."""
        now = self.now()
        for roster in self._rosters.values():
            roster.touch(node_id, now)

    def reweigh(self, node_id: NodeId) -> None:
        now = self.now()
        for roster in self._rosters.values():
            roster.reweigh(node_id, now)

    def pump(self, node_id: NodeId | None = None, freed: bool = False) -> None:
        """Offer free seats to those who wait. Called whenever something changed; cheap when nobody waits.

        With `node_id` nothing but that node has changed: those who wait for another home need not be asked, unless it
        has a seat that nobody else wants. With `freed`, all that has changed is that it has a free slot.
        """
        if not self.room.waiting:
            return
        if node_id is None:
            self._offer(lambda kind: True)
            return
        self._offer(lambda kind: kind.home is None or kind.home == node_id, node_id if freed else None)
        if self.room.waiting and self._is_free(node_id):
            self._offer(lambda kind: kind.home is not None and kind.home != node_id)

    def _is_free(self, node_id: NodeId) -> bool:
        return any(roster.is_free(node_id) for roster in self._rosters.values())

    def _offer(self, concerns: Callable[[Kind], bool], freed: NodeId | None = None) -> None:
        now = self.now()
        refusals: list[tuple[Ticket[Claim, Kind], Refusal]] = []

        def offer(ticket: Ticket[Claim, Kind]) -> bool:
            claim = ticket.item
            assert claim.future is not None and not claim.future.done()
            roster = self.roster(claim.demand.model)
            if freed is not None and not (roster.is_free(freed) and suits(roster.seats[freed], claim.demand)):
                return False  # for the same reason as before
            outcome = choose(claim.demand, roster, self.policy, now)
            if isinstance(outcome, Refusal):
                refusals.append((ticket, outcome))
                return False
            claim.future.set_result(self._occupied(outcome, now))
            return True

        self.room.bind(offer, concerns, lambda: freed is not None and not self._is_free(freed))
        released: set[Kind] = set()
        for ticket, refusal in refusals:
            released |= self._release(ticket, refusal, now)
            self._heed(ticket, refusal)
        if released:
            self._offer(lambda kind: kind in released)

    def _heed(self, ticket: Ticket[Claim, Kind], refusal: Refusal) -> None:
        """All of the ticket's kind are refused: is that the end, since when is it hopeless, and when to look again?"""
        kind, now = ticket.kind, self.now()
        group = self.room.groups.get(kind)
        if group is None:
            return
        if self._end(ticket.item.demand, refusal) is not None:
            for other in list(group):
                self.room.leave(other)
                error, future = self._end(other.item.demand, refusal), other.item.future
                if error is not None and future is not None:
                    future.set_exception(error)
            return
        nobody, starting = refusal.reason == "none_in_service", self._starting()
        if not nobody or starting:
            group.hopeless_since = None
        elif group.hopeless_since is None:
            group.hopeless_since = now
        if nobody and starting:
            self.look_at(now + LOOK_WHILE_STARTING_SECONDS)
        if refusal.retry_at is not None and (refusal.reason != "home" or refusal.retry_at != ticket.item.waits_until()):
            self.look_at(refusal.retry_at)  # of the end of its own patience a `Wait` knows itself

    def _release(self, ticket: Ticket[Claim, Kind], refusal: Refusal, now: float) -> set[Kind]:
        """Who waits for a home that is lost, or that rests for longer than it pays to wait, may go elsewhere."""
        kind, claim = ticket.kind, ticket.item
        if kind.home is None:
            return set()
        seat = self.roster(claim.demand.model).seats.get(kind.home)
        lost = seat is None or seat.resting or not suits(seat, claim.demand)
        until = math.inf if seat is None or lost else max(now, seat.rests_until)
        leaving = [] if refusal.reason == "home" else [ticket]
        if until > now:
            leaving += [other for other in self.room.of(kind) if other.item.waits_until() <= until]
        return {self._send_elsewhere(other, now) for other in leaving}

    def _send_elsewhere(self, ticket: Ticket[Claim, Kind], now: float) -> Kind:
        kind = ticket.item.any_node_will_do(now)
        self.room.move(ticket, kind)
        return kind

    def end_of_patience(self, ticket: Ticket[Claim, Kind]) -> None:
        """It has waited for its home as long as coming home saves."""
        if not ticket.gone:
            elsewhere = self._send_elsewhere(ticket, self.now())
            self._offer(lambda kind: kind == elsewhere)

    def look_at(self, when: float) -> None:
        """Pump at that moment, on the clock of `now` (which must be the loop's)."""
        if self._timer is not None:
            if not self._timer.cancelled() and self.now() < self._looks_at <= when:
                return
            self._timer.cancel()
        self._looks_at = max(when, self.now() + 0.001)
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

    def _end(self, demand: Demand, refusal: Refusal) -> GatewayError | None:
        """What the refusal means: an error that ends the request at once, or None: worth waiting."""
        if refusal.reason == "context":
            return RequestInvalid(
                f"no node has a context of {demand.context_tokens} tokens for this model",
                field="options.num_ctx",
                hint=f"the largest is {refusal.largest_context}",
            )
        if refusal.reason != "none_in_service" or self._starting():
            return None
        if self.limits.no_node_seconds > 0 and self.outlook.may_return(demand):
            return None
        return self.no_nodes(demand)

    def no_nodes(self, demand: Demand) -> NoNodes:
        return NoNodes(self.outlook.why_nobody(demand), hint=self._absence())

    def _follow(self, was: Node | None, now_node: Node | None) -> None:
        """The registry has news of a node: keep its seats and its memory true, then serve who waits."""
        node_id = now_node.id if now_node is not None else was.id if was is not None else NodeId("")
        if now_node is None:
            self.memories.remove(node_id)
            for roster in self._rosters.values():
                roster.forget(node_id)
            self.pump(node_id)
            return
        if was is not None:
            if is_renewed(was, now_node):
                self.memories.remove(node_id)  # and what still runs at the old one is not remembered for the new one
            for model, resident in was.resident.items():
                self._follow_resident(node_id, model, resident, now_node.resident.get(model))
        for roster in self._rosters.values():
            self._place(roster, now_node)
        if was is None or is_renewed(was, now_node) or _offered_by(was) != _offered_by(now_node):
            self.pump(node_id)

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
        roster.place(node, self.registry.loads[node.id], self.memories.of(node.id), self.now())


def _offered_by(node: Node) -> tuple[object, ...]:
    """All of a node that decides who may sit there; most probes find nothing new in it."""
    contexts = [(key, model.context_length) for key, model in node.resident.items()]
    care = node.care.resting is None, node.care.spent
    return node.status, node.spec, node.slots, node.report is None, node.models, contexts, care


class Wait:
    """One claim's time in the waiting room. Use as a context manager: leaving early gives everything back."""

    def __init__(self, seating: Seating, claim: Claim) -> None:
        self._seating = seating
        self._claim = claim
        self._ticket = Ticket(claim.caller, claim.priority, claim.sequence, claim.since, claim, claim.kind())
        self._got: Choice | None = None
        self._entered = 0.0
        self._patience: asyncio.TimerHandle | None = None

    def __enter__(self) -> Wait:
        seating, claim = self._seating, self._claim
        loop = asyncio.get_running_loop()
        self._entered = seating.now()
        claim.future = loop.create_future()
        seating.enter(self._ticket)
        if claim.kind().home is not None:
            self._patience = loop.call_at(claim.waits_until(), seating.end_of_patience, self._ticket)
        return self

    def __exit__(self, *_: object) -> None:
        seating, future = self._seating, self._claim.future
        seating.room.leave(self._ticket)
        if self._patience is not None:
            self._patience.cancel()
        self._claim.waited += seating.now() - self._entered
        if future is not None and future.done() and not future.cancelled() and self._got is None:
            if future.exception() is None:  # bound, and the request left before it heard of it
                seating.give_up(future.result())
        elif future is not None and not future.done():
            future.cancel()

    @property
    def position(self) -> int:
        return self._seating.room.position(self._ticket, self._seating.now())

    async def seat(self, within_seconds: float) -> Choice | None:
        """The seat, or None when it took longer. Raises NoNodes, DeadlineExceeded, QueueFull (waited too long)."""
        future, now = self._claim.future, self._seating.now
        assert future is not None
        await asyncio.wait((future,), timeout=max(0.0, min(within_seconds, self._end()[0] - now())))
        if future.done():
            self._got = future.result()
            return self._got
        ends, why = self._end()
        if now() < ends:
            return None
        raise why()

    def _end(self) -> tuple[float, Callable[[], GatewayError]]:
        """When waiting ends as things stand, and with what error."""
        seating, claim, limits = self._seating, self._claim, self._seating.limits
        ends: list[tuple[float, Callable[[], GatewayError]]] = []
        if claim.deadline is not None:
            ends.append((claim.deadline, self._too_late))
        ends.append((self._entered + limits.queue_seconds - claim.waited, self._too_long))
        group = seating.room.groups.get(self._ticket.kind)
        if group is not None and group.hopeless_since is not None:
            since = max(self._entered, group.hopeless_since)
            ends.append((since + limits.no_node_seconds, lambda: seating.no_nodes(claim.demand)))
        return min(ends, key=itemgetter(0))

    def _too_late(self) -> GatewayError:
        return DeadlineExceeded("the request's deadline passed while it was waiting")

    def _too_long(self) -> GatewayError:
        return QueueFull("waited too long for a free node", self._seating.expected_wait())
