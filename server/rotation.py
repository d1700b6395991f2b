"""Smooth weighted round robin without a scan: nginx's rotation over a changing set of free seats. Pure, no clock.

Each pick adds every free seat its weight, takes the largest running sum and charges it the total. Seats of equal
weight gain equally, so their order among each other changes only when one is charged: a heap per distinct weight is
enough, and a pick among a thousand seats looks at a handful of heap tops. The tests hold it equal to the plain scan.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import count

from server.nodes import NodeId

FURTHEST_CHARGE = 64.0  # in rounds: a long run of homecomings must not keep newcomers away for ever
STALE_ENTRIES = 2  # times the members: heaps are rebuilt beyond, so that charges cannot grow them


@dataclass(slots=True)
class _Group:
    """Free seats of one weight. A seat's running sum is `gained` plus its own offset."""

    weight: float
    gained: float = 0.0
    members: set[NodeId] = field(default_factory=set)
    heap: list[tuple[float, int, NodeId]] = field(default_factory=list)  # (-offset, order, id), some stale


@dataclass(slots=True)
class Rotation:
    """The running sums of one roster's seats; those that joined take part."""

    total: float = 0.0
    groups: dict[float, _Group] = field(default_factory=dict)
    group_of: dict[NodeId, _Group] = field(default_factory=dict)
    offsets: dict[NodeId, float] = field(default_factory=dict)
    order: dict[NodeId, int] = field(default_factory=dict)
    parked: dict[NodeId, float] = field(default_factory=dict)  # running sums of seats that left
    _orders: Iterator[int] = field(default_factory=count)

    def join(self, node_id: NodeId, weight: float) -> None:
        """The seat is free; it goes on with the sum it left with. Joining again with another weight moves it."""
        group = self.group_of.get(node_id)
        if group is not None:
            if group.weight == weight:
                return
            self.leave(node_id)
        group = self.groups.setdefault(weight, _Group(weight))
        group.members.add(node_id)
        self.group_of[node_id] = group
        if node_id not in self.order:
            self.order[node_id] = next(self._orders)
        self.total += weight
        self._set(group, node_id, self.parked.pop(node_id, 0.0) - group.gained)

    def leave(self, node_id: NodeId) -> None:
        group = self.group_of.pop(node_id, None)
        if group is None:
            return
        self.parked[node_id] = self.offsets.pop(node_id) + group.gained
        group.members.remove(node_id)
        self.total -= group.weight
        if not group.members:
            del self.groups[group.weight]
        if not self.groups:
            self.total = 0.0  # sums of floats drift; an empty rotation is a good moment to say so

    def forget(self, node_id: NodeId) -> None:
        """It will not come back; if one of its name does, it is a new one."""
        self.leave(node_id)
        self.parked.pop(node_id, None)
        self.order.pop(node_id, None)

    def sum_of(self, node_id: NodeId) -> float:
        """The running sum, of a free seat or of one that left."""
        group = self.group_of.get(node_id)
        return self.parked.get(node_id, 0.0) if group is None else self.offsets[node_id] + group.gained

    def pick(self) -> NodeId:
        """The next seat of all that joined (at least one)."""
        best: tuple[float, int, NodeId] | None = None
        for group in self.groups.values():
            negative_offset, order, node_id = self._top(group)
            entry = (negative_offset - (group.gained + group.weight), order, node_id)
            if best is None or entry < best:
                best = entry
        assert best is not None, "nobody joined"
        self._turn(best[2])
        return best[2]

    def pick_among(self, candidates: Collection[NodeId]) -> NodeId:
        """The next seat of the candidates, charged over all that joined, so that over time the weights hold."""
        best: tuple[float, int, NodeId] | None = None
        for node_id in candidates:
            entry = (-self._next_sum(node_id), self.order[node_id], node_id)
            if best is None or entry < best:
                best = entry
        assert best is not None, "nobody to choose from"
        chosen = best[2]
        self._turn(chosen, candidates)
        return chosen

    def charge(self, node_id: NodeId) -> None:
        """Turn the rotation by one pick that was decided elsewhere."""
        self._turn(node_id, (node_id,))

    def _next_sum(self, node_id: NodeId) -> float:
        group = self.group_of[node_id]
        return self.offsets[node_id] + (group.gained + group.weight)

    def _turn(self, chosen: NodeId, candidates: Collection[NodeId] = ()) -> None:
        """Every seat gains its weight, the chosen one pays for all.

        One that has paid as far ahead as it may pays the other candidates only: the rest must not gain without end.
        """
        if candidates and self._next_sum(chosen) - self.total < -FURTHEST_CHARGE * self.total:
            for node_id in candidates:
                group = self.group_of[node_id]
                self._set(group, node_id, self.offsets[node_id] + group.weight)
            paid = sum(self.group_of[node_id].weight for node_id in candidates)
        else:
            for group in self.groups.values():
                group.gained += group.weight
            paid = self.total
        self._set(self.group_of[chosen], chosen, self.offsets[chosen] - paid)

    def _set(self, group: _Group, node_id: NodeId, offset: float) -> None:
        self.offsets[node_id] = offset
        heapq.heappush(group.heap, (-offset, self.order[node_id], node_id))
        if len(group.heap) > STALE_ENTRIES * len(group.members) + 8:
            group.heap = [(-self.offsets[member], self.order[member], member) for member in group.members]
            heapq.heapify(group.heap)

    def _top(self, group: _Group) -> tuple[float, int, NodeId]:
        while True:
            entry = group.heap[0]
            node_id = entry[2]
            if node_id in group.members and entry[:2] == (-self.offsets[node_id], self.order[node_id]):
                return entry
            heapq.heappop(group.heap)
