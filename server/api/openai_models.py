"""OpenAI's API: /v1/models and /v1/models/{id}, made of what the last probes found and of the aliases."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from server.api.fields import short_name
from server.api.incoming import Incoming
from server.api.services import Services
from server.catalog import nearest, union
from server.errors import ModelNotFound
from server.nodes import ModelCopy, model_key

_PREFIX = "/v1/models/"


class OpenAIModelsApi:
    def __init__(self, services: Services) -> None:
        self._registry = services.registry
        self._aliases = services.settings.model_aliases
        self._started_at = services.started_at

    async def list_models(self, incoming: Incoming) -> None:
        records = [self._record(name, copy) for name, copy in self._names()]
        await incoming.reply.answer_json({"object": "list", "data": records})

    async def one_model(self, incoming: Incoming) -> None:
        wanted = short_name(unquote(incoming.path.removeprefix(_PREFIX)), "model")
        key = model_key(wanted)
        names = dict(self._names())
        for name, copy in names.items():
            if model_key(name) == key:
                await incoming.reply.answer_json(self._record(wanted, copy))
                return
        raise ModelNotFound(wanted, nearest(key, names))

    def _names(self) -> Iterator[tuple[str, ModelCopy]]:
        copies = union(self._registry.fleet.nodes.values())
        for copy in copies.values():
            yield copy.name, copy
        for alias, target in self._aliases.items():
            if model_key(alias) not in copies and model_key(target) in copies:
                yield alias, copies[model_key(target)]

    def _record(self, name: str, copy: ModelCopy) -> dict[str, Any]:
        created = _unix_time(copy.listing.get("modified_at"))
        return {
            "id": name,
            "object": "model",
            "created": int(self._started_at) if created is None else created,
            "owned_by": "library",
        }


def _unix_time(text: Any) -> int | None:
    """Seconds of a moment as nodes write it; fractions may be longer than Python reads."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text[:19] + "+00:00")
    except ValueError:
        return None
    return max(0, int(moment.timestamp()))
