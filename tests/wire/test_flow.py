from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import CreditExceeded, OutOfBounds
from wire.flow import GivenCredit, OwnCredit, cost_of
from wire.limits import FRAME_COST, LARGEST_CREDIT, LARGEST_PAYLOAD, Limits


@given(
    window=st.integers(1, 1 << 21), sizes=st.lists(st.integers(0, LARGEST_PAYLOAD), max_size=60), lag=st.integers(0, 5)
)
def test_both_sides_agree_and_nothing_ever_stands_still(window: int, sizes: list[int], lag: int) -> None:
    own, given_credit, held = OwnCredit(window), GivenCredit(window), []
    for size in sizes:
        while not own.may_send:
            assert held, "no credit, and nothing left to give back"
            given_credit.consume(held.pop(0))
            if due := given_credit.due():
                own.add(due)
        own.spend(cost_of(size))
        given_credit.check()
        given_credit.take(cost_of(size))
        held.append(cost_of(size))
        assert own.left == given_credit.left
        assert sum(held) == given_credit.held < window + cost_of(LARGEST_PAYLOAD)
        while len(held) > lag:
            given_credit.consume(held.pop(0))
        if due := given_credit.due():
            own.add(due)


def test_a_frame_costs_more_than_its_payload() -> None:
    assert cost_of(0) == FRAME_COST


@pytest.mark.parametrize("grant", [0, LARGEST_CREDIT])
def test_credit_of_nothing_or_too_much(grant: int) -> None:
    with pytest.raises(CreditExceeded):
        OwnCredit(1).add(grant)


def test_a_sender_without_credit_is_refused() -> None:
    given_credit = GivenCredit(1)
    given_credit.take(100)
    with pytest.raises(CreditExceeded):
        given_credit.check()


def test_more_cannot_be_given_back_than_came() -> None:
    with pytest.raises(OutOfBounds):
        GivenCredit(10).consume(1)


def test_a_wider_window_is_granted_at_once_and_never_shrinks() -> None:
    given_credit = GivenCredit(100)
    given_credit.widen(1000)
    assert (given_credit.due(), given_credit.due()) == (900, 0)
    given_credit.widen(10)
    assert given_credit.window == 1000


@pytest.mark.parametrize(
    "wrong", [{"connection_window": 1}, {"streams": 0}, {"stream_queue": 1}, {"control_frames": 0}]
)
def test_limits_that_cannot_work_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(OutOfBounds):
        Limits(**wrong)
