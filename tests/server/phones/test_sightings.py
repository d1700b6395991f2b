"""Copies of one phone, and strangers with its id."""

from __future__ import annotations

import pytest

from server.errors import RequestInvalid
from server.nodes import Node, NodeId, NodeSpec, NodeStatus
from server.phones.sightings import MOST_LEFT, RETURN_SECONDS, Sightings, refuse_stranger
from tests.server.phones.stand import HOST, ID, OTHER

ELSEWHERE = "192.168.1.99"


def node(status: NodeStatus = NodeStatus.READY, failed_probes: int = 0, host: str = HOST) -> Node:
    spec = NodeSpec(NodeId(ID), "Kitchen", "ollama", host, 11434)
    return Node(spec, status, failed_probes=failed_probes)


def test_who_answers_is_not_replaced() -> None:
    with pytest.raises(RequestInvalid, match="answers at") as refused:
        refuse_stranger(node(), ELSEWHERE)
    assert refused.value.http_status == 409 and "'Kitchen'" in (refused.value.hint or "")
    refuse_stranger(node(), HOST)


@pytest.mark.parametrize("gone", [node(NodeStatus.SILENT), node(failed_probes=1), node(NodeStatus.DISABLED)])
def test_who_does_not_answer_is(gone: Node) -> None:
    refuse_stranger(gone, ELSEWHERE)
    sightings = Sightings()
    sightings.moved(gone.id, ELSEWHERE, 0.0)
    sightings.refuse_copy(gone, ELSEWHERE, 1.0)


def test_only_who_comes_back_soon_may_be_a_copy() -> None:
    sightings = Sightings()
    sightings.refuse_copy(node(), ELSEWHERE, 0.0)
    sightings.moved(NodeId(OTHER), ELSEWHERE, 0.0)
    sightings.refuse_copy(node(), ELSEWHERE, 1.0)
    sightings.moved(NodeId(ID), ELSEWHERE, 0.0)
    with pytest.raises(RequestInvalid, match="the same id"):
        sightings.refuse_copy(node(), ELSEWHERE, 1.0)
    sightings.refuse_copy(node(), ELSEWHERE, RETURN_SECONDS)
    sightings.refuse_copy(node(), ELSEWHERE, -1.0)  # the clock was set back


def test_the_table_is_bounded() -> None:
    sightings = Sightings()
    for number in range(2 * MOST_LEFT):
        sightings.moved(NodeId(ID), str(number), 0.0)
    assert len(vars(sightings)["_left"]) == MOST_LEFT
