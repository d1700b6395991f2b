"""Nodes as a probe would have found them, made from a name: what the tests of pure decisions are about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.affinity import Memories
from server.exchange import AskRequest, CallerId, RequestId
from server.nodes import Load, ModelCopy, ModelKey, Node, NodeId, NodeSpec, NodeStatus, ProbeReport, ResidentModel
from server.registry import NodeListed, NodeProbed, Registry, servable
from server.roster import Roster, Seat

MODEL = ModelKey("qwen:1b")


def spec_of(name: str, **changes: Any) -> NodeSpec:
    values: dict[str, Any] = {"kind": "ollama", "host": "10.0.0.1", "port": 11434, **changes}
    return NodeSpec(NodeId(name), name, **values)


def report_of(
    models: Sequence[str] = (MODEL,),
    *,
    digest: str = "d1",
    version: str = "0.24.0",
    resident: Sequence[str] = (),
    context: int | None = 4096,
    **changes: Any,
) -> ProbeReport:
    return ProbeReport(
        version,
        tuple(ModelCopy(name, digest and f"{digest}-{name}") for name in models),
        tuple(ResidentModel(name, context) for name in resident),
        **changes,
    )


def node_of(
    name: str, report: ProbeReport | None = None, status: NodeStatus = NodeStatus.READY, **changes: Any
) -> Node:
    """A node that answered its probe with the report."""
    spec = spec_of(name, **changes)
    found = report or report_of()
    resident = {ModelKey(model.name): model for model in found.resident}
    return Node(spec, status, 0.0, found, servable(spec, found), resident)


def list_node(registry: Registry, name: str, report: ProbeReport | None = None, **changes: Any) -> NodeId:
    """The node joins the registry and is probed once."""
    spec = spec_of(name, **changes)
    registry.emit(NodeListed(spec, 0.0))
    registry.emit(NodeProbed(spec.id, report or report_of(), 0.0))
    return spec.id


def roster_of(*nodes: Node, model: ModelKey | None = MODEL, memories: Memories | None = None) -> Roster:
    """Every node with a load of its own."""
    memories = memories or Memories()
    roster = Roster(model)
    for node in nodes:
        roster.place(node, Load(), memories.of(node.id), 0.0)
    return roster


def seat_of(node: Node, model: ModelKey = MODEL) -> Seat:
    return roster_of(node, model=model).seats[node.id]


def chat(*contents: str, **changes: Any) -> AskRequest:
    """A chat: user and assistant speak in turns, the user first; a system message by `system=`."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]
    system = changes.pop("system", None)
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    values: dict[str, Any] = {
        "id": RequestId("r1"),
        "caller": CallerId("alice"),
        "operation": "chat",
        "messages": tuple(messages),
        **changes,
    }
    return AskRequest(**values)
