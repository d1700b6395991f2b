from __future__ import annotations

from gpu_node.engine.room import GOOD_STEPS, StepRoom


def test_every_failure_halves_until_nothing_smaller_is_possible() -> None:
    room = StepRoom(512)
    assert room.cap is None
    assert room.narrow(300) and room.cap == 150
    assert room.narrow(2) and room.cap == 1
    assert not room.narrow(1)


def test_good_steps_double_it_until_there_is_no_limit() -> None:
    room = StepRoom(100)
    room.narrow(60)
    changes = [room.widen() for _ in range(GOOD_STEPS)]
    assert changes == [False] * (GOOD_STEPS - 1) + [True] and room.cap == 60
    for _ in range(GOOD_STEPS):
        room.widen()
    assert room.cap is None
    assert not any(room.widen() for _ in range(2 * GOOD_STEPS))


def test_a_failure_begins_the_counting_anew() -> None:
    room = StepRoom(100)
    room.narrow(60)
    for _ in range(GOOD_STEPS - 1):
        room.widen()
    room.narrow(30)
    assert not room.widen() and room.cap == 15
