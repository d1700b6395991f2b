from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.compression import FEWEST_BETWEEN, MOST_BETWEEN, Advice, Gain, Link, advise, signal_factor

WIFI = Link(5e6)
TEXT = Gain(0.4, 400e6, until_sample=3)


@pytest.mark.parametrize(
    ("size", "link", "gain", "advice"),
    [
        (1 << 20, WIFI, TEXT, Advice.COMPRESS),
        (100, WIFI, TEXT, Advice.PLAIN),
        (1 << 20, Link(), TEXT, Advice.PLAIN),
        (1 << 20, Link(4e9), TEXT, Advice.PLAIN),
        (1 << 20, WIFI, Gain(), Advice.SAMPLE),
        (1 << 20, WIFI, Gain(0.4, 400e6), Advice.SAMPLE),
        (1 << 20, WIFI, Gain(0.98, 400e6, until_sample=3), Advice.PLAIN),
    ],
)
def test_it_pays_only_where_the_line_is_slow_and_the_payload_shrinks(size, link, gain, advice) -> None:
    assert advise(size, link, gain) is advice


def test_a_weak_signal_tips_the_balance() -> None:
    strong, weak = Link(500e6, -50), Link(500e6, -90)
    assert advise(1 << 20, strong, TEXT) is Advice.PLAIN
    assert advise(1 << 20, weak, TEXT) is Advice.COMPRESS


@given(st.integers(-120, 0), st.integers(-120, 0))
def test_a_better_signal_is_never_worth_less(one: int, other: int) -> None:
    assert (signal_factor(one) <= signal_factor(other)) or one > other
    assert 0.25 <= signal_factor(one) <= 1.0 == signal_factor(None)


@given(
    st.integers(512, 1 << 20), st.floats(1e3, 1e10), st.floats(1e3, 1e10), st.floats(0.01, 1.0), st.floats(1e6, 1e10)
)
def test_a_slower_line_never_speaks_against_compressing(size, one, other, ratio, speed) -> None:
    slow, fast = sorted((one, other))
    gain = Gain(ratio, speed, until_sample=1)
    if advise(size, Link(fast), gain) is Advice.COMPRESS:
        assert advise(size, Link(slow), gain) is Advice.COMPRESS


def test_samples_get_rarer_while_they_show_no_gain() -> None:
    gain = Gain()
    for _ in range(20):
        gain = gain.sampled(4096, 4100, 1e-5)
    assert gain.between == MOST_BETWEEN and gain.ratio == 1.0
    assert gain.sampled(4096, 400, 1e-5).between == FEWEST_BETWEEN
    passed = gain
    for _ in range(MOST_BETWEEN + 1):
        passed = passed.passed()
    assert advise(4096, WIFI, passed) is Advice.SAMPLE


def test_measurements_are_smoothed_and_tiny_ones_left_out() -> None:
    link = Link().measured(1 << 20, 1.0)
    assert link.bytes_per_second == 1 << 20
    assert link.measured(100, 1e-9) == link.measured(1 << 20, 0.0) == link
    assert link.measured(1 << 21, 1.0).bytes_per_second == pytest.approx(1.2 * (1 << 20))
