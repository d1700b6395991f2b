"""The fleet's models and devices: GET /api/models, POST /api/models/load, unload and pull, GET /api/gpu.

The same operations as of a GPU node, in its own shapes, with the name of the node in each record. What phones have is
known from their probes; GPU nodes are asked at that moment, and those that do not answer in time are named as silent.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import orjson

from server.api.fields import Check, checked, flag, integer, is_unload, keep_alive, one_of, short_name
from server.api.incoming import Incoming
from server.api.model_loading import Loading, Record, Step, named
from server.api.model_places import GPU_PATH, MODELS_PATH, LoadWish
from server.api.model_pulling import Pulling, read_pull
from server.api.model_unloading import Unloading
from server.api.reply import NDJSON
from server.api.services import Services
from server.api.streams import tell
from server.api.survey import NodeSurvey
from server.catalog import LISTED
from server.errors import GatewayError, RequestInvalid
from server.http_errors import error_bytes
from server.nodes import ModelKey, Node, NodeStatus, model_key
from server.placement import may_load

_OWN_FIELDS: Mapping[str, Check] = {
    "model": short_name,
    "node": short_name,
    "stream": flag,
    "keep_alive": keep_alive,
    # the node's business otherwise, but they say whose memory counts
    "num_gpus": integer(0),
    "device": one_of("auto", "cpu", "cuda"),
}
_UNLOAD_FIELDS: Mapping[str, Check] = {"model": short_name, "node": short_name}
_PASSED_ON = ("num_gpus", "device")
# What a GPU node tells of each device, by the place in its answer.
_DEVICE_LISTS = ("gpus", "accounts")
LOADED = "ready"  # a GPU node's word for a model in memory


def read_wish(body: Mapping[str, Any]) -> tuple[LoadWish, bool]:
    """The wish, and whether its progress is to be told. Options that are not ours go to the node as they are."""
    own = checked({name: value for name, value in body.items() if name in _OWN_FIELDS}, _OWN_FIELDS)
    options = {name: value for name, value in body.items() if name not in _OWN_FIELDS and value is not None}
    options |= {name: own[name] for name in _PASSED_ON if name in own}
    if is_unload(own.get("keep_alive")):  # a phone would drop the model and call it loaded
        hint = "POST /api/models/unload drops a model"
        raise RequestInvalid("a model that is loaded for no time is not loaded", field="keep_alive", hint=hint)
    wish = LoadWish(_required(own), own.get("node"), own.get("keep_alive"), options)
    return wish, own.get("stream", False)


def _required(values: Mapping[str, Any]) -> str:
    model = str(values.get("model") or "").strip()
    if not model:
        raise RequestInvalid("'model' is required", field="model")
    return model


class ModelsApi:
    def __init__(self, services: Services) -> None:
        self._registry = services.registry
        self._survey = NodeSurvey(services)
        self._loading = Loading(services)
        self._unloading = Unloading(services)
        self._pulling = Pulling(services)
        self._resumable = services.open_requests.resumable

    async def listed(self, incoming: Incoming) -> None:
        models: dict[ModelKey, tuple[str, list[Record]]] = {}
        for node in self._registry.fleet.nodes.values():
            if node.status in LISTED and not node.is_gpu_node:
                _add(models, node, _known_of(node))
        silent = []
        for heard in await self._survey.of_all(MODELS_PATH):
            told = _listed(heard.answers.get(MODELS_PATH), "models")
            if told is None:
                silent.append({**heard.record(), "error": heard.error or "it lists its models in an unknown way"})
                told = _known_of(heard.node) if heard.node.status is NodeStatus.READY else []
            _add(models, heard.node, told)
        listing = [
            {"name": name, "loaded": any(copy["loaded"] for copy in copies), "nodes": copies}
            for _, (name, copies) in sorted(models.items())
        ]
        await incoming.reply.answer_json({"models": listing, "silent": silent})

    async def gpu(self, incoming: Incoming) -> None:
        found: dict[str, list[Record]] = {name: [] for name in _DEVICE_LISTS}
        silent = []
        for heard in await self._survey.of_all(GPU_PATH):
            told = {name: _listed(heard.answers.get(GPU_PATH), name) for name in _DEVICE_LISTS}
            if None in told.values():
                silent.append({**heard.record(), "error": heard.error or "it tells its devices in an unknown way"})
                continue
            for name, records in told.items():
                found[name] += [named(heard.node, one) for one in records or ()]
        await incoming.reply.answer_json({**found, "silent": silent})

    async def load(self, incoming: Incoming) -> None:
        wish, stream = read_wish(await incoming.json())
        incoming.watch()
        await _answer(incoming, self._loading.steps(wish), stream)

    async def unload(self, incoming: Incoming) -> None:
        values = checked(await incoming.json(), _UNLOAD_FIELDS)
        model = _required(values)
        incoming.watch()
        await incoming.reply.answer_json(await self._unloading.unload(model, values.get("node")))

    async def pull(self, incoming: Incoming) -> None:
        wish = read_pull(await incoming.json())
        incoming.watch()
        self._resumable.add(incoming)  # a gateway that ends does not wait for hours of downloads
        try:
            await _answer(incoming, self._pulling.steps(wish), wish.stream)
        finally:
            self._resumable.discard(incoming)


async def _answer(incoming: Incoming, steps: AsyncGenerator[Step, None], stream: bool) -> None:
    """All steps as lines, or the last one only."""
    if stream:
        await tell(incoming, steps, _StepLines())
        return
    last: Record = {}
    try:
        async for told, _ in steps:
            last = told
    finally:
        await steps.aclose()
    await incoming.reply.answer_json(last)


class _StepLines:
    """A loading or a pull as lines of JSON."""

    content_type = NDJSON

    def __init__(self) -> None:
        self.ended = False

    def encode(self, step: Step) -> bytes:
        told, self.ended = step
        return orjson.dumps(told) + b"\n"

    def fail(self, error: GatewayError) -> bytes:
        self.ended = True
        return error_bytes(error, "ollama") + b"\n"


def _add(models: dict[ModelKey, tuple[str, list[Record]]], node: Node, told: Sequence[Record]) -> None:
    """Put what is told of a node's models under their names: all that its owner lets it serve."""
    for one in told:
        name = one.get("name")
        if not isinstance(name, str) or not may_load(node, model_key(name)):
            continue
        facts = {fact: value for fact, value in one.items() if fact not in ("name", "node", "loaded")}
        record = {"node": node.name, "loaded": one.get("state") == LOADED, **facts}
        models.setdefault(model_key(name), (name, []))[1].append(record)


def _known_of(node: Node) -> list[Record]:
    """A node's models, by its last probe, in the shape of a GPU node's own list."""
    return [
        {
            "name": copy.name,
            "available": True,
            "state": LOADED if key in node.resident else "empty",
            "size_bytes": copy.size_bytes,
            "digest": copy.digest,
        }
        for key, copy in node.models.items()
    ]


def _listed(answer: Record | None, name: str) -> list[Record] | None:
    """The list of objects in a node's answer; None where it is none."""
    found = None if answer is None else answer.get(name)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        return None
    return found
