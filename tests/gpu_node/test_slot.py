"""Bounded; a place is given up whatever happens."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from gpu_node.errors import NodeBusy
from gpu_node.slot import Slots


def test_as_many_as_run_and_wait_are_let_in_and_no_more() -> None:
    slots = Slots(2, 1)
    with ExitStack() as inside:
        for _ in range(3):
            inside.enter_context(slots.enter())
        assert (slots.inside, slots.waiting, slots.busy) == (3, 1, True)
        with pytest.raises(NodeBusy, match=r"server busy, please try again\.  maximum pending requests exceeded"):
            inside.enter_context(slots.enter())
        assert slots.inside == 3
    assert (slots.inside, slots.waiting, slots.busy) == (0, 0, False)


def test_without_a_queue_those_that_run_are_served() -> None:
    slots = Slots(1, 0)
    with slots.enter(), pytest.raises(NodeBusy), slots.enter():
        pass
    with slots.enter():
        assert slots.inside == 1


def test_a_failure_inside_gives_the_place_back() -> None:
    slots = Slots(1, 0)
    with pytest.raises(ZeroDivisionError), slots.enter():
        raise ZeroDivisionError
    assert not slots.busy
