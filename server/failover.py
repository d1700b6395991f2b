"""One request over as many nodes as it takes: sit down, ask, and after a failure go on elsewhere, or say why not.

The loop is thin: who serves is `routing`'s word, how to go on `continuation`'s, whether to try again `retry`'s. A seat
is given back, and the conversation remembered, before the client sees the end of its answer: its next turn may come at
once. Closing the stream closes the connection to the node, so that it stops at once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from server.affinity import conversation
from server.attempt import RENDER_TIMEOUT_SECONDS, ReplayFailed, plan, tell
from server.backends.base import Backend
from server.breaker import BreakerLimits
from server.contexts import pin_context, unpin_context
from server.continuation import ways
from server.course import Attempt, Course, answer_is_over, break_off, durations_of, usage_of
from server.errors import (
    AnswerBroken,
    DeadlineExceeded,
    GatewayError,
    ModelNotFound,
    NodeBroken,
    NodeBusy,
    NodeError,
    NodeIncapable,
    NodeRefused,
    NodeStalled,
    NoNodes,
    QueueFull,
    RequestInvalid,
)
from server.exchange import AskRequest, Done, Event, Failed, Queued, Timings
from server.nodes import ModelKey, NodeKind
from server.observer import Observer, reason_of
from server.patience import Patience, PatienceLimits, Work, patience_for
from server.retry import Outage, RetryBudget
from server.roster import Seat
from server.routing import Choice, Demand, Home, find_home, same_copy
from server.seating import Claim, Seating
from server.verdicts import Outcome, Remembering, learn_failure, learn_nothing, learn_success, learn_suspect
from server.workload import reading_tokens

CLOCK_GRAIN_SECONDS = 0.005  # timers may fire that much before their time
POSITION_SECONDS = 0.5  # how often a waiting client hears of its place
LEAST_UNREAD = 0.1  # of a prompt that comes home: its last answer is read again, and estimates differ
REQUEST_MEMORY = 0.05  # weight of the newest request in the usual length of one


@dataclass(frozen=True, slots=True)
class FailoverLimits:
    attempts_per_outage: int = 5
    breaker: BreakerLimits = field(default_factory=BreakerLimits)
    patience: PatienceLimits = field(default_factory=PatienceLimits)


class Failover:
    """Makes answers: from a request and a model to events, through seats, backends and what was learned of nodes."""

    def __init__(
        self,
        seating: Seating,
        backends: Mapping[NodeKind, Backend],
        budget: RetryBudget,
        observer: Observer,
        limits: FailoverLimits,
        now: Callable[[], float],
    ) -> None:
        self._seating = seating
        self._backends = backends
        self._budget = budget
        self._observer = observer
        self._limits = limits
        self._now = now
        self._remembering = Remembering(seating.memories, seating.policy.returns)

    def course(self, request: AskRequest, arrived: float) -> Course:
        return Course(request, conversation(request), arrived, Outage(self._limits.attempts_per_outage))

    async def answer(self, course: Course, model: ModelKey | None) -> AsyncGenerator[Sequence[Event], None]:
        """The events of the answer, the last one Done or Failed. `course` tells how it went, also when it is closed."""
        request = course.request
        self._budget.deposit(course.arrived)
        if request.operation != "embed":
            self._remembering.arrived(course.conversation)
        try:
            async with aclosing(self._attempts(course, model)) as batches:
                async for batch in batches:
                    yield batch
        except GatewayError as error:
            yield [failed(course, error)]

    async def _attempts(self, course: Course, model: ModelKey | None) -> AsyncGenerator[Sequence[Event], None]:
        request = course.request
        deadline = course.arrived + request.deadline_seconds if request.deadline_seconds is not None else None
        claim = self._seating.claim(request.caller, request.priority, self._demand(course, model), deadline)
        while True:
            async with aclosing(self._seats_taken(course, claim)) as places:
                async for place in places:
                    if isinstance(place, Choice):
                        choice = place
                    else:
                        yield [place]
            attempt = Attempt(choice.seat, "first", course.told.tokens)
            try:
                async with aclosing(self._attempt(course, claim, choice, attempt)) as batches:
                    async for batch in batches:
                        yield batch
                return
            except NodeError as error:
                if answer_is_over(course):
                    yield [done_of(course, attempt, "length", self._now())]
                    return
                self._after_failure(course, claim, choice.seat, error)
                if model is None:
                    claim.demand = self._by_name(course, choice.seat, claim.demand)
                if not any(self._could_go_on(other, claim.demand) for other in self._seats(claim.demand)):
                    raise self._nobody_left(course, choice.seat, error) from error

    async def _seats_taken(self, course: Course, claim: Claim) -> AsyncGenerator[Queued | Choice, None]:
        """Places in the queue while there is no seat; the seat comes last."""
        try:
            choice = self._seating.take(claim)
            if choice is None:
                with self._seating.wait(claim) as waiting:
                    while choice is None:
                        yield Queued(waiting.position)
                        choice = await waiting.seat(POSITION_SECONDS)
        except (NoNodes, QueueFull) as error:
            if not course.told.anything:
                raise
            raise broken(course, error.message) from error
        claim.seated = True
        course.node, course.model = choice.seat.node.name, choice.seat.copy.name
        if course.attempts == 0:
            course.seated_at = self._now()
            self._note_homecoming(course, claim.demand.home, choice)
        yield choice

    async def _attempt(
        self, course: Course, claim: Claim, choice: Choice, attempt: Attempt
    ) -> AsyncGenerator[Sequence[Event], None]:
        """One attempt at the seat that was taken, which is given back once, whatever happens, before the end."""
        seat, seated_at = choice.seat, self._now()
        backend = self._backends[seat.node.spec.kind]
        last: Sequence[Event] = ()
        judged = sent = False
        try:
            attempt.pin = pin_context(seat, course.request)
            attempt.way, call = await plan(course, seat, backend, self._asking_seconds(claim))
            sent = True
            self._note_sent(course, attempt)
            patience = self._patience(course, claim, choice, attempt)
            async with aclosing(tell(course, attempt, call, backend, patience, self._now)) as batches:
                async for batch in batches:
                    if attempt.done is None and not attempt.stopped:
                        yield batch
                    else:
                        last = batch
            self._learn_success(course, claim, choice, attempt, seated_at)
            judged = True
        except NodeError as error:
            self._learn_failure(course, choice, attempt, error, sent)
            judged = True
            raise
        finally:
            if not judged:  # the client left, this gateway is being stopped, or a fault of ours
                learn_nothing(seat.load, self._now(), choice.trial)
                self._remember_part(course, seat, sent)
            if attempt.first_at is None:
                unpin_context(seat, attempt.pin)
            self._seating.give_back(seat)
        yield [*last, done_of(course, attempt, attempt.done.reason if attempt.done else "stop", self._now())]

    def _note_sent(self, course: Course, attempt: Attempt) -> None:
        course.attempts += 1
        seat = attempt.seat
        if attempt.way in ("exact", "chat", "raw", "replay"):
            self._observer.answer_resumed(seat.id, attempt.way)
        self._observer.attempt_started(seat.id, seat.copy.name)

    def _asking_seconds(self, claim: Claim) -> float:
        """How long a node may take to render: not longer than the request has."""
        left = claim.deadline - self._now() if claim.deadline is not None else RENDER_TIMEOUT_SECONDS
        return max(0.001, min(RENDER_TIMEOUT_SECONDS, left))

    def _learn_success(self, course: Course, claim: Claim, choice: Choice, attempt: Attempt, seated_at: float) -> None:
        """Speeds, the breaker's answer, and the conversation that the node holds now."""
        now, seat, home = self._now(), choice.seat, claim.demand.home
        done = attempt.done
        self._seating.request_seconds += REQUEST_MEMORY * (now - seated_at - self._seating.request_seconds)
        if done is None:  # a stop string was completed over the seam: the node never got to say it
            learn_nothing(seat.load, now, choice.trial)
            self._remember_part(course, seat, True)
            return
        plain = attempt.way in ("first", "retry")
        match = home.match if home is not None and choice.at_home and plain else None
        first = attempt.first_at - seated_at if attempt.first_at is not None and plain else None
        generating = (attempt.last_at or now) - (attempt.first_at or now)
        if match is not None:
            self._remembering.came_home(seat, match, done, course.arrived)
        cold = self._remembering.cold_tokens(seat, course.conversation, done) if match is None and plain else 0
        learn_success(seat, Outcome(done, attempt.tokens, first, generating, now), cold, choice.trial)
        self._seating.reweigh(seat.id)
        if course.request.operation != "embed":
            self._remembering.told(seat, course.conversation, done, course.told.text, now)

    def _learn_failure(self, course: Course, choice: Choice, attempt: Attempt, error: NodeError, sent: bool) -> None:
        now, seat = self._now(), choice.seat
        if isinstance(error, NodeStalled) and deadline_passed(course, now):
            learn_nothing(seat.load, now, choice.trial)  # it was the request that was in a hurry
        elif isinstance(error, NodeBroken) and course.outage.failures:
            learn_suspect(seat.load, error, now, choice.trial)  # another node broke on it too: perhaps the request does
            self._observer.attempt_failed(seat.id, seat.copy.name, reason_of(error))
        else:
            learn_failure(seat.load, error, now, self._limits.breaker, choice.trial)
            self._observer.attempt_failed(seat.id, seat.copy.name, reason_of(error))
        break_off(course, attempt)
        self._remember_part(course, seat, sent and not isinstance(error, NodeBusy | NodeRefused))

    def _remember_part(self, course: Course, seat: Seat, sent: bool) -> None:
        if sent and course.request.operation != "embed":
            mark = hash(("broke off", course.request.id))
            self._remembering.broke_off(seat, course.conversation, mark, self._now())

    def _after_failure(self, course: Course, claim: Claim, seat: Seat, error: NodeError) -> None:
        """Make the claim ready for another node, or raise what ends the request."""
        now, told = self._now(), course.told
        if deadline_passed(course, now):
            raise DeadlineExceeded("the request's deadline passed before the answer was whole") from error
        elsewhere = isinstance(error, NodeIncapable) or (isinstance(error, NodeRefused) and error.status == 404)
        if isinstance(error, NodeRefused) and not told.anything and not elsewhere:
            raise RequestInvalid(error.message, status=error.status) from error
        if not isinstance(error, NodeBusy):
            course.outage.tried |= {seat.id}
            if error.strike or isinstance(error, ReplayFailed):
                course.outage.failed(seat.id)
                if course.outage.exhausted or not self._budget.withdraw(now):
                    raise broken(course, error.message) from error
        home = claim.demand.home if claim.demand.home and claim.demand.home.node_id != seat.id else None
        claim.demand = replace(claim.demand, excluded=course.outage.tried, home=home, able=self._able(course))

    def _by_name(self, course: Course, seat: Seat, demand: Demand) -> Demand:
        """Any model would have done; now it is the one that began, which others may hold beside one of their own."""
        if not course.told.anything:
            return replace(demand, model=None)
        named = replace(demand, model=seat.model, home=None)
        found = any(self._could_go_on(other, named) for other in self._seats(named))
        return named if found else replace(demand, model=None)

    @staticmethod
    def _nobody_left(course: Course, seat: Seat, error: NodeError) -> GatewayError:
        if isinstance(error, NodeRefused) and not course.told.anything:
            if error.status == 404:
                return ModelNotFound(course.request.model or seat.copy.name)
            return RequestInvalid(error.message, status=error.status)
        return broken(course, error.message)

    def _seats(self, demand: Demand) -> Sequence[Seat]:
        return list(self._seating.roster(demand.model).seats.values())

    @staticmethod
    def _could_go_on(seat: Seat, demand: Demand) -> bool:
        return seat.id not in demand.excluded and (demand.able is None or demand.able(seat))

    def _able(self, course: Course) -> Callable[[Seat], bool] | None:
        copy = course.copy
        if copy is None or not course.told.anything:
            return None
        return lambda seat: same_copy(seat, copy, course.kind) and bool(ways(course.request, seat.node, course.told))

    def _demand(self, course: Course, model: ModelKey | None) -> Demand:
        request, talk = course.request, course.conversation
        wanted = request.options.get("num_ctx")
        chats = request.operation != "embed"
        home: Home | None = None
        if chats and self._seating.policy.affinity and talk.prefixes:
            roster = self._seating.roster(model)
            home = find_home(talk.prefixes, roster, self._seating.memories, self._now())
        return Demand(model, talk.tokens, wanted, home=home, needs_memory=chats)

    @staticmethod
    def _note_homecoming(course: Course, home: Home | None, choice: Choice) -> None:
        if choice.at_home:
            course.homecoming = "home"
        elif home is not None or course.conversation.later_turn:
            course.homecoming = "elsewhere"

    def _patience(self, course: Course, claim: Claim, choice: Choice, attempt: Attempt) -> Patience:
        seat, load = choice.seat, choice.seat.load
        unread = reading_tokens(course.request) + course.told.tokens
        home = claim.demand.home
        if home is not None and choice.at_home and home.match.certain:
            held = home.match.tokens / max(course.conversation.tokens, home.match.tokens)
            unread = round(unread * max(1.0 - held, LEAST_UNREAD))
        work = Work(
            max(1, unread),
            seat.sure_prompt_speed,
            seat.sure_speed,
            must_load=seat.model not in seat.node.resident or attempt.pin is not None,
            buffers=bool(course.request.fields.get("tools")),
            shared_by=max(1, load.in_flight),
        )
        patience = patience_for(work, self._limits.patience)
        if claim.deadline is None:
            return patience
        left = max(0.001, claim.deadline - self._now())
        return replace(patience, total=min(patience.total, left))


def deadline_passed(course: Course, now: float) -> bool:
    deadline = course.request.deadline_seconds
    return deadline is not None and now + CLOCK_GRAIN_SECONDS >= course.arrived + deadline


def broken(course: Course, why: str) -> AnswerBroken:
    """The honest end: what is known about why the answer cannot begin, or cannot go on."""
    told = course.told.tokens
    if not told:
        return AnswerBroken(f"no node could answer; the last one said: {why}", node=course.node, tokens_told=0)
    return AnswerBroken(
        f"the answer broke off after {told} tokens and no other node can go on with it: {why}",
        node=course.node,
        tokens_told=told,
        hint="ask again; at temperature 0 an interrupted answer can be repeated word for word",
    )


def failed(course: Course, error: GatewayError) -> Failed:
    model = course.model or course.request.model or ""
    return Failed(error, model, course.node, course.attempts, tuple(course.shares), course.homecoming)


def done_of(course: Course, attempt: Attempt, reason: str, now: float) -> Done:
    """The answer is whole: counts and times over all its parts."""
    done = attempt.done
    shares = course.shares if attempt.broke_off else [*course.shares, attempt.share()]
    first = course.first_token_at if course.first_token_at is not None else now
    return Done(
        reason=reason,
        model=attempt.seat.copy.name,
        node=attempt.seat.node.name,
        usage=usage_of(course, attempt),
        durations=durations_of(course, attempt),
        timings=Timings(
            (course.seated_at - course.arrived) * 1000,
            (first - course.arrived) * 1000,
            (now - course.arrived) * 1000,
        ),
        attempts=course.attempts,
        nodes=tuple(shares),
        homecoming=course.homecoming,
        context=done.context if done is not None and (len(shares) == 1 or attempt.way == "exact") else (),
    )
