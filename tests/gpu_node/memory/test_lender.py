"""A lender towards holders that break the rules: it serves them no more, and everybody else."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.engine.kv_pool import LayerShape
from gpu_node.memory.errors import LeaseFault
from gpu_node.memory.lend_messages import Head, Kind, opened, pack_numbers
from gpu_node.memory.lender import Lender
from tests.gpu_node.memory.lending_pair import HOLDER
from tests.gpu_node.memory.scattered import batch_over, form_of, tables_of

FORM = form_of(LayerShape(2, 8, 8))
SCENE = tables_of(batch_over([(5, 1), (0, 9)], 30, 1)).places(numpy.zeros(30, dtype=numpy.int64))[0][0]


class OneSided:
    """Says what is given, and ends when it was heard."""

    def __init__(self, *messages: bytes) -> None:
        self._messages = list(messages)
        self.answers: list[bytes] = []

    def say(self, *parts: bytes | bytearray | memoryview) -> None:
        self.answers.append(b"".join(parts))

    def hear(self) -> memoryview:
        if not self._messages:
            raise EOFError
        return memoryview(bytearray(self._messages.pop(0)))


def lending() -> Lender:
    lender = Lender("cpu")
    lender.lend(HOLDER, 1, (0, 30), FORM)
    return lender


def kinds(channel: OneSided) -> list[Kind]:
    return [opened(memoryview(answer))[0].kind for answer in channel.answers]


SCENE_MESSAGE = Head(Kind.SCENE).pack() + SCENE.pack()
ATTEND = Head(Kind.ATTEND, 1, 4, scale=1.0).pack() + bytes(SCENE.tokens * 4 * 8 * 4 + 2 * SCENE.writes * 2 * 8 * 4)


def test_an_orderly_holder_is_answered() -> None:
    channel = OneSided(SCENE_MESSAGE, ATTEND, Head(Kind.READ, count=2).pack() + pack_numbers((3, 29)), ATTEND)
    with pytest.raises(EOFError):
        lending().serve(HOLDER, channel)
    assert kinds(channel) == [Kind.PARTIAL, Kind.CONTENT, Kind.PARTIAL]
    assert len(channel.answers[1]) == len(Head(Kind.READ).pack()) + 2 * FORM.block_bytes


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x07" + bytes(31),
        ATTEND[:-1],
        Head(Kind.ATTEND, 2, 4).pack() + ATTEND[32:],
        Head(Kind.ATTEND, 0, 3).pack() + ATTEND[32:],
        Head(Kind.ATTEND, 0, 0).pack() + ATTEND[32:],
        Head(Kind.ATTEND, 0, 4, scale=float("nan")).pack() + ATTEND[32:],
        Head(Kind.ATTEND, 0, 4, soft_cap=-1.0).pack() + ATTEND[32:],
        Head(Kind.READ, count=1).pack() + pack_numbers((30,)),
        Head(Kind.READ, count=0).pack(),
        Head(Kind.READ, count=1 << 31).pack() + pack_numbers((1,)),
        Head(Kind.CLEAR, count=1).pack() + pack_numbers((1, 2)),
        Head(Kind.COPY, count=1).pack() + pack_numbers((1, 30)),
        Head(Kind.PUT, count=1).pack() + pack_numbers((1,)) + bytes(FORM.block_bytes - 1),
        Head(Kind.PARTIAL).pack(),
        Head(Kind.SCENE).pack() + bytes(16),
    ],
)
def test_who_breaks_the_rules_is_told_and_left(message: bytes) -> None:
    lender = lending()
    channel = OneSided(SCENE_MESSAGE, message, ATTEND)
    lender.serve(HOLDER, channel)
    assert kinds(channel) == [Kind.FAILED], "and what comes after is not heard"
    again = OneSided(SCENE_MESSAGE, ATTEND)
    with pytest.raises(EOFError):
        lender.serve(HOLDER, again)
    assert kinds(again) == [Kind.PARTIAL]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=200) | st.binary(min_size=32, max_size=60).map(lambda b: b"\x02" + b), max_size=3))
def test_any_bytes_end_in_a_refusal_or_an_answer(messages: list[bytes]) -> None:
    channel = OneSided(SCENE_MESSAGE, *messages)
    try:
        lending().serve(HOLDER, channel)
    except EOFError:
        return
    assert kinds(channel)[-1] is Kind.FAILED


def test_attention_without_a_step_and_holders_without_a_lease_are_refused() -> None:
    before = OneSided(ATTEND)
    lending().serve(HOLDER, before)
    stranger = OneSided(SCENE_MESSAGE)
    lending().serve(HOLDER + 1, stranger)
    assert kinds(before) == kinds(stranger) == [Kind.FAILED]


def test_what_was_taken_back_is_nobodys() -> None:
    lender = lending()
    with pytest.raises(LeaseFault, match="no lease 2"):
        lender.take_back(HOLDER, 2)
    assert lender.take_back(HOLDER, 1) == 30 * FORM.block_bytes
    assert lender.lent_bytes == 0
    channel = OneSided(SCENE_MESSAGE)
    lender.serve(HOLDER, channel)
    assert kinds(channel) == [Kind.FAILED]
    lender.lend(HOLDER, 1, (0, 30), FORM)
    lender.forget()
    assert lender.lent_bytes == 0
