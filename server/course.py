"""The course of one request over all its attempts: what was told, by whom, and what it cost. Values and sums only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import getrandbits

from server.affinity import Conversation
from server.continuation import Told, Way, remaining_predict
from server.exchange import AskRequest, Durations, HomecomingOutcome, NodeDone, NodeShare, Usage
from server.nodes import ModelCopy, NodeKind
from server.retry import Outage
from server.roster import Seat

NANOSECONDS = 1_000_000_000
SEED_BITS = 62  # every protocol of ours carries it, and no two answers share one


@dataclass(slots=True)
class Course:
    """One request under way, over all its attempts."""

    request: AskRequest
    conversation: Conversation
    arrived: float
    outage: Outage
    told: Told = field(default_factory=Told)
    copy: ModelCopy | None = None  # the copy that told the first token: only equals may go on
    kind: NodeKind = "ollama"
    shares: list[NodeShare] = field(default_factory=list)
    attempts: int = 0
    node: str = ""  # the last one asked, and its name of the model
    model: str = ""
    seated_at: float = 0.0
    first_token_at: float | None = None
    spent: Durations = field(default_factory=Durations)  # by parts that broke off
    renderings: dict[tuple[str, str, int | None], str] = field(default_factory=dict)  # by digest, version, context
    homecoming: HomecomingOutcome = "new"
    seed: int = field(default_factory=lambda: getrandbits(SEED_BITS))  # where the client wants none


@dataclass(slots=True)
class Attempt:
    """The state of one attempt: how it goes on, and what it told."""

    seat: Seat
    way: Way | str
    tokens_before: int
    tokens: int = 0
    first_at: float | None = None
    last_at: float | None = None
    done: NodeDone | None = None
    pin: int | None = None  # the context that this attempt has the model loaded with
    broke_off: bool = False
    stopped: bool = False  # a stop string was completed across the seam

    def share(self) -> NodeShare:
        return NodeShare(self.seat.node.name, self.tokens, str(self.way))


def answer_is_over(course: Course) -> bool:
    """Nothing is left of `num_predict`: the answer is whole, though no node said so."""
    return course.told.anything and remaining_predict(course.request.options, course.told.tokens) == 0


def usage_of(course: Course, attempt: Attempt) -> Usage:
    """Counts over all parts: a node that went on had the told part in its prompt, a replay told it all again."""
    done = attempt.done
    if done is None:
        return Usage(course.conversation.tokens, course.told.tokens)
    if attempt.way == "exact":  # the prompt is the same, and of the answer only the rest was written there
        return Usage(done.usage.prompt_tokens, attempt.tokens_before + done.usage.completion_tokens)
    if attempt.way in ("chat", "raw"):
        prompt = max(0, done.usage.prompt_tokens - attempt.tokens_before)
        return Usage(prompt, attempt.tokens_before + (done.usage.completion_tokens or attempt.tokens))
    return done.usage


def durations_of(course: Course, attempt: Attempt) -> Durations:
    spent, done = course.spent, attempt.done.durations if attempt.done is not None else Durations()
    return Durations(
        spent.total + done.total,
        spent.load + done.load,
        spent.prompt + done.prompt,
        spent.generation + done.generation,
    )


def break_off(course: Course, attempt: Attempt) -> None:
    """The attempt failed: keep its share and the time it took, which no node will report any more."""
    attempt.broke_off = True
    if attempt.tokens:
        course.shares.append(attempt.share())
    if attempt.first_at is not None and attempt.last_at is not None:
        took = round((attempt.last_at - attempt.first_at) * NANOSECONDS)
        spent = course.spent
        course.spent = replace(spent, total=spent.total + took, generation=spent.generation + took)
