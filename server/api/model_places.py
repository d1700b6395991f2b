"""Where a model could be loaded: the node that was named, or all that could hold it, the fittest first.

Phones and other Ollamas load what they have, GPU nodes also what they can fetch. GPU nodes are asked for their memory
and their models at that moment; a node whose entry names models is asked for no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.api.services import Services
from server.api.survey import Heard, NodeSurvey
from server.breaker import BreakerState
from server.catalog import AUTO, nearest
from server.errors import GatewayError, ModelNotFound, NoNodes, OperationUnsupported, RequestInvalid
from server.nodes import Load, ModelKey, Node, NodeStatus, model_key
from server.placement import Candidate, Device, entry_of, fittest_first, free_bytes, may_load, node_named

GPU_PATH, MODELS_PATH = "/api/gpu", "/api/models"


@dataclass(frozen=True, slots=True)
class LoadWish:
    """`options` are the GPU node's own, passed on as they came: it honours or refuses each."""

    model: str
    node: str | None = None
    keep_alive: str | float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> Device | None:
        """Whose memory counts."""
        given, gpus = self.options.get("device"), self.options.get("num_gpus")
        if type(gpus) is int:
            return "cuda" if gpus else "cpu"
        return given if given in ("cuda", "cpu") else None


class ModelPlaces:
    def __init__(self, services: Services) -> None:
        self._registry = services.registry
        self._aliases = {model_key(alias): target for alias, target in services.settings.model_aliases.items()}
        self._survey = NodeSurvey(services)

    def meant(self, model: str) -> str:
        """The name behind an alias. Raises RequestInvalid where no one model is meant."""
        key = model_key(model)
        if not self.is_known(key):
            model = self._aliases.get(key, model)
        if model.strip().lower() in ("", AUTO):
            raise RequestInvalid("'model' must name one model", field="model")
        return model.strip()

    async def find(self, wish: LoadWish) -> list[Candidate]:
        """At least one. Raises NodeUnknown, ModelNotFound, NoNodes, RequestInvalid, OperationUnsupported."""
        model = self.meant(wish.model)
        if wish.node is not None:
            return [self.at(node_named(wish.node, self._nodes()), model, wish.options)]
        return await self._all(model, wish)

    def at(self, node: Node, model: str, options: Mapping[str, Any]) -> Candidate:
        """The named node, where it can be asked for this at all."""
        key = model_key(model)
        if node.status is not NodeStatus.READY:
            why = f": {node.last_error}" if node.last_error else ""
            raise NoNodes(f"node '{node.name}' is {node.status}{why}")
        if not may_load(node, key):
            raise RequestInvalid(f"the fleet file lets '{node.name}' serve other models only", field="model")
        if node.is_gpu_node:
            return Candidate(node, _spelt(node, model), self._in_flight(node))
        if node.spec.kind != "ollama":
            raise OperationUnsupported(f"'{node.name}' is a server that keeps its models as it likes")
        if key not in node.models:
            raise ModelNotFound(model, nearest(key, node.models))
        if options:
            name = next(iter(options))
            raise RequestInvalid(f"'{node.name}' is no GPU node and takes no '{name[:40]}'", field=name[:40])
        return Candidate(node, _spelt(node, model), self._in_flight(node))

    async def _all(self, model: str, wish: LoadWish) -> list[Candidate]:
        key = model_key(model)
        able = [node for node in self._nodes() if self._is_able(node) and may_load(node, key)]
        heard = await self._survey.of([node for node in able if node.is_gpu_node], GPU_PATH, MODELS_PATH)
        found = [place for one in heard if (place := self._gpu_place(one, model, wish.device)) is not None]
        if not wish.options:
            found += [
                Candidate(node, _spelt(node, model), self._in_flight(node), key in node.resident)
                for node in able
                if not node.is_gpu_node and node.spec.kind == "ollama" and key in node.models
            ]
        if not found and not self.is_known(key):  # a GPU node has names for its models that it does not list
            found = [Candidate(one.node, model, self._in_flight(one.node), fetched=False) for one in heard]
        if not found:
            raise self.nobody(model)
        return fittest_first(found)

    def _gpu_place(self, heard: Heard, model: str, device: Device | None) -> Candidate | None:
        node, key = heard.node, model_key(model)
        entry = entry_of(heard.answers.get(MODELS_PATH, {}), key)
        fetched = key in node.models or (entry is not None and entry.get("available") is True)
        fetchable = entry is not None or "/" in model  # a hub's id: whether there is such a model, the hub knows
        if not (fetched or fetchable):
            return None
        resident = key in node.resident if entry is None else entry.get("state") == "ready"
        size = entry.get("size_bytes") if entry is not None else None
        needed = size if type(size) is int else self._known_size(key)
        free = free_bytes(heard.answers.get(GPU_PATH, {}), device)
        return Candidate(node, _spelt(node, model), self._in_flight(node), resident, fetched, needed, free)

    def nobody(self, model: str) -> GatewayError:
        """No node can be asked: because none is there now, or because none ever told of such a model."""
        if self.is_known(model_key(model)):
            hint = "GET /health says what is wrong with each"
            return NoNodes("no node that could do this is there now", hint=hint)
        return self.unknown(model)

    def unknown(self, model: str) -> ModelNotFound:
        known = {known for node in self._nodes() for known in node.models}
        return ModelNotFound(model, nearest(model_key(model), known))

    def is_known(self, key: ModelKey) -> bool:
        return any(key in node.models for node in self._nodes())

    def _nodes(self) -> list[Node]:
        return list(self._registry.fleet.nodes.values())

    def _load(self, node: Node) -> Load:
        return self._registry.loads.get(node.id) or Load()

    def _in_flight(self, node: Node) -> int:
        return self._load(node).in_flight

    def _is_able(self, node: Node) -> bool:
        return node.status is NodeStatus.READY and self._load(node).breaker.state is not BreakerState.OPEN

    def _known_size(self, key: ModelKey) -> int:
        """How large it is by another node's word; 0 where nobody has told."""
        return max((node.models[key].size_bytes for node in self._nodes() if key in node.models), default=0)


def _spelt(node: Node, model: str) -> str:
    copy = node.models.get(model_key(model))
    return model if copy is None else copy.name
