from __future__ import annotations

from pathlib import Path

import pytest

from wire.errors import IllegalReceive, IllegalSend
from wire.frames import FrameType
from wire.rules import FREE_OF_CREDIT
from wire.state import (
    ANSWERS,
    CONNECTION_MOVES,
    STREAM_MOVES,
    ConnectionMove,
    ConnectionState,
    Role,
    StreamMove,
    StreamState,
    Way,
    connection_after,
    stream_after,
)

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text()


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", ConnectionState)
@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("move", ConnectionMove)
def test_a_move_of_the_connection_is_in_the_table_or_somebodys_fault(role, state, way, move) -> None:
    after = CONNECTION_MOVES[role][state].get((way, move))
    if after is not None:
        assert connection_after(role, state, way, move) is after
        return
    with pytest.raises(IllegalSend if way is Way.SEND else IllegalReceive):
        connection_after(role, state, way, move)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", StreamState)
@pytest.mark.parametrize("move", StreamMove)
def test_a_move_of_a_stream_is_in_the_table_or_somebodys_fault(role, state, move) -> None:
    after = STREAM_MOVES[role][state].get(move)
    if after is not None:
        assert stream_after(role, state, Way.SEND, move) is after
        return
    for way, error in ((Way.SEND, IllegalSend), (Way.RECEIVE, IllegalReceive)):
        with pytest.raises(error):
            stream_after(role, state, way, move)


@pytest.mark.parametrize("role", Role)
def test_every_state_of_the_connection_leads_to_its_end(role: Role) -> None:
    for state in ConnectionState:
        reached = {state}
        while more := {after for one in reached for after in CONNECTION_MOVES[role][one].values()} - reached:
            reached |= more
        assert ConnectionState.CLOSED in reached


def test_what_one_side_may_send_when_nothing_crosses_the_other_may_receive() -> None:
    other = {Role.CLIENT: Role.SERVER, Role.SERVER: Role.CLIENT}
    for role, table in CONNECTION_MOVES.items():
        for state, moves in table.items():
            for (way, move), after in moves.items():
                if way is Way.SEND and state is not ConnectionState.BROKEN:
                    assert CONNECTION_MOVES[other[role]][state][Way.RECEIVE, move] is after


def test_every_type_is_a_request_an_answer_or_free_of_credit() -> None:
    assert {*ANSWERS, *frozenset().union(*ANSWERS.values()), *FREE_OF_CREDIT} == set(FrameType)


@pytest.mark.parametrize("kind", FrameType)
def test_every_type_is_documented(kind: FrameType) -> None:
    assert f"| `{kind.name}` | `{int(kind):#04x}` |" in PAGE


@pytest.mark.parametrize("state", [*ConnectionState, *StreamState])
def test_every_state_is_documented(state) -> None:
    assert f"`{state.value}`" in PAGE


def test_every_answer_is_documented() -> None:
    for request, answers in ANSWERS.items():
        told = ", ".join(f"`{answer.name}`" for answer in sorted(answers))
        assert f"| `{request.name}` | {told} |" in PAGE
