"""What the gateway learns from an attempt: speeds, strikes, and which conversations the node holds now.

Changes only `Load`s and memories, from facts and `now`; decides nothing about the request.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.affinity import Conversation, Held, Match, Memories, ReturnRate, continued_keys, was_warm
from server.breaker import BreakerLimits, BreakerState, on_failure, on_no_verdict, on_success
from server.errors import NodeBusy, NodeError
from server.exchange import NodeDone
from server.nodes import Load
from server.roster import Seat
from server.speeds import Speed

SPEED_MEMORY = 0.3  # weight of the newest measurement: some requests settle it, a hot phone shows soon
MEASURABLE_PROMPT_TOKENS = 16  # shorter prompts measure overhead, not speed
MEASURABLE_TOKENS = 4
SHUNNED_SECONDS = 1.0  # a node that fails fast must not look attractive: its failure counts as load so long
BUSY_SECONDS = 1.0  # when the node does not say for how long
LEAST_BUSY_SECONDS = 0.25  # "retry after 0" must not become a hot loop
LONGEST_BUSY_SECONDS = 30.0
RELOADED_SECONDS = 0.5  # recorded: a loaded model "loads" in under 0.05 s, a real load takes seconds
SECOND = 1e9


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt that ended well went, in seconds and tokens; `at`: when it ended, on the loop's clock."""

    done: NodeDone
    tokens: int
    first_token_seconds: float | None
    generation_seconds: float
    at: float


def average(known: float | None, measured: float) -> float:
    return measured if known is None else known + SPEED_MEMORY * (measured - known)


def may_judge(load: Load, trial: bool) -> bool:
    """While a trial is out, requests that were sent before the breaker opened have no say."""
    return trial or load.breaker.state is not BreakerState.HALF_OPEN


def learn_success(seat: Seat, outcome: Outcome, cold_tokens: int, trial: bool = True) -> None:
    """The attempt ended well. `cold_tokens` of its prompt were surely read anew; their time tells the reading speed."""
    done, load = outcome.done, seat.load
    load.answered += 1
    if may_judge(load, trial):
        load.breaker = on_success(load.breaker)
    tokens = done.usage.completion_tokens or outcome.tokens
    seconds = done.durations.generation / SECOND or outcome.generation_seconds
    prompt_seconds = done.durations.prompt / SECOND
    shown: Load | Speed
    for shown in (load, load.speeds.used(seat.model, seat.copy.size_bytes)):
        if tokens >= MEASURABLE_TOKENS and seconds > 0:
            shown.tokens_per_second = shown.pace.learn(tokens, seconds, outcome.at)
        if cold_tokens >= MEASURABLE_PROMPT_TOKENS and prompt_seconds > 0:
            shown.prompt_tokens_per_second = average(shown.prompt_tokens_per_second, cold_tokens / prompt_seconds)
        if outcome.first_token_seconds is not None:
            shown.first_token_seconds = average(shown.first_token_seconds, outcome.first_token_seconds)


def learn_failure(load: Load, error: NodeError, now: float, limits: BreakerLimits, trial: bool = True) -> None:
    """The attempt failed: by the node's fault, because it is busy, or for reasons that say nothing about it."""
    if isinstance(error, NodeBusy):
        rest = error.retry_after_seconds or BUSY_SECONDS
        load.busy_until = now + min(max(rest, LEAST_BUSY_SECONDS), LONGEST_BUSY_SECONDS)
    if not error.strike:
        learn_nothing(load, now, trial)
        return
    load.failed += 1
    load.last_error = error.message
    load.shunned_until = now + SHUNNED_SECONDS
    if may_judge(load, trial):
        load.breaker = on_failure(load.breaker, now, limits)


def learn_suspect(load: Load, error: NodeError, now: float, trial: bool = True) -> None:
    """It broke on a request on which another broke before: no strike, or one poisonous prompt would rest a fleet."""
    load.failed += 1
    load.last_error = error.message
    load.shunned_until = now + SHUNNED_SECONDS
    learn_nothing(load, now, trial)


def learn_nothing(load: Load, now: float, trial: bool = True) -> None:
    """The client left: a trial may be repeated."""
    if may_judge(load, trial):
        load.breaker = on_no_verdict(load.breaker, now)


@dataclass(slots=True)
class Remembering:
    """Keeps the memories of nodes true after each attempt."""

    memories: Memories
    returns: ReturnRate

    def arrived(self, conversation: Conversation) -> None:
        self.returns.observe(conversation.later_turn)

    @staticmethod
    def cold_tokens(seat: Seat, conversation: Conversation, done: NodeDone) -> int:
        """How many tokens of a prompt without a match the node has surely read anew.

        What it shares with a held one from the beginning on (a system prompt, mostly) may have been there already.
        """
        return max(0, done.usage.prompt_tokens - seat.memory.shared_opening(conversation, seat.identity))

    def told(self, seat: Seat, conversation: Conversation, done: NodeDone, text: str, now: float) -> None:
        """The node has read the conversation and told its answer: that is what it holds now."""
        memory = seat.memory
        if self.memories.by_node.get(seat.id) is not memory:
            return  # it left meanwhile: its last answer must not bring it back
        if done.durations.load / SECOND > RELOADED_SECONDS:
            memory.forget_held(seat.model)
        tokens = done.usage.prompt_tokens + done.usage.completion_tokens or conversation.tokens
        keys = continued_keys(conversation, text, done.context)
        memory.write(Held(keys, seat.model, seat.identity, tokens, now, conversation.opening), conversation.prefixes)
        if conversation.later_turn:
            self.memories.forget_elsewhere(seat.id, conversation.prefixes)

    def broke_off(self, seat: Seat, conversation: Conversation, mark: int, now: float) -> None:
        """The node has read at least a part: older conversations have moved down, this one may be asked again."""
        keys = (mark, *(key for key, _ in conversation.prefixes))
        held = Held(keys, seat.model, seat.identity, conversation.tokens, now, conversation.opening)
        if self.memories.by_node.get(seat.id) is seat.memory:
            seat.memory.write(held, conversation.prefixes)

    def came_home(self, seat: Seat, match: Match, done: NodeDone, now: float) -> None:
        """Was it read as fast as something held? By the speed of prompts read cold there, by this model.

        A small model reads cold as fast as a large one reads what it holds, so no other's speed will do.
        """
        self.returns.observe_gap(now - match.at)
        shown = seat.load.speeds.of(seat.model)
        speed = None if shown is None else shown.prompt_tokens_per_second
        if speed is None:
            return
        seconds = done.durations.prompt / SECOND
        warm = was_warm(match, done.usage.prompt_tokens, seconds, speed) if seconds > 0 else None
        if warm is not None:
            seat.memory.learn(match, warm)
