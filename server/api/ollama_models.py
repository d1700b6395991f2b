"""Ollama's API about models: /api/tags, /api/ps, /api/show, /api/version, and what a gateway refuses to do.

Lists are made of what the last probes found, so that no dead node delays them. Knows nothing of answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from server.api.fields import flag, known_only
from server.api.incoming import Incoming
from server.api.nodes_direct import NodesDirect
from server.api.ollama import OLLAMA_JSON
from server.api.ollama_bodies import MODEL_FIELDS, model_name, named_model, required_model
from server.api.services import Services
from server.catalog import LISTED, resolve, union
from server.errors import ModelNotFound, OperationUnsupported
from server.nodes import ModelCopy, ModelKey, ResidentModel, model_key
from server.version import VERSION

# Which Ollama we answer like. The `ollama` command wants a number here; those of 0.24 know every field we know.
OLLAMA_VERSION = "0.24.0"
_NO_TIME = "0001-01-01T00:00:00Z"
_NO_DETAILS: Mapping[str, Any] = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": None,
    "parameter_size": "",
    "quantization_level": "",
}
_REFUSALS = {
    "pull": "a gateway keeps no models: POST /api/models/pull, or potluck models pull, pulls one onto its phones",
    "push": "a gateway keeps no models: push this one from a node",
    "create": "a gateway keeps no models: create this one on the nodes themselves",
    "copy": "a gateway keeps no models: copy this one on the nodes themselves",
    "delete": "a gateway keeps no models: delete this one on the nodes themselves",
    "blobs": "a gateway keeps no models and takes no parts of them",
}
_NAME_FIELDS = {**MODEL_FIELDS, "source": model_name}


class OllamaModelsApi:
    def __init__(self, services: Services) -> None:
        self._registry = services.registry
        self._aliases = services.settings.model_aliases
        self._nodes = NodesDirect(services)

    async def tags(self, incoming: Incoming) -> None:
        models = [tag_record(copy.name, copy) for copy in self._union().values()]
        for alias, copy in self._aliased().items():
            models.append(tag_record(alias, copy))
        await incoming.reply.answer(orjson.dumps({"models": models}), OLLAMA_JSON)

    def _union(self) -> dict[ModelKey, ModelCopy]:
        return union(self._registry.fleet.nodes.values())

    def _aliased(self) -> dict[str, ModelCopy]:
        """The aliases that mean a model which is there."""
        copies = self._union()
        return {
            alias: copies[model_key(target)]
            for alias, target in self._aliases.items()
            if model_key(target) in copies and model_key(alias) not in copies
        }

    async def ps(self, incoming: Incoming) -> None:
        models: dict[ModelKey, dict[str, Any]] = {}
        for node in self._registry.fleet.nodes.values():
            if node.status not in LISTED:
                continue
            for key, resident in node.resident.items():
                record = resident_record(resident)
                known = models.get(key)
                names = [*(known["nodes"] if known else ()), node.name]
                if known is None or known["expires_at"] < record["expires_at"]:
                    models[key] = known = record
                known["nodes"] = names
        await incoming.reply.answer(orjson.dumps({"models": list(models.values())}), OLLAMA_JSON)

    async def show(self, incoming: Incoming) -> None:
        values = known_only(await incoming.json(), {**_NAME_FIELDS, "verbose": flag})
        model = required_model(named_model(values))
        incoming.watch()
        description = await self._nodes.show(model, values.get("verbose", False))
        await incoming.reply.answer(orjson.dumps(description), OLLAMA_JSON)

    async def version(self, incoming: Incoming) -> None:
        answer = {"version": OLLAMA_VERSION, "potluck": {"version": VERSION}}
        await incoming.reply.answer(orjson.dumps(answer), OLLAMA_JSON)

    async def refuse(self, incoming: Incoming) -> None:
        raise _refusal(incoming.path)

    async def refuse_known(self, incoming: Incoming) -> None:
        """As Ollama does, a model that nobody has is a 404 before anything else."""
        values = known_only(await incoming.json(), _NAME_FIELDS)
        name = values.get("source") or named_model(values)
        if name:
            try:
                resolve(name, self._registry.fleet.nodes.values(), self._aliases)
            except ModelNotFound as error:
                raise ModelNotFound(error.model) from error  # a hint here would invite to delete another one
        raise _refusal(incoming.path)


def _refusal(path: str) -> OperationUnsupported:
    return OperationUnsupported(_REFUSALS[path.split("/")[2]])


def tag_record(name: str, copy: ModelCopy) -> dict[str, Any]:
    """A model in the list, as its node describes it, complete where the node says less than Ollama would."""
    record = {
        "modified_at": _NO_TIME,
        "size": copy.size_bytes,
        "digest": copy.digest,
        "details": _NO_DETAILS,
        **copy.listing,
    }
    return {"name": name, "model": name, **{key: record[key] for key in record if key not in ("name", "model")}}


def resident_record(resident: ResidentModel) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": resident.name,
        "model": resident.name,
        "size": 0,
        "digest": "",
        "details": _NO_DETAILS,
        "expires_at": resident.expires_at or _NO_TIME,
        "size_vram": 0,
        **resident.listing,
    }
    if resident.context_length is not None:
        record["context_length"] = resident.context_length
    return record
