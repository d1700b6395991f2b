"""The state of all nodes: a fleet value, replaced whole by events, and the load of each node beside it.

`apply(fleet, event)` is pure; `Registry` holds the current fleet, its epoch and the loads, and tells listeners. Only
loops (health, fleet file, discovery, embedded node) emit events; requests touch `Load` alone. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from server.breaker import on_renewed
from server.care import CareLimits, Condition, Rest, RestMemory, decide, renewed
from server.nodes import Load, ModelCopy, ModelKey, Node, NodeId, NodeSpec, NodeStatus, ProbeReport, model_key

FAILED_PROBES_TO_SILENT = 3  # with a probe a second after the first failure: silent within 10 s


@dataclass(frozen=True, slots=True)
class NodeListed:
    """The owner (or discovery) names a node, new or changed."""

    spec: NodeSpec
    now: float  # wall clock


@dataclass(frozen=True, slots=True)
class NodeUnlisted:
    """The node was taken from the list: it drains, then it is `NodeGone`."""

    id: NodeId
    now: float


@dataclass(frozen=True, slots=True)
class NodeGone:
    id: NodeId


@dataclass(frozen=True, slots=True)
class NodeProbed:
    id: NodeId
    report: ProbeReport
    now: float


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """`refused`: nobody listened at the port, which a node that is merely slow never shows."""

    id: NodeId
    error: str
    now: float
    refused: bool = False


@dataclass(frozen=True, slots=True)
class NodeCondition:
    """A phone told its battery or heat, by whatever way."""

    id: NodeId
    condition: Condition
    now: float


@dataclass(frozen=True, slots=True)
class SamePhone:
    """The phone behind this node is the one that was reached as another so far: by its network instead of a cable."""

    id: NodeId
    formerly: NodeId
    now: float


RegistryEvent = NodeListed | NodeUnlisted | NodeGone | NodeProbed | ProbeFailed | NodeCondition | SamePhone
DEFAULT_CARE = CareLimits()


@dataclass(frozen=True, slots=True)
class Fleet:
    """All nodes at one moment. `epoch` grows with every change that could matter to routing."""

    epoch: int = 0
    nodes: Mapping[NodeId, Node] = field(default_factory=dict)
    rests: RestMemory = field(default_factory=RestMemory)  # of phones that may have left


def apply(fleet: Fleet, event: RegistryEvent, limits: CareLimits = DEFAULT_CARE) -> Fleet:
    """The fleet after the event; the same object when nothing changes.

    Care is decided anew with each reading, and with each probe, since readings grow old.
    """
    match event:
        case NodeListed(spec, now):
            known = fleet.nodes.get(spec.id)
            found = _listed(known, spec, now)
            return _put(fleet, found if known else _at_rest(found, fleet.rests.of(_phone(spec), now), limits, now))
        case NodeGone(node_id):
            nodes = {key: node for key, node in fleet.nodes.items() if key != node_id}
            return replace(fleet, epoch=fleet.epoch + 1, nodes=nodes) if len(nodes) != len(fleet.nodes) else fleet
    node = fleet.nodes.get(event.id)
    if node is None:
        return fleet  # a probe's answer may come after the node left
    match event:
        case NodeUnlisted(_, now):
            return _put(fleet, _with_status(node, NodeStatus.DRAINING, now))
        case NodeProbed(_, report, now):
            rest = fleet.rests.of(_phone(node.spec), now)
            return _put(fleet, _cared_for(_probed(node, report, now), rest, limits, now))
        case ProbeFailed(now=now):
            rest = fleet.rests.of(_phone(node.spec), now)
            return _put(fleet, _cared_for(_probe_failed(node, event), rest, limits, now))
        case NodeCondition(_, told, now):
            return _conditioned(fleet, node, told, limits, now) if told.tells_anything else fleet
        case SamePhone(_, formerly, now):
            other = fleet.nodes.get(formerly)
            rest = fleet.rests.of(_phone(other.spec) if other else formerly, now)
            return _put(_remembering(fleet, node, rest, now), _at_rest(node, rest, limits, now))


def _put(fleet: Fleet, node: Node) -> Fleet:
    if fleet.nodes.get(node.id) == node:
        return fleet
    return replace(fleet, epoch=fleet.epoch + 1, nodes={**fleet.nodes, node.id: node})


def _phone(spec: NodeSpec) -> str:
    """What a phone is called whatever becomes of its node: an entry made for one on a cable has its serial."""
    return spec.serial or spec.id


def _conditioned(fleet: Fleet, node: Node, told: Condition, limits: CareLimits, now: float) -> Fleet:
    rest, known = fleet.rests.of(_phone(node.spec), now), renewed(node.condition, told)
    node = _cared_for(replace(node, condition=known), rest, limits, now)
    rest = rest.renewed(known.believed(now, limits.stale_seconds), node.care)
    return _put(_remembering(fleet, node, rest, now), node)


def _remembering(fleet: Fleet, node: Node, rest: Rest, now: float) -> Fleet:
    rests = fleet.rests.renewed(_phone(node.spec), rest, now)
    return fleet if rests is fleet.rests else replace(fleet, rests=rests)


def _at_rest(node: Node, rest: Rest, limits: CareLimits, now: float) -> Node:
    """A node that is new, of a phone that may not be: what it told a moment ago still counts."""
    told = rest.newest
    if node.condition is None and told is not None and told.believed(now, limits.stale_seconds).tells_anything:
        node = replace(node, condition=told)
    return _cared_for(node, rest, limits, now)


def _cared_for(node: Node, rest: Rest, limits: CareLimits, now: float) -> Node:
    before = node.care
    if rest != Rest():
        before = replace(before, hot=before.hot or rest.heat is not None, low=before.low or rest.charge is not None)
    care = decide(node.condition, before, limits, now)
    return node if care == node.care else replace(node, care=care)


def _with_status(node: Node, status: NodeStatus, now: float) -> Node:
    return node if node.status is status else replace(node, status=status, since=now)


def _listed(known: Node | None, spec: NodeSpec, now: float) -> Node:
    status = NodeStatus.UNKNOWN if spec.enabled else NodeStatus.DISABLED
    if known is None:
        return Node(spec, status, now)
    if (known.spec.host, known.spec.port, known.spec.kind) != (
        spec.host,
        spec.port,
        spec.kind,
    ):
        # whoever has another address is as hot as before, and nothing else is known of it
        return Node(spec, status, now, condition=known.condition, care=known.care)
    if spec.enabled and known.status not in (NodeStatus.DISABLED, NodeStatus.DRAINING):
        status = known.status  # what probes found out stays true
    elif spec.enabled and known.report is not None:
        status = NodeStatus.READY if known.failed_probes < FAILED_PROBES_TO_SILENT else NodeStatus.SILENT
    models = servable(spec, known.report)
    return _with_status(replace(known, spec=spec, models=models), status, now)


def _probed(node: Node, report: ProbeReport, now: float) -> Node:
    found = replace(
        node,
        report=report,
        models=servable(node.spec, report),
        resident={model_key(model.name): model for model in report.resident},
        failed_probes=0,
        refused_probe=False,
        last_error=None,
    )
    if node.status in (NodeStatus.DRAINING, NodeStatus.DISABLED):
        return found
    return _with_status(found, NodeStatus.READY, now)


def _probe_failed(node: Node, event: ProbeFailed) -> Node:
    failed = replace(
        node,
        failed_probes=node.failed_probes + 1,
        refused_probe=node.refused_probe or event.refused,
        last_error=event.error,
    )
    if node.status in (NodeStatus.DRAINING, NodeStatus.DISABLED):
        return failed
    silent = failed.failed_probes >= FAILED_PROBES_TO_SILENT
    return _with_status(failed, NodeStatus.SILENT, event.now) if silent else failed


def servable(spec: NodeSpec, report: ProbeReport | None) -> Mapping[ModelKey, ModelCopy]:
    """The models a node may serve: what it lists, narrowed to what its owner named (in the owner's order)."""
    listed = {model_key(copy.name): copy for copy in report.models} if report else {}
    if not spec.models:
        return listed
    named = [model_key(name) for name in spec.models]
    return {key: listed[key] for key in named if key in listed}


NodeListener = Callable[[Node | None, Node | None], None]


class Registry:
    """The current fleet and the load of each node. On one event loop; `emit` is the only way to change the fleet."""

    def __init__(self, care: CareLimits = DEFAULT_CARE) -> None:
        self.fleet = Fleet()
        self.care = care
        self.loads: dict[NodeId, Load] = {}
        self._listeners: list[NodeListener] = []

    def listen(self, listener: NodeListener) -> None:
        """`listener(before, after)` is called for each node that an event changed; None for "not there"."""
        self._listeners.append(listener)

    def emit(self, event: RegistryEvent) -> None:
        before = self.fleet
        self.fleet = apply(before, event, self.care)
        if self.fleet is before:
            return
        node_id = event.spec.id if isinstance(event, NodeListed) else event.id
        was, now = before.nodes.get(node_id), self.fleet.nodes.get(node_id)
        self._keep_load(node_id, was, now)
        for listener in self._listeners:
            listener(was, now)

    def node(self, node_id: NodeId) -> Node | None:
        return self.fleet.nodes.get(node_id)

    def _keep_load(self, node_id: NodeId, was: Node | None, now: Node | None) -> None:
        """One load per node, judged anew where the node is a new one."""
        if now is None:
            self.loads.pop(node_id, None)
            return
        load = self.loads.setdefault(node_id, Load())
        if is_renewed(was, now):
            load.breaker = on_renewed(load.breaker)
            load.shunned_until = load.busy_until = 0.0


def is_renewed(before: Node | None, after: Node) -> bool:
    """Is the node a new one, as far as judging it goes? (new address, other version, back after nobody listened)"""
    if before is None:
        return False
    if (before.spec.host, before.spec.port) != (after.spec.host, after.spec.port):
        return True
    if before.report is not None and after.report is not None and before.report.version != after.report.version:
        return True
    return before.refused_probe and not after.refused_probe
