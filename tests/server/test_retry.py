"""One outage's own budget, and the fleet's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.nodes import NodeId
from server.retry import BUDGET_WINDOW_SECONDS, Outage, RetryBudget

A, B = NodeId("a"), NodeId("b")


def test_each_node_is_tried_once_in_an_outage_and_only_so_many_in_a_row() -> None:
    """Each eligible node is tried at most once per outage, at most 5 in a row."""
    outage = Outage(5)
    for number in range(4):
        outage.failed(NodeId(f"n{number}"))
    assert not outage.exhausted
    outage.failed(A)
    assert outage.exhausted
    assert outage.tried == {"n0", "n1", "n2", "n3", A}


def test_delivered_tokens_renew_the_budget() -> None:
    """Delivered tokens renew that budget: the nodes that failed before may be asked again in the next outage."""
    outage = Outage(2)
    outage.failed(A)
    outage.failed(B)
    outage.delivered(NodeId("c"))
    assert (outage.tried, outage.failures, outage.exhausted) == (frozenset(), 0, False)


def test_delivered_tokens_also_renew_nodes_that_could_not_go_on() -> None:
    """A node without a way on costs no failure; it is asked again all the same after tokens were delivered."""
    outage = Outage(5, tried=frozenset({A}))
    outage.delivered(B)
    assert outage.tried == frozenset()


def test_every_request_deposits_a_share_of_a_retry() -> None:
    """A fleet-wide retry budget (a share of recent traffic) stops storms."""
    budget = RetryBudget(ratio=0.25, floor=0)
    for _ in range(8):
        budget.deposit(0.0)
    assert [budget.withdraw(0.0) for _ in range(3)] == [True, True, False]


def test_a_quiet_gateway_may_still_retry() -> None:
    budget = RetryBudget(ratio=0.2, floor=3)
    assert [budget.withdraw(5.0) for _ in range(4)] == [True, True, True, False]
    assert budget.withdraw(5.0 + BUDGET_WINDOW_SECONDS)


def test_deposits_fade_with_the_traffic() -> None:
    budget = RetryBudget(ratio=1.0, floor=0)
    for _ in range(100):
        budget.deposit(0.0)
    assert not budget.withdraw(BUDGET_WINDOW_SECONDS)


def test_the_start_of_the_clock_does_not_matter() -> None:
    budget = RetryBudget(ratio=1.0, floor=0)
    budget.deposit(1e9)
    assert budget.withdraw(1e9)


@given(
    ratio=st.floats(0, 1),
    floor=st.integers(0, 20),
    steps=st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=200),
)
def test_retries_never_exceed_the_share_and_the_floor(
    ratio: float, floor: int, steps: list[tuple[bool, float]]
) -> None:
    """Whatever the order of requests and retries: no more retries than their share, and the floor of each window."""
    budget, now, requests, retries = RetryBudget(ratio, floor), 0.0, 0, 0
    for is_request, pause in steps:
        now += pause
        if is_request:
            requests += 1
            budget.deposit(now)
        else:
            retries += budget.withdraw(now)
    assert retries <= ratio * requests + floor * (1 + now / BUDGET_WINDOW_SECONDS) + 1e-6
