"""Which node a model should be loaded on: the one that holds it, else the one with room for it and the least to do.

Pure: nodes as the registry knows them and what GPU nodes have just told of their memory in, an order out. What a node
then says to a loading is its own word; free memory is told before, so it is a reason to ask there first and no more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from server.errors import NodeUnknown, RequestInvalid
from server.nodes import ModelKey, Node, model_key

NEAREST_NAMES = 3
POOL = "devices"  # what a node calls the account of all devices that it splits models over
Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that may load the model. `needed_bytes` are 0 and `free_bytes` None where nobody told them."""

    node: Node
    model: str  # as that node spells it
    in_flight: int = 0
    resident: bool = False  # in its memory already
    fetched: bool = True  # its files are there
    needed_bytes: int = 0
    free_bytes: int | None = None

    @property
    def has_room(self) -> bool:
        return self.free_bytes is not None and self.free_bytes >= self.needed_bytes


def fittest_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Last resorts last; who holds it before who has room, phones before who would have to make room."""
    return sorted(candidates, key=_unfitness)


def _unfitness(candidate: Candidate) -> tuple[object, ...]:
    must_make_room = candidate.node.is_gpu_node and not candidate.has_room
    return (
        candidate.node.spec.last_resort,
        not candidate.resident,
        must_make_room,
        not candidate.node.is_gpu_node,
        not candidate.fetched,
        candidate.in_flight,
        -(candidate.free_bytes or 0),
    )


def may_load(node: Node, key: ModelKey) -> bool:
    """Would its owner let it serve this model? One whose entry names models serves no others."""
    return not node.spec.models or key in map(model_key, node.spec.models)


def free_bytes(gpu: Mapping[str, Any], device: Device | None) -> int | None:
    """The most that one device has free for models, by a node's /api/gpu; None where no such device told anything.

    A node that splits its models has an account of all its devices, and models nowhere else."""
    listed = gpu.get("accounts")
    accounts = [one for one in (listed if isinstance(listed, list) else ()) if isinstance(one, dict)]
    accounts = [one for one in accounts if type(one.get("free_bytes")) is int]
    pools: list[int] = [one["free_bytes"] for one in accounts if one.get("device") == POOL]
    if pools:
        return max(pools)
    found = [one["free_bytes"] for one in accounts if str(one.get("device", "")).startswith(device or "")]
    return max(found, default=None)


def entry_of(models: Mapping[str, Any], key: ModelKey) -> Mapping[str, Any] | None:
    """The model's record in a node's /api/models."""
    listed = models.get("models")
    for record in listed if isinstance(listed, list) else ():
        if isinstance(record, dict) and isinstance(record.get("name"), str) and model_key(record["name"]) == key:
            return record
    return None


def node_named(name: str, nodes: Collection[Node]) -> Node:
    """The node of this id, else of this name. Raises NodeUnknown with the nearest; RequestInvalid where several fit."""
    wanted = name.strip().lower()
    for node in nodes:
        if node.id.lower() == wanted:
            return node
    named = [node for node in nodes if node.name.lower() == wanted]
    if len(named) > 1:
        ids = ", ".join(node.id for node in named[:NEAREST_NAMES])
        raise RequestInvalid("several nodes have this name", field="node", hint=f"say which one by its id: {ids}")
    if not named:
        known = sorted({node.name for node in nodes} | {str(node.id) for node in nodes})
        raise NodeUnknown(name, tuple(get_close_matches(name[:64], known, n=NEAREST_NAMES, cutoff=0.6)))
    return named[0]
