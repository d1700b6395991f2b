"""Weights and expected times by model: a phone is not slow because it mostly runs a large one."""

from __future__ import annotations

from collections import Counter

import pytest

from server.affinity import Memories
from server.care.pace import FORGOTTEN_SECONDS
from server.nodes import Load, ModelCopy, ModelKey, NodeId, ProbeReport
from server.roster import TYPICAL_ANSWER_TOKENS, WEIGHED_SECONDS, Roster, Seat, learned_weight
from tests.server.roster_parts import NOW, chosen, policy_of
from tests.server.scripted_nodes import node_of

SMALL, LARGE = ModelKey("llama:1b"), ModelKey("llama:3b")
SIZES = {SMALL: 1_000_000_000, LARGE: 3_000_000_000}


class Phones:
    """Phones that have both models, and a roster of each."""

    def __init__(self, *names: str, sizes: dict[ModelKey, int] = SIZES, details: dict[str, str | float] | None = None):
        self.rosters = {model: Roster(model) for model in SIZES}
        report = ProbeReport("0.31.1", tuple(ModelCopy(model, "d", sizes[model]) for model in SIZES))
        for name in names:
            node, load, memories = node_of(name, report, weight=None, details=details or {}), Load(), Memories()
            for roster in self.rosters.values():
                roster.place(node, load, memories.of(node.id), 0.0)

    def seat(self, name: str, model: ModelKey) -> Seat:
        return self.rosters[model].seats[NodeId(name)]

    def told(self, name: str, model: ModelKey, speed: float, now: float = NOW, reading: float | None = None) -> None:
        """An answer of 100 tokens has ended."""
        seat = self.seat(name, model)
        for shown in (seat.load, seat.load.speeds.used(model, seat.copy.size_bytes)):
            shown.tokens_per_second = shown.pace.learn(100, 100 / speed, now)
            shown.prompt_tokens_per_second = reading
        for roster in self.rosters.values():
            roster.reweigh(seat.id, now)
            roster.touch(seat.id, now)

    def shares(self, model: ModelKey, strategy: str = "weighted_round_robin", now: float = NOW) -> Counter[str]:
        policy = policy_of(strategy)
        return Counter(chosen(self.rosters[model], policy=policy, now=now) for _ in range(60))


def test_a_phone_that_mostly_runs_a_large_model_is_no_slower_than_its_twin() -> None:
    phones = Phones("a", "b")
    for _ in range(10):
        phones.told("a", LARGE, 7.0)
        phones.told("b", SMALL, 21.0)
    phones.told("a", SMALL, 21.0)
    phones.told("b", LARGE, 7.0)
    assert phones.shares(SMALL) == phones.shares(LARGE) == {"a": 30, "b": 30}


def test_a_model_not_seen_yet_is_reckoned_by_size() -> None:
    phones = Phones("a", "b")
    phones.told("a", LARGE, 7.0)
    phones.told("b", SMALL, 21.0)
    assert phones.shares(SMALL) == phones.shares(LARGE) == {"a": 30, "b": 30}


def test_where_sizes_are_unknown_the_node_as_a_whole_counts() -> None:
    phones = Phones("a", "b", sizes=dict.fromkeys(SIZES, 0))
    phones.told("a", LARGE, 8.0)
    phones.told("b", LARGE, 16.0)
    assert phones.shares(SMALL) == {"a": 20, "b": 40}


def test_what_was_shown_counts_more_than_what_was_reckoned() -> None:
    """A mixture of experts is quicker than its size says."""
    phones = Phones("a", "b")
    phones.told("a", SMALL, 20.0)
    phones.told("a", LARGE, 40.0)
    phones.told("b", LARGE, 20.0)
    assert phones.shares(LARGE) == {"a": 40, "b": 20}


@pytest.mark.parametrize(
    ("details", "weight"),
    [
        ({"tokens_per_second": 16.0, "model": LARGE}, 16.0),
        ({"tokens_per_second": 16.0, "model": "Llama:3b"}, 16.0),
        ({"tokens_per_second": 16.0}, 16.0),
        ({"tokens_per_second": 16.0, "model": "gone:7b"}, 16.0),
        ({"tokens_per_second": 48.0, "model": SMALL}, 16.0),
    ],
)
def test_what_the_set_up_measured_was_one_models_speed(details: dict[str, str | float], weight: float) -> None:
    assert learned_weight(Phones("a", details=details).seat("a", LARGE)) == weight


def test_the_fastest_for_one_model_is_not_the_fastest_for_all() -> None:
    phones = Phones("a", "b")
    phones.told("a", SMALL, 30.0)
    phones.told("b", SMALL, 20.0)
    phones.told("a", LARGE, 4.0)
    phones.told("b", LARGE, 6.0)
    assert phones.shares(SMALL, "fastest") == {"a": 60}
    assert phones.shares(LARGE, "fastest") == {"b": 60}


def test_a_rare_model_goes_to_the_phone_that_is_reckoned_fastest() -> None:
    phones = Phones("a", "b", "new")
    phones.told("a", SMALL, 30.0)
    phones.told("b", SMALL, 20.0)
    assert phones.seat("a", LARGE).expected_seconds == pytest.approx(TYPICAL_ANSWER_TOKENS / 10.0)
    assert phones.shares(LARGE, "fastest") == {"new": 60}, "nothing at all is known of it"
    phones.told("new", SMALL, 10.0)
    assert phones.shares(LARGE, "fastest") == {"a": 60}


def test_what_one_model_showed_long_ago_gives_way_to_what_another_shows_now() -> None:
    """Also where nobody asks for the first one: weights are looked at now and then."""
    phones = Phones("a", "b")
    for name in "ab":
        phones.told(name, LARGE, 8.0)
    later = NOW + FORGOTTEN_SECONDS + WEIGHED_SECONDS
    phones.told("a", SMALL, 12.0, later)
    phones.told("b", SMALL, 24.0, later)
    for roster in phones.rosters.values():
        roster.wake(later)
    assert phones.shares(LARGE, now=later) == {"a": 20, "b": 40}


def test_the_time_to_read_a_prompt_is_the_models_own() -> None:
    phones = Phones("a")
    seat = phones.seat("a", LARGE)
    assert seat.prompt_speed == 30.0
    phones.told("a", SMALL, 21.0, reading=90.0)
    assert seat.prompt_speed == 30.0, "a third of the small one's"
    phones.told("a", LARGE, 7.0, reading=25.0)
    assert (seat.prompt_speed, phones.seat("a", SMALL).prompt_speed) == (25.0, 90.0)


def test_limits_stand_on_what_was_shown_and_never_shrink_by_reckoning() -> None:
    phones = Phones("a")
    small, large = phones.seat("a", SMALL), phones.seat("a", LARGE)
    assert (large.sure_speed, large.sure_prompt_speed) == (None, None)
    phones.told("a", SMALL, 21.0, reading=90.0)
    assert (large.sure_speed, large.sure_prompt_speed) == (pytest.approx(7.0), 30.0), "a large one is given its time"
    phones = Phones("a")
    small = phones.seat("a", SMALL)
    phones.told("a", LARGE, 7.0, reading=30.0)
    assert (small.sure_speed, small.sure_prompt_speed) == (pytest.approx(7.0), 30.0), "not the 21 of its size"
    phones.told("a", SMALL, 21.0, NOW + 2 * FORGOTTEN_SECONDS, reading=90.0)
    assert (small.sure_speed, small.sure_prompt_speed) == (pytest.approx(21.0), 90.0)
