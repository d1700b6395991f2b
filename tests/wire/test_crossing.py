"""Two honest sides whose frames cross at any time: nobody is ever at fault, and every stream ends on both sides."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.sides import ACTIONS, Sides

SCRIPTS = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5), st.sampled_from([0, 10, 30_000, 200_000])), max_size=80
)


@given(SCRIPTS)
@settings(max_examples=150, deadline=None)
def test_nobody_is_at_fault_and_every_stream_ends(actions) -> None:
    sides = Sides()
    for action in actions:
        sides.act(*action)
    sides.finish()
    sides.check_that_all_is_over()


@given(SCRIPTS)
@settings(max_examples=80, deadline=None)
def test_numbers_are_used_again_at_once(actions) -> None:
    sides = Sides()
    for action in actions:
        sides.client._last_number = 0
        sides.act(*action)
    sides.finish()
    sides.check_that_all_is_over()
