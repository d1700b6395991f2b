"""What the fleet as a whole says to those that wait: how many slots, and may a node come back that could serve them?

A fleet is a value, replaced whole, so each answer is found out once, however many ask. Knows nothing of loads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from server.nodes import ModelKey, NodeId, NodeStatus
from server.registry import Fleet
from server.routing import Demand

RETURNING_STATUSES = (NodeStatus.UNKNOWN, NodeStatus.READY, NodeStatus.SILENT)


@dataclass(slots=True)
class Outlook:
    """The look at one fleet value."""

    fleet: Fleet
    slots: int = 0  # of the nodes in service
    silent: int = 0
    cared_for: int = 0
    returning: dict[tuple[ModelKey | None, frozenset[NodeId]], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.fleet.nodes.values():
            ready, rests = node.status is NodeStatus.READY, node.resting is not None
            self.slots += node.slots if ready and not rests else 0
            self.cared_for += ready and rests
            self.silent += node.status is NodeStatus.SILENT

    def may_return(self, demand: Demand) -> bool:
        """Is there any node that could serve this if it came (back) into service?"""
        key = demand.model, demand.excluded
        if key not in self.returning:
            self.returning[key] = any(
                node.report is None or demand.model is None or demand.model in node.models
                for node in self.fleet.nodes.values()
                if node.id not in demand.excluded and node.status in RETURNING_STATUSES
            )
        return self.returning[key]

    def why_nobody(self, demand: Demand) -> str:
        known = len(self.fleet.nodes)
        if not known:
            return "there are no nodes"
        what = "any model" if demand.model is None else f"'{demand.model}'"
        resting = f"{self.cared_for} too hot or low on battery, " if self.cared_for else ""
        found = f"{known} known, {self.silent} silent, {resting}the others resting after failures"
        return f"no node can serve {what} now: {found}"
