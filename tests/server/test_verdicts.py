"""What is learned from an attempt: speeds, strikes, and what the node holds now."""

from __future__ import annotations

from typing import Any

import pytest

from server.affinity import Conversation, Match, Memories, ReturnRate, conversation
from server.breaker import CLOSED, Breaker, BreakerLimits, BreakerState
from server.care.pace import WINDOW_SECONDS
from server.errors import NodeBroken, NodeBusy, NodeError, NodeRefused, NodeStalled, NodeUnreachable
from server.exchange import AskRequest, Durations, NodeDone, Usage
from server.nodes import Load, ModelCopy, ModelKey, NodeId
from server.roster import Seat
from server.verdicts import (
    BUSY_SECONDS,
    LEAST_BUSY_SECONDS,
    LONGEST_BUSY_SECONDS,
    SHUNNED_SECONDS,
    Outcome,
    Remembering,
    average,
    learn_failure,
    learn_nothing,
    learn_success,
    learn_suspect,
)
from tests.server.scripted_nodes import MODEL, chat, node_of, roster_of

NOW = 100.0
LIMITS = BreakerLimits()
SECOND = 10**9
LARGE = ModelKey("qwen:7b")
TRIAL = Breaker(BreakerState.HALF_OPEN, 3, 1)
BUSY = [
    (None, BUSY_SECONDS),
    (5.0, 5.0),
    (0.0, BUSY_SECONDS),
    (0.01, LEAST_BUSY_SECONDS),
    (1e6, LONGEST_BUSY_SECONDS),
]


def done_of(read: int = 100, told: int = 20, **seconds: float) -> NodeDone:
    spent = {name: round(value * SECOND) for name, value in seconds.items()}
    return NodeDone("stop", "qwen:1b", Usage(read, told), Durations(**spent))


def seat_with(load: Load, *, model: ModelKey = MODEL, size_bytes: int = 1000) -> Seat:
    copy = ModelCopy(model, "d", size_bytes)
    return Seat(node_of("a"), load, Memories().of(NodeId("a")), model, copy, 1)


def success(load: Load, done: NodeDone, reads_cold: bool = True, model: ModelKey = MODEL, **changes: Any) -> Load:
    outcome = Outcome(
        **{"done": done, "tokens": 20, "first_token_seconds": 1.5, "generation_seconds": 4.0, "at": NOW, **changes}
    )
    learn_success(seat_with(load, model=model), outcome, done.usage.prompt_tokens if reads_cold else 0)
    return load


# --- success


def test_speeds_are_learned_from_what_the_node_says() -> None:
    load = success(Load(), done_of(100, 20, prompt=5.0, generation=2.0))
    assert (load.tokens_per_second, load.prompt_tokens_per_second, load.first_token_seconds) == (10.0, 20.0, 1.5)
    assert load.answered == 1


def test_each_model_has_figures_of_its_own_beside_those_of_the_node() -> None:
    load = success(Load(), done_of(100, 20, prompt=1.0, generation=1.0))
    success(load, done_of(100, 20, prompt=5.0, generation=4.0), model=LARGE, first_token_seconds=5.5)
    small, large = load.speeds.of(MODEL), load.speeds.of(LARGE)
    assert small is not None and large is not None
    assert (small.tokens_per_second, small.prompt_tokens_per_second, small.first_token_seconds) == (20.0, 100.0, 1.5)
    assert (large.tokens_per_second, large.prompt_tokens_per_second, large.first_token_seconds) == (5.0, 20.0, 5.5)
    assert (load.tokens_per_second, load.prompt_tokens_per_second) == (8.0, 76.0)


def test_where_the_node_does_not_say_what_was_seen_counts() -> None:
    load = success(Load(), done_of(0, 0), tokens=20, generation_seconds=4.0)
    assert (load.tokens_per_second, load.prompt_tokens_per_second) == (5.0, None)


def test_prompt_speed_is_learned_from_requests_without_a_match() -> None:
    """Prompt speed is learned per node from requests without a match: a held prefix is read in no time."""
    load = success(Load(), done_of(100, 20, prompt=0.1, generation=2.0), reads_cold=False)
    assert load.prompt_tokens_per_second is None


@pytest.mark.parametrize("done", [done_of(3, 20, prompt=1.0, generation=2.0), done_of(100, 20, generation=2.0)])
def test_short_or_untimed_prompts_say_nothing_about_reading(done: NodeDone) -> None:
    assert success(Load(), done).prompt_tokens_per_second is None


def test_short_answers_say_nothing_about_speed() -> None:
    assert success(Load(), done_of(100, 2, prompt=5.0, generation=0.1)).tokens_per_second is None


def test_a_continued_answer_says_nothing_about_the_first_token() -> None:
    assert success(Load(), done_of(generation=2.0), first_token_seconds=None).first_token_seconds is None


def test_speeds_follow_slowly() -> None:
    assert average(None, 8.0) == 8.0
    speed = 10.0
    for _ in range(3):
        speed = average(speed, 5.0)
    assert 5.0 < speed < 8.0
    for _ in range(30):
        speed = average(speed, 5.0)
    assert speed == pytest.approx(5.0, abs=0.01)


def test_the_speed_of_writing_is_that_of_a_window() -> None:
    """A phone that throttles shows within minutes, and one that has cooled down is not judged by its heat."""
    load = success(Load(), done_of(generation=2.0))
    success(load, done_of(generation=4.0), at=NOW + 60)
    assert load.tokens_per_second == pytest.approx(40 / 6)
    success(load, done_of(generation=2.0), at=NOW + 61 + WINDOW_SECONDS)
    assert load.tokens_per_second == 10.0


def test_a_success_closes_the_breaker() -> None:
    """A breaker that requests opened closes only by a request."""
    load = success(Load(breaker=TRIAL), done_of(generation=2.0))
    assert load.breaker == CLOSED


# --- failure


@pytest.mark.parametrize("error", [NodeBroken("cut"), NodeUnreachable("refused"), NodeStalled("silent", "first_token")])
def test_a_failure_is_a_strike_and_counts_as_load_for_a_while(error: NodeError) -> None:
    """A node that fails fast must not look attractive: a failed attempt counts as load for a while."""
    load = Load()
    learn_failure(load, error, NOW, LIMITS)
    assert (load.failed, load.last_error, load.shunned_until) == (1, error.message, NOW + SHUNNED_SECONDS)
    assert load.breaker == Breaker(failures=1)
    for _ in range(2):
        learn_failure(load, error, NOW, LIMITS)
    assert load.breaker.state is BreakerState.OPEN
    assert load.breaker.open_until == NOW + LIMITS.first_rest_seconds


@pytest.mark.parametrize("error", [NodeRefused("bad option", 400), NodeBusy("busy")])
def test_what_is_not_the_nodes_fault_is_no_strike(error: NodeError) -> None:
    """Not the node's fault: 4xx, wrong options; 429 and 503 mean busy: no strike."""
    load = Load(breaker=Breaker(failures=2))
    learn_failure(load, error, NOW, LIMITS)
    assert (load.failed, load.last_error, load.shunned_until) == (0, None, 0.0)
    assert load.breaker == Breaker(failures=2)


def test_a_request_that_breaks_one_node_after_another_gives_no_strike_but_the_first() -> None:
    """Or one poisonous prompt would rest the whole fleet."""
    load = Load()
    for _ in range(5):
        learn_suspect(load, NodeBroken("runner died"), NOW)
    assert (load.breaker, load.failed, load.last_error) == (CLOSED, 5, "runner died")
    assert load.shunned_until > NOW


def test_only_the_trial_judges_a_breaker_that_is_half_open() -> None:
    """Then exactly one request tries: those sent before it opened have no say, however they end."""
    for judge in (
        lambda load: learn_success(seat_with(load), Outcome(done_of(), 20, 1.0, 2.0, NOW), 0, trial=False),
        lambda load: learn_failure(load, NodeBroken("x"), NOW, LIMITS, trial=False),
        lambda load: learn_nothing(load, NOW, trial=False),
    ):
        load = Load(breaker=TRIAL)
        judge(load)
        assert load.breaker == TRIAL


@pytest.mark.parametrize(("told", "rest"), BUSY)
def test_busy_means_no_repeat_there_at_once(told: float | None, rest: float) -> None:
    """429 and 503: no repeat there at once, for as long as the node says, within bounds."""
    load = Load()
    learn_failure(load, NodeBusy("busy", told), NOW, LIMITS)
    assert load.busy_until == NOW + rest


def test_a_trial_that_tells_nothing_may_be_repeated() -> None:
    """Exactly one request tries; the client leaving, 4xx or busy is no outcome."""
    for learn in (
        lambda load: learn_nothing(load, NOW),
        lambda load: learn_failure(load, NodeBusy("busy"), NOW, LIMITS),
        lambda load: learn_failure(load, NodeRefused("bad", 400), NOW, LIMITS),
    ):
        load = Load(breaker=TRIAL)
        learn(load)
        assert load.breaker.admits(NOW)
        assert load.breaker.openings == TRIAL.openings
    load = Load()
    learn_nothing(load, NOW)
    assert load == Load()


# --- memory


class Place:
    """A node and what is remembered of it."""

    def __init__(self) -> None:
        self.memories = Memories()
        self.remembering = Remembering(self.memories, ReturnRate())
        roster = roster_of(node_of("a"), node_of("b"), memories=self.memories)
        self.seat: Seat = roster.seats[NodeId("a")]
        self.other: Seat = roster.seats[NodeId("b")]

    def told(self, request: AskRequest, text: str, done: NodeDone | None = None, seat: Seat | None = None) -> None:
        talk = conversation(request)
        self.remembering.told(seat or self.seat, talk, done or done_of(), text, NOW)

    def found(self, request: AskRequest, seat: Seat | None = None) -> Match | None:
        place = seat or self.seat
        return place.memory.find(conversation(request).prefixes, place.identity)


@pytest.fixture
def place() -> Place:
    return Place()


def test_a_told_answer_is_held_with_its_tokens(place: Place) -> None:
    """Each with its tokens (`prompt_eval_count + eval_count`)."""
    place.told(chat("hi"), "hello", done_of(100, 20))
    assert place.found(chat("hi", "hello", "?")) == Match(120, 0, True, NOW)


def test_where_the_node_counts_nothing_the_estimate_stands(place: Place) -> None:
    place.told(chat("hi" * 100), "hello", done_of(0, 0))
    match = place.found(chat("hi" * 100, "hello", "?"))
    assert match is not None
    assert match.tokens == conversation(chat("hi" * 100)).tokens


def test_a_load_within_an_answer_means_that_nothing_older_is_held(place: Place) -> None:
    """Entries go when the model reloads (load time in an answer); the context we want stays fixed."""
    place.told(chat("old"), "a")
    place.seat.memory.pinned_contexts[MODEL] = 8192
    place.told(chat("hi"), "hello", done_of(load=0.05))
    assert len(place.seat.memory) == 2
    place.told(chat("new"), "b", done_of(load=4.0))
    assert len(place.seat.memory) == 1
    assert place.found(chat("new", "b", "?"))
    assert place.seat.memory.pinned_contexts == {MODEL: 8192}


def test_a_conversation_that_went_on_elsewhere_is_forgotten_here(place: Place) -> None:
    place.told(chat("hi"), "hello")
    place.told(chat("hi", "hello", "more"), "sure", seat=place.other)
    assert len(place.seat.memory) == 0
    assert place.found(chat("hi", "hello", "more", "sure", "?"), place.other)


def test_an_answer_that_broke_off_moved_the_others_down(place: Place) -> None:
    """The node has read at least a part: older conversations have moved down, this one may be asked again."""
    place.told(chat("other"), "x")
    place.told(chat("hi"), "hello")
    talk = conversation(chat("hi", "hello", "more"))
    place.remembering.broke_off(place.seat, talk, mark=1, now=NOW)
    again = place.found(chat("hi", "hello", "more"))
    assert again is not None
    assert again.depth == 0
    assert len(place.seat.memory) == 2
    other = place.found(chat("other", "x", "?"))
    assert other is not None
    assert other.depth == 1


def test_a_node_that_left_meanwhile_is_not_remembered(place: Place) -> None:
    """A draining node's last answer must not bring it back."""
    place.memories.remove(NodeId("a"))
    place.told(chat("hi"), "hello")
    place.remembering.broke_off(place.seat, conversation(chat("hi")), mark=1, now=NOW)
    assert NodeId("a") not in place.memories.by_node
    assert place.memories.holders == {}


@pytest.mark.parametrize(
    ("prompt_seconds", "speed", "capacity", "certain"),
    [
        (0.2, 20.0, 2, True),  # 120 tokens at 20 tokens/s would take 6 s cold
        (6.0, 20.0, 1, None),  # read cold: nothing so deep is held
        (0.2, None, 1, False),  # nobody knows how fast it reads
        (0.0, 20.0, 1, False),  # the node does not say
    ],
)
def test_a_homecoming_shows_how_much_is_held(
    place: Place, prompt_seconds: float, speed: float | None, capacity: int, certain: bool | None
) -> None:
    """How many a node keeps is learned from `prompt_eval_duration`."""
    place.told(chat("hi"), "hello", done_of(100, 10))
    place.told(chat("other"), "x")
    place.seat.load.speeds.used(MODEL, 0).prompt_tokens_per_second = speed
    request = chat("hi", "hello", "?")
    match = place.found(request)
    assert match is not None
    assert (match.depth, match.certain) == (1, False)
    place.remembering.came_home(place.seat, match, done_of(120, 5, prompt=prompt_seconds), NOW + 10)
    assert place.seat.memory.capacity == capacity
    again = place.found(request)
    assert (again.certain if again is not None else None) is certain


def test_the_speed_of_another_model_does_not_tell_a_homecoming(place: Place) -> None:
    """A small model reads anew as fast as a large one would read what it holds."""
    place.told(chat("hi"), "hello", done_of(100, 10))
    place.told(chat("other"), "x")
    speeds = place.seat.load.speeds
    speeds.used(MODEL, 0).prompt_tokens_per_second = 600.0
    speeds.used(LARGE, 0).prompt_tokens_per_second = place.seat.load.prompt_tokens_per_second = 20.0
    match = place.found(chat("hi", "hello", "?"))
    assert match is not None and match.depth == 1
    place.remembering.came_home(place.seat, match, done_of(120, 5, prompt=0.2), NOW + 10)
    assert place.seat.memory.capacity == 1, "read anew, so it is not held"


def test_later_turns_and_their_gaps_are_noticed(place: Place) -> None:
    returns = place.remembering.returns
    place.remembering.arrived(Conversation((), 1, 1))
    assert returns.share == 0.0
    place.remembering.arrived(Conversation(((1, 1),), 1, 1))
    assert returns.share == 0.5
    before = returns.gap_seconds
    place.remembering.came_home(place.seat, Match(10, 0, True, NOW), done_of(), NOW + 600)
    assert returns.gap_seconds > before
