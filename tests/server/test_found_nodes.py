"""Which of the nodes that were heard join the fleet, under which address, and when they leave it."""

from __future__ import annotations

import dataclasses

import pytest

from server.found_nodes import (
    FORGET_SECONDS,
    MOST_NODES,
    MOST_OPEN_NODES_OF_A_SOURCE,
    NOT_TRUSTED,
    PLACE_SECONDS,
    TOO_MANY,
    WANTS_TOKEN,
    FoundNodes,
    distrust,
    fleet_changes,
)
from server.nodes import Node, NodeId, NodeSpec, NodeStatus, ProbeReport
from server.registry import Fleet, NodeListed, NodeUnlisted
from transport.found import Found
from wire.beacon import Address, Announcement

WALL = 1_800_000_000.0
NODE = Announcement(bytes(range(16)), 5, 9, 0, "tower", (Address("192.168.1.20", 8765),), token_wanted=True)
ID = NodeId(bytes(range(16)).hex())


def _found(source: str = "192.168.1.20", *, signed: bool = True, port: int = 8765, **changes: object) -> Found:
    said = dataclasses.replace(NODE, **{"addresses": (Address(source, port),), **changes})
    return Found(said, source, 8766, signed)


def _fleet(*nodes: Node) -> Fleet:
    return Fleet(1, {node.id: node for node in nodes})


def _listed(host: str = "192.168.1.20", **changes: object) -> Node:
    spec = NodeSpec(NodeId("mine"), "mine", "relay", host, 8765)
    return Node(dataclasses.replace(spec, **changes), NodeStatus.READY, report=ProbeReport("1", ()))


def _changes(table: FoundNodes, fleet: Fleet) -> list:
    return list(fleet_changes(table.heard, fleet, WALL))


def _after(table: FoundNodes, fleet: Fleet) -> Node:
    (event,) = _changes(table, fleet)
    return Node(event.spec, NodeStatus.READY)


@pytest.mark.parametrize(
    ("source", "signed", "wants", "has_token", "mode", "reason"),
    [
        ("192.168.1.20", True, True, True, "auto", None),
        ("127.0.0.1", False, False, False, "auto", None),
        ("127.0.0.1", False, True, False, "auto", WANTS_TOKEN),
        ("192.168.1.20", False, False, False, "auto", NOT_TRUSTED),
        ("192.168.1.20", False, False, False, "on", None),
        ("192.168.1.20", False, True, False, "on", WANTS_TOKEN),
        ("203.0.113.9", False, False, False, "on", None),  # reserved for documents, counts as private
        ("8.8.8.8", False, False, False, "on", NOT_TRUSTED),
        ("127.0.0.1", False, False, True, "on", NOT_TRUSTED),
    ],
)
def test_who_is_trusted(source, signed, wants, has_token, mode, reason) -> None:
    assert distrust(_found(source, signed=signed, token_wanted=wants), has_token, mode) == reason


def test_a_node_that_was_heard_joins_once() -> None:
    table = FoundNodes()
    table.hear(_found(), 1.0)
    (event,) = _changes(table, Fleet())
    assert event == NodeListed(
        NodeSpec(id=ID, name="tower", kind="relay", host="192.168.1.20", port=8765, origin="discovered"), WALL
    )
    assert _changes(table, _fleet(_after(table, Fleet()))) == []


def test_a_node_with_several_networks_keeps_its_address_while_that_is_heard() -> None:
    table, now = FoundNodes(), 0.0
    table.hear(_found("192.168.1.20"), now)
    fleet = _fleet(_after(table, Fleet()))
    for step in range(1, 20):
        table.hear(_found("10.0.0.20" if step % 2 else "192.168.1.20"), now + 5.0 * step)
        assert _changes(table, fleet) == []
    last = now + 95.0
    table.hear(_found("10.0.0.20"), last + PLACE_SECONDS - 6)
    assert _changes(table, fleet) == []
    table.hear(_found("10.0.0.20"), last + PLACE_SECONDS)
    (event,) = _changes(table, fleet)
    assert event.spec.address == "10.0.0.20:8765"


def test_a_restart_at_another_port_is_followed_at_once() -> None:
    table = FoundNodes()
    table.hear(_found(), 0.0)
    fleet = _fleet(_after(table, Fleet()))
    table.hear(_found(incarnation=6, port=9000), 1.0)
    (event,) = _changes(table, fleet)
    assert (event.spec.id, event.spec.port) == (ID, 9000)


def test_leaving_ends_it_at_once_but_not_the_next_run() -> None:
    table = FoundNodes()
    table.hear(_found(), 0.0)
    fleet = _fleet(_after(table, Fleet()))
    table.hear(_found(incarnation=4, leaving=True), 1.0)
    assert _changes(table, fleet) == []
    table.hear(_found(leaving=True), 1.0)
    assert _changes(table, fleet) == [NodeUnlisted(ID, WALL)]
    drained = Node(fleet.nodes[ID].spec, NodeStatus.DRAINING)
    assert _changes(table, _fleet(drained)) == []
    table.hear(_found(incarnation=6), 2.0)
    assert [type(event) for event in _changes(table, _fleet(drained))] == [NodeListed]


@pytest.mark.parametrize(
    ("status", "leaves"), [(NodeStatus.READY, False), (NodeStatus.SILENT, True), (NodeStatus.UNKNOWN, True)]
)
def test_who_is_silent_for_long_leaves_unless_it_answers_probes(status: NodeStatus, leaves: bool) -> None:
    table = FoundNodes()
    table.hear(_found(), 0.0)
    fleet = _fleet(dataclasses.replace(_after(table, Fleet()), status=status))
    assert table.silent(PLACE_SECONDS) == []
    assert table.silent(PLACE_SECONDS + 1) == [("192.168.1.20", 8766)]
    table.forget(fleet, FORGET_SECONDS)
    assert _changes(table, fleet) == []
    table.forget(fleet, FORGET_SECONDS + 1)
    assert bool(_changes(table, fleet)) is leaves


@pytest.mark.parametrize(
    "node",
    [
        _listed(),
        _listed("192.168.1.20", kind="relay", enabled=False),
        _listed("tower.home"),
        Node(NodeSpec(NodeId("http"), "http", "ollama", "192.168.1.20", 5000), NodeStatus.READY),
        Node(NodeSpec(ID, "mine", "relay", "10.9.9.9", 1), NodeStatus.DISABLED),
        Node(NodeSpec(NodeId("local"), "local", "relay", "127.0.0.1", 40000, origin="embedded"), NodeStatus.READY),
    ],
    ids=["address", "disabled", "name", "http", "id", "embedded"],
)
def test_what_is_listed_is_not_counted_twice(node: Node) -> None:
    by_id = node.spec.kind == "ollama" or node.spec.host in ("tower.home", "127.0.0.1")
    if by_id:
        node = dataclasses.replace(node, report=ProbeReport("1", (), node_id=ID))
    table = FoundNodes()
    table.hear(_found(), 0.0)
    assert _changes(table, _fleet(node)) == []
    joined = Node(next(iter(table.heard.values())).spec, NodeStatus.READY)
    if node.id != ID:
        assert _changes(table, _fleet(node, joined)) == [NodeUnlisted(ID, WALL)]


@pytest.mark.parametrize(
    ("report", "host", "joins"),
    [
        (ProbeReport("1", (), gpu_node=True), "192.168.1.20", 0),
        (ProbeReport("1", (), gpu_node=True), "192.168.1.21", 1),
        (ProbeReport("1", (), gpu_node=True, node_id="another"), "192.168.1.20", 1),
        (ProbeReport("0.12", ()), "192.168.1.20", 1),  # an Ollama beside it
    ],
)
def test_a_node_of_ours_that_is_listed_by_its_http_port_is_the_same(report, host, joins) -> None:
    table = FoundNodes()
    table.hear(_found(), 0.0)
    listed = Node(NodeSpec(NodeId("http"), "http", "ollama", host, 5000), NodeStatus.READY, report=report)
    assert len(_changes(table, _fleet(listed))) == joins


def test_a_node_with_tls_is_spoken_to_through_it() -> None:
    table = FoundNodes()
    table.hear(_found(tls=True), 0.0)
    (event,) = _changes(table, Fleet())
    assert event.spec.tls


def test_this_machine_by_its_name_is_the_same_address() -> None:
    table = FoundNodes()
    table.hear(_found("127.0.0.1"), 0.0)
    assert _changes(table, _fleet(_listed("localhost"))) == []


def test_a_listed_node_that_was_never_asked_may_be_the_one() -> None:
    table = FoundNodes()
    table.hear(_found(), 0.0)
    unknown = dataclasses.replace(_listed("tower.home"), status=NodeStatus.UNKNOWN, report=None)
    assert _changes(table, _fleet(unknown)) == []
    silent = dataclasses.replace(unknown, status=NodeStatus.SILENT)
    assert len(_changes(table, _fleet(silent))) == 1
    phone = dataclasses.replace(unknown, spec=dataclasses.replace(unknown.spec, kind="ollama"))
    assert len(_changes(table, _fleet(phone))) == 1


def test_nodes_of_one_name_are_told_apart() -> None:
    table = FoundNodes()
    table.hear(_found(), 0.0)
    table.hear(_found("192.168.1.21", node_id=bytes(16)), 0.0)
    assert sorted(event.spec.name for event in _changes(table, Fleet())) == ["tower-0000", "tower-0001"]


def test_the_table_is_bounded_and_known_nodes_stay() -> None:
    table = FoundNodes()
    for number in range(MOST_NODES):
        assert table.hear(_found(node_id=number.to_bytes(16, "big")), 0.0) is None
    assert table.hear(_found(node_id=b"x" * 16), 0.0) == TOO_MANY
    assert table.hear(_found(node_id=bytes(16)), 1.0) is None
    assert len(table.heard) == MOST_NODES


def test_one_source_without_a_token_is_but_a_few_nodes() -> None:
    table = FoundNodes()
    told = [table.hear(_found(signed=False, node_id=number.to_bytes(16, "big")), 0.0) for number in range(20)]
    assert told.count(None) == MOST_OPEN_NODES_OF_A_SOURCE
    assert table.hear(_found("192.168.1.21", signed=False, node_id=b"y" * 16), 0.0) is None


def test_the_places_of_one_node_are_bounded() -> None:
    table = FoundNodes()
    for number in range(1, 100):
        table.hear(_found(port=number), 0.0)
    (heard,) = table.heard.values()
    assert len(heard.places) <= 16
