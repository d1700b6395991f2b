"""The fleet after each event; the loads beside it; and what is told to listeners."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.breaker import CLOSED, Breaker, BreakerState
from server.care import UNTROUBLED, CareLimits, Condition
from server.nodes import ModelCopy, Node, NodeId, NodeStatus
from server.registry import (
    Fleet,
    NodeCondition,
    NodeGone,
    NodeListed,
    NodeProbed,
    NodeUnlisted,
    ProbeFailed,
    Registry,
    RegistryEvent,
    apply,
    is_renewed,
    servable,
)
from tests.server.scripted_nodes import list_node, node_of, report_of, spec_of

A = NodeId("a")
GOOD = report_of(["one", "two:latest"], resident=["one"])


def after(*events: RegistryEvent) -> Fleet:
    fleet = Fleet()
    for event in events:
        fleet = apply(fleet, event)
    return fleet


def listed(now: float = 1.0, **changes: object) -> NodeListed:
    return NodeListed(spec_of("a", **changes), now)


def failures(count: int, start: float = 10.0) -> list[RegistryEvent]:
    return [ProbeFailed(A, "no answer", start + number) for number in range(count)]


def test_a_listed_node_is_unknown_until_it_answers() -> None:
    node = after(listed()).nodes[A]
    assert (node.status, node.since, node.models) == (NodeStatus.UNKNOWN, 1.0, {})
    node = after(listed(), NodeProbed(A, GOOD, 2.0)).nodes[A]
    assert (node.status, node.since) == (NodeStatus.READY, 2.0)
    assert list(node.models) == ["one", "two"]
    assert list(node.resident) == ["one"]


def test_a_disabled_node_stays_so_whatever_probes_say() -> None:
    fleet = after(listed(enabled=False), NodeProbed(A, GOOD, 2.0), *failures(5))
    assert fleet.nodes[A].status is NodeStatus.DISABLED
    fleet = apply(fleet, listed(20.0))
    assert fleet.nodes[A].status is NodeStatus.SILENT
    assert apply(after(listed(enabled=False), NodeProbed(A, GOOD, 2.0)), listed(20.0)).nodes[A].status == "ready"
    assert apply(after(listed(enabled=False)), listed(20.0)).nodes[A].status is NodeStatus.UNKNOWN


def test_three_failed_probes_mark_the_node_silent() -> None:
    """Three failed ones mark the node silent; one success in between starts the count anew."""
    fleet = after(listed(), NodeProbed(A, GOOD, 2.0), *failures(2))
    assert fleet.nodes[A].status is NodeStatus.READY
    assert fleet.nodes[A].last_error == "no answer"
    again = apply(fleet, NodeProbed(A, GOOD, 13.0))
    assert (again.nodes[A].failed_probes, again.nodes[A].last_error) == (0, None)
    silent = apply(fleet, ProbeFailed(A, "still nothing", 14.0))
    assert (silent.nodes[A].status, silent.nodes[A].since) == (NodeStatus.SILENT, 14.0)
    assert silent.nodes[A].models, "what it has is known: a request for it waits instead of being told 404"
    assert apply(silent, ProbeFailed(A, "x", 15.0)).nodes[A].since == 14.0
    back = apply(silent, NodeProbed(A, GOOD, 16.0))
    assert (back.nodes[A].status, back.nodes[A].since) == (NodeStatus.READY, 16.0)


def test_a_node_taken_from_the_list_drains_then_goes() -> None:
    """Removed ones drain: what probes say changes nothing about that."""
    fleet = after(listed(), NodeProbed(A, GOOD, 2.0), NodeUnlisted(A, 3.0))
    assert (fleet.nodes[A].status, fleet.nodes[A].since) == (NodeStatus.DRAINING, 3.0)
    assert apply(fleet, NodeUnlisted(A, 4.0)) is fleet
    still = after(listed(), NodeUnlisted(A, 3.0), NodeProbed(A, GOOD, 4.0), *failures(3))
    assert still.nodes[A].status is NodeStatus.DRAINING
    assert apply(fleet, NodeGone(A)).nodes == {}


def test_a_draining_node_that_is_listed_again_serves_again() -> None:
    fleet = after(listed(), NodeProbed(A, GOOD, 2.0), NodeUnlisted(A, 3.0), listed(4.0))
    assert (fleet.nodes[A].status, fleet.nodes[A].since) == (NodeStatus.READY, 4.0)
    silent = after(listed(), NodeProbed(A, GOOD, 2.0), *failures(3), NodeUnlisted(A, 30.0), listed(40.0))
    assert silent.nodes[A].status is NodeStatus.SILENT, "it did not answer before it left, so it is not ready now"


@pytest.mark.parametrize(
    "event", [NodeProbed(A, GOOD, 1.0), ProbeFailed(A, "x", 1.0), NodeUnlisted(A, 1.0), NodeGone(A)]
)
def test_news_of_a_node_that_left_changes_nothing(event: RegistryEvent) -> None:
    """A probe's answer may come after the node left."""
    fleet = after(NodeListed(spec_of("b"), 0.0))
    assert apply(fleet, event) is fleet


def test_what_probes_found_out_survives_a_change_of_the_owners_words() -> None:
    fleet = after(listed(), NodeProbed(A, GOOD, 2.0), listed(5.0, weight=7.0, models=("two",)))
    node = fleet.nodes[A]
    assert (node.status, node.since, node.spec.weight) == (NodeStatus.READY, 2.0, 7.0)
    assert list(node.models) == ["two"]
    assert list(apply(fleet, listed(6.0)).nodes[A].models) == ["one", "two"]


@pytest.mark.parametrize("change", [{"host": "10.9.9.9"}, {"port": 1}, {"kind": "openai"}])
def test_at_a_new_address_nothing_is_known(change: dict[str, object]) -> None:
    fleet = after(listed(), NodeProbed(A, GOOD, 2.0), listed(5.0, **change))
    assert (fleet.nodes[A].status, fleet.nodes[A].report, fleet.nodes[A].models) == (NodeStatus.UNKNOWN, None, {})


def test_models_are_narrowed_to_the_owners_in_the_owners_order() -> None:
    """`model` (name or list; default: what the node lists)."""
    report = report_of(["one", "Two:latest", "three"])
    assert list(servable(spec_of("a"), report)) == ["one", "two", "three"]
    assert list(servable(spec_of("a", models=("THREE", "two", "absent")), report)) == ["three", "two"]
    assert servable(spec_of("a", models=("one",)), None) == {}


EVENTS = st.one_of(
    st.builds(
        lambda name, weight, host, enabled, models, now: NodeListed(
            spec_of(name, weight=weight, host=host, enabled=enabled, models=models), now
        ),
        st.sampled_from("ab"),
        st.sampled_from([1.0, 2.0]),
        st.sampled_from(["h1", "h2"]),
        st.booleans(),
        st.sampled_from([(), ("one",)]),
        st.sampled_from([1.0, 2.0]),
    ),
    st.builds(NodeUnlisted, st.sampled_from("ab").map(NodeId), st.sampled_from([1.0, 2.0])),
    st.builds(NodeGone, st.sampled_from("ab").map(NodeId)),
    st.builds(
        NodeProbed,
        st.sampled_from("ab").map(NodeId),
        st.sampled_from([GOOD, replace(GOOD, resident=()), replace(GOOD, version="0.33.0")]),
        st.sampled_from([1.0, 2.0]),
    ),
    st.builds(
        ProbeFailed,
        st.sampled_from("ab").map(NodeId),
        st.sampled_from("xy"),
        st.sampled_from([1.0, 2.0]),
        st.booleans(),
    ),
)


@given(st.lists(EVENTS, max_size=30))
def test_the_epoch_grows_exactly_when_the_fleet_changes(events: list[RegistryEvent]) -> None:
    """Everything that can change while requests run is a value with an epoch, replaced whole."""
    fleet = Fleet()
    for event in events:
        before = dict(fleet.nodes)
        next_fleet = apply(fleet, event)
        assert dict(fleet.nodes) == before, "the old value stays as it was"
        if next_fleet is fleet:
            continue
        assert next_fleet.epoch == fleet.epoch + 1
        assert dict(next_fleet.nodes) != before
        fleet = next_fleet
    assert all(node.models == servable(node.spec, node.report) for node in fleet.nodes.values())
    assert all(node.spec.enabled or node.status in ("disabled", "draining") for node in fleet.nodes.values())


@given(st.lists(EVENTS, max_size=30))
def test_listeners_hear_of_every_change_and_every_node_has_one_load(events: list[RegistryEvent]) -> None:
    registry = Registry()
    seen: dict[NodeId, Node] = {}

    def follow(before: Node | None, now: Node | None) -> None:
        node = now or before
        assert node is not None
        assert seen.get(node.id) == before
        assert before != now
        if now is None:
            del seen[node.id]
        else:
            seen[node.id] = now
        assert registry.loads.keys() == registry.fleet.nodes.keys()

    registry.listen(follow)
    for event in events:
        registry.emit(event)
    assert seen == registry.fleet.nodes
    assert registry.node(A) is seen.get(A)


def test_a_node_that_comes_back_after_leaving_starts_with_a_new_load() -> None:
    registry = Registry()
    list_node(registry, "a")
    old = registry.loads[A]
    registry.emit(NodeGone(A))
    list_node(registry, "a")
    assert registry.loads[A] is not old


READY = node_of("a", GOOD)


@pytest.mark.parametrize(
    ("before", "now", "renewed"),
    [
        (None, READY, False),
        (READY, READY, False),
        (READY, replace(READY, failed_probes=2), False),
        (READY, replace(READY, spec=spec_of("a", weight=9.0)), False),
        (READY, replace(READY, spec=spec_of("a", host="10.9.9.9")), True),
        (READY, replace(READY, spec=spec_of("a", port=1)), True),
        (READY, replace(READY, report=replace(GOOD, version="0.33.0")), True),
        (READY, replace(READY, report=replace(GOOD, models=(ModelCopy("three"),))), False),
        (replace(READY, report=None), READY, False),
        (replace(READY, refused_probe=True), READY, True),
        (READY, replace(READY, refused_probe=True), False),
        (replace(READY, refused_probe=True), replace(READY, refused_probe=True, failed_probes=3), False),
    ],
)
def test_what_makes_a_node_a_new_one(before: Node | None, now: Node, renewed: bool) -> None:
    """A replug, a restart seen in `/api/version` or a new address ends the rest at once."""
    assert is_renewed(before, now) is renewed


def resting(registry: Registry) -> None:
    load = registry.loads[A]
    load.breaker = Breaker(BreakerState.OPEN, 3, 1, 1e9)
    load.shunned_until = load.busy_until = 1e9


@pytest.mark.parametrize(
    "events",
    [
        [NodeListed(spec_of("a", host="10.9.9.9"), 5.0)],
        [NodeProbed(A, replace(GOOD, version="0.33.0"), 5.0)],
        [ProbeFailed(A, "refused", 5.0, refused=True), NodeProbed(A, GOOD, 6.0)],
    ],
)
def test_a_new_node_is_judged_anew(events: list[RegistryEvent]) -> None:
    """Ends the rest at once, before anybody is told of the change."""
    registry = Registry()
    list_node(registry, "a", GOOD)
    resting(registry)
    heard: list[Breaker] = []
    registry.listen(lambda _, now: heard.append(registry.loads[A].breaker))
    for event in events:
        registry.emit(event)
    assert heard[-1] == CLOSED
    assert (registry.loads[A].shunned_until, registry.loads[A].busy_until) == (0.0, 0.0)


def test_a_probes_success_never_clears_request_failures() -> None:
    """A breaker that requests opened closes only by a request, though every probe succeeds."""
    registry = Registry()
    list_node(registry, "a", GOOD)
    resting(registry)
    load = registry.loads[A]
    load.failed, load.last_error = 3, "stalled"
    for event in [*failures(4), NodeProbed(A, replace(GOOD, resident=()), 20.0), NodeProbed(A, GOOD, 25.0)]:
        registry.emit(event)
    assert load.breaker.state is BreakerState.OPEN
    assert (load.failed, load.last_error, load.shunned_until) == (3, "stalled", 1e9)


def test_failed_probes_are_no_request_failures() -> None:
    """Failures of requests and of probes are counted apart."""
    registry = Registry()
    list_node(registry, "a", GOOD)
    for event in failures(9):
        registry.emit(event)
    assert (registry.loads[A].breaker, registry.loads[A].failed) == (CLOSED, 0)


# --- what phones tell of themselves


HOT = Condition(80.0, True, 44.0, at=10.0)


def told(condition: Condition) -> NodeCondition:
    return NodeCondition(A, condition, condition.at)


def test_a_hot_phone_rests_and_stays_ready() -> None:
    node = after(listed(), NodeProbed(A, GOOD, 2.0), told(HOT)).nodes[A]
    assert (node.status, node.condition, node.care.hot) == (NodeStatus.READY, HOT, True)
    assert node.resting is not None and "44.0 °C" in node.resting


def test_a_reading_that_tells_nothing_changes_nothing() -> None:
    fleet = after(listed(), told(HOT))
    assert apply(fleet, told(Condition(at=20.0))) is fleet


def test_the_decision_remembers_what_was_decided_before() -> None:
    between = replace(HOT, temperature_c=41.0, at=20.0)
    assert after(listed(), told(HOT), told(between)).nodes[A].care.hot
    assert not after(listed(), told(between)).nodes[A].care.hot


@pytest.mark.parametrize("event", [NodeProbed(A, GOOD, 191.0), ProbeFailed(A, "no answer", 191.0)])
def test_a_reading_that_grew_old_ends_the_rest_with_the_next_probe(event: RegistryEvent) -> None:
    at_rest = after(listed(), told(HOT), replace(event, now=190.0))
    assert at_rest.nodes[A].care.hot
    assert apply(at_rest, event).nodes[A].care == UNTROUBLED


def test_a_phone_with_a_new_address_is_as_hot_as_before() -> None:
    node = after(listed(), NodeProbed(A, GOOD, 2.0), told(HOT), listed(11.0, host="10.0.0.9")).nodes[A]
    assert (node.report, node.status, node.care.hot) == (None, NodeStatus.UNKNOWN, True)


def test_a_node_that_left_tells_nothing_any_more() -> None:
    assert after(told(HOT)).nodes == {}


def test_the_owners_marks_count() -> None:
    for limits, hot in ((CareLimits(hot_c=50.0), False), (CareLimits(enabled=False), False), (CareLimits(), True)):
        registry = Registry(limits)
        list_node(registry, "a", GOOD)
        registry.emit(told(HOT))
        node = registry.node(A)
        assert (node.care.hot, node.condition) == (hot, HOT)
