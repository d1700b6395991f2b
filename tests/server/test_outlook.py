"""What the fleet says to those that wait, found out once for each fleet value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from server.care import Care
from server.nodes import ModelKey, Node, NodeId, NodeStatus
from server.outlook import Outlook
from server.registry import Fleet
from server.routing import Demand
from tests.server.scripted_nodes import MODEL, node_of, report_of


class CountedNodes(dict[NodeId, Node]):
    looks = 0

    def values(self) -> Any:
        self.looks += 1
        return super().values()


def outlook_of(*nodes: Node) -> Outlook:
    return Outlook(Fleet(1, {node.id: node for node in nodes}))


def test_a_thousand_that_wait_look_over_the_fleet_once() -> None:
    nodes = CountedNodes({NodeId("a"): node_of("a", status=NodeStatus.SILENT)})
    outlook = Outlook(Fleet(1, nodes))
    before = nodes.looks
    assert all(outlook.may_return(Demand(MODEL, prompt_tokens=number)) for number in range(1000))
    assert nodes.looks == before + 1


@pytest.mark.parametrize(
    ("node", "returns"),
    [
        (node_of("a", status=NodeStatus.SILENT), True),
        (node_of("a"), True),  # it rests: else nobody would ask
        (node_of("a", status=NodeStatus.DRAINING), False),
        (node_of("a", status=NodeStatus.DISABLED), False),
        (node_of("a", report_of(["other"])), False),
        (replace(node_of("a", report_of(["other"]), NodeStatus.UNKNOWN), report=None), True),
    ],
)
def test_who_may_come_back(node: Node, returns: bool) -> None:
    outlook = outlook_of(node)
    assert outlook.may_return(Demand(MODEL)) is returns
    assert not outlook.may_return(Demand(MODEL, excluded=frozenset({node.id})))
    assert outlook.may_return(Demand(None)) is (
        node.status in (NodeStatus.SILENT, NodeStatus.READY, NodeStatus.UNKNOWN)
    )


def test_slots_and_the_reason() -> None:
    silent = node_of("s", status=NodeStatus.SILENT)
    outlook = outlook_of(node_of("a", max_concurrency=3), node_of("b"), silent)
    assert outlook.slots == 4
    assert outlook.why_nobody(Demand(ModelKey("m"))).startswith("no node can serve 'm' now: 3 known, 1 silent")
    assert outlook_of().why_nobody(Demand(None)) == "there are no nodes"


def test_phones_that_rest_have_no_slots_to_offer_and_are_named() -> None:
    tired = replace(node_of("a", max_concurrency=4), care=Care(0.0, "hot"))
    outlook = outlook_of(tired, node_of("b"))
    assert (outlook.slots, outlook.cared_for) == (1, 1)
    assert "2 known, 0 silent, 1 too hot or low on battery, the others" in outlook.why_nobody(Demand(None))
    assert outlook.may_return(Demand(MODEL))
