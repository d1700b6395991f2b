"""When to try again."""

from itertools import pairwise

from transport.pauses import Patience, PausePolicy, may_try_again, next_pause

POLICY = PausePolicy(first_seconds=0.1, factor=2.0, longest_seconds=1.0, jitter=0.5)


def test_the_first_try_after_a_cut_waits_for_nothing():
    assert next_pause(POLICY, 0, 0.9) == 0


def test_pauses_grow_up_to_the_longest():
    pauses = [next_pause(POLICY, failures, 0.0) for failures in range(1, 8)]
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses[4:] == [1.0] * 3
    assert all(first <= second for first, second in pairwise(pauses))
    assert next_pause(POLICY, 10_000, 0.0) == 1.0


def test_chance_shortens_them_by_its_share_at_most():
    assert next_pause(POLICY, 1, 0.5) == 0.1 * 0.75
    assert next_pause(POLICY, 1, 0.999) > 0.05


def test_it_is_tried_for_as_long_as_the_node_keeps_the_session():
    assert may_try_again(POLICY, 30, 29.9) and not may_try_again(POLICY, 30, 30)
    patient = PausePolicy(patience_seconds=5)
    assert may_try_again(patient, 30, 4.9) and not may_try_again(patient, 30, 5)


def test_where_nobody_listens_it_may_be_over_at_once():
    assert may_try_again(POLICY, 30, 1, refused=True)
    assert not may_try_again(PausePolicy(when_refused=False), 30, 1, refused=True)


def test_patience_is_counted_from_the_first_time_in_vain():
    patience = Patience(10)
    assert not patience.is_over(5) and not patience.is_over(15) and patience.is_over(15.1)
    patience.went_on()
    assert not patience.is_over(100) and patience.is_over(111)
