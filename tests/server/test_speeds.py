"""How fast a node is with each model: shown, or reckoned from another model by size."""

from __future__ import annotations

import pytest

from server.care.pace import FORGOTTEN_SECONDS
from server.speeds import FURTHEST, MOST_MODELS, Speeds, times_as_fast

NOW = 1000.0
SMALL, LARGE = 1_000_000_000, 3_000_000_000


def told(speeds: Speeds, model: str, size_bytes: int, speed: float, now: float = NOW) -> None:
    """An answer of 100 tokens has ended, to a prompt that was read four times as fast."""
    shown = speeds.used(model, size_bytes)
    shown.tokens_per_second = shown.pace.learn(100, 100 / speed, now)
    shown.prompt_tokens_per_second = 4 * speed


def test_what_a_model_has_shown_counts_for_it_alone() -> None:
    speeds = Speeds()
    told(speeds, "small", SMALL, 20.0)
    told(speeds, "large", LARGE, 7.0)
    assert (speeds.writing("small", SMALL, NOW), speeds.writing("large", LARGE, NOW)) == (20.0, pytest.approx(7.0))
    assert (speeds.reading("small", SMALL), speeds.reading("large", LARGE)) == (80.0, 28.0)


def test_what_was_never_asked_is_reckoned_by_size() -> None:
    """Three times the weights to be read for each token: a third of the speed."""
    speeds = Speeds()
    told(speeds, "small", SMALL, 21.0)
    assert speeds.writing("large", LARGE, NOW) == pytest.approx(7.0)
    assert speeds.reading("large", LARGE) == pytest.approx(28.0)
    assert speeds.first_token("large") is None


def test_it_is_reckoned_from_what_was_used_last() -> None:
    """That knows how hot the phone is."""
    speeds = Speeds()
    told(speeds, "small", SMALL, 20.0)
    told(speeds, "large", LARGE, 2.0)
    assert speeds.writing("new", LARGE, NOW) == 2.0
    told(speeds, "small", SMALL, 3.0)
    assert speeds.writing("new", SMALL, NOW) < 20.0


@pytest.mark.parametrize(("known", "asked"), [(0, SMALL), (SMALL, 0), (0, 0)])
def test_nothing_is_reckoned_without_sizes(known: int, asked: int) -> None:
    speeds = Speeds()
    told(speeds, "known", known, 20.0)
    assert speeds.writing("asked", asked, NOW) is None
    assert speeds.reading("asked", asked) is None
    assert speeds.writing("known", known, NOW) == 20.0


def test_what_is_too_old_counts_neither_for_itself_nor_for_others() -> None:
    speeds = Speeds()
    told(speeds, "small", SMALL, 20.0)
    later = NOW + FORGOTTEN_SECONDS
    assert speeds.writing("small", SMALL, later - 1) == 20.0
    assert speeds.writing("small", SMALL, later) is None
    assert speeds.writing("large", LARGE, later) is None
    told(speeds, "large", LARGE, 5.0, later)
    assert speeds.writing("small", SMALL, later) == pytest.approx(15.0), "of the phone as it is now"


def test_a_model_without_a_speed_yet_tells_nothing_of_others() -> None:
    speeds = Speeds()
    told(speeds, "small", SMALL, 21.0)
    speeds.used("large", LARGE)
    assert speeds.writing("large", LARGE, NOW) == pytest.approx(7.0)
    assert speeds.writing("larger", LARGE, NOW) == pytest.approx(7.0)


def test_another_size_under_the_same_name_is_another_model() -> None:
    speeds = Speeds()
    told(speeds, "m", SMALL, 20.0)
    assert speeds.used("m", LARGE).tokens_per_second is None
    assert len(speeds.by_model) == 1


def test_the_model_that_was_used_longest_ago_makes_room() -> None:
    speeds = Speeds()
    for number in range(MOST_MODELS):
        told(speeds, f"m{number}", SMALL, 20.0)
    told(speeds, "m0", SMALL, 20.0)
    told(speeds, "one more", SMALL, 20.0)
    assert len(speeds.by_model) == MOST_MODELS
    assert speeds.of("m0") is not None
    assert speeds.of("m1") is None


def test_nothing_is_reckoned_beyond_bounds() -> None:
    assert times_as_fast(SMALL, LARGE) == 3.0
    assert times_as_fast(LARGE, SMALL) == pytest.approx(1 / 3)
    assert times_as_fast(1, LARGE) == FURTHEST
    assert times_as_fast(LARGE, 1) == 1 / FURTHEST
