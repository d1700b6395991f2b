"""One model brought into one node's memory, told step by step; where a node fails, the next fittest is asked.

A GPU node tells its own progress, which is passed on with its name; a phone is asked by an empty prompt and says
nothing until it has the model, so its progress is the time that passed. Ends in one record of success, or raises a
GatewayError.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from server.api.model_places import LoadWish, ModelPlaces
from server.api.nodes_direct import NODES_ASKED, NodesDirect, Target
from server.api.services import Services
from server.backends.base import Call, Patience
from server.backends.faults import error_of_line
from server.errors import (
    AnswerBroken,
    GatewayError,
    ModelInUse,
    ModelNotFound,
    NodeBroken,
    NodeBusy,
    NodeError,
    NodeIncapable,
    NodeRefused,
    NoNodes,
    OperationUnsupported,
    RequestInvalid,
)
from server.nodes import Node
from server.placement import Candidate

LOAD_PATH = "/api/models/load"
# How often is told that a phone still loads.
PROGRESS_SECONDS = 1.0
# A GPU node tells its progress twice a second; one that is silent for this long is gone.
SILENT_SECONDS = 30.0
CONFLICT, NOT_FOUND = 409, 404

Record = dict[str, Any]
Step = tuple[Record, bool]  # what is told, and whether it is the last


class Loading:
    def __init__(self, services: Services) -> None:
        self._settings = services.settings
        self._operations = services.operations
        self._backends = services.backends
        self._places = ModelPlaces(services)
        self._nodes = NodesDirect(services)

    async def steps(self, wish: LoadWish) -> AsyncGenerator[Step, None]:
        places = (await self._places.find(wish))[:NODES_ASKED]
        failures: list[tuple[Candidate, NodeError]] = []
        begun = False
        for place in places:
            if begun and failures:
                yield _another(failures[-1], place), False
            try:
                async with aclosing(self._at(place, wish)) as steps:
                    async for step in steps:
                        begun = True
                        yield step
                return
            except NodeError as error:
                failures.append((place, error))
        raise load_error(self._places.unknown(wish.model), failures)

    def _at(self, place: Candidate, wish: LoadWish) -> AsyncGenerator[Step, None]:
        return self._at_gpu_node(place, wish) if place.node.is_gpu_node else self._at_phone(place, wish)

    async def _at_gpu_node(self, place: Candidate, wish: LoadWish) -> AsyncGenerator[Step, None]:
        spec = place.node.spec
        body = {**wish.options, **_kept(wish, place.node), "model": place.model, "stream": True}
        settings = self._settings
        patience = Patience(settings.connect_timeout_s, SILENT_SECONDS, SILENT_SECONDS, settings.request_timeout_s)
        async with aclosing(self._operations.lines(spec, LOAD_PATH, body, patience)) as lines:
            async for record in lines:
                if "error" in record:
                    raise error_of_line(spec.address, record["error"], first=False)
                last = record.get("status") == "success"
                if last:
                    await self._nodes.look_again(spec)
                yield named(place.node, record), last
                if last:
                    return
        raise NodeBroken(f"{spec.address} ended before the model was loaded")

    async def _at_phone(self, place: Candidate, wish: LoadWish) -> AsyncGenerator[Step, None]:
        now = asyncio.get_running_loop().time
        begun = now()
        longest = self._settings.load_allowance_s + self._settings.first_token_floor_s
        target = Target(place.node, self._backends[place.node.spec.kind], place.model)
        call = Call("generate", place.model, fields=_kept(wish, place.node))
        loading = asyncio.create_task(self._nodes.touch(target, call, longest))
        told = {"model": place.model, "node": place.node.name}
        try:
            while not (await asyncio.wait([loading], timeout=PROGRESS_SECONDS))[0]:
                yield {**told, "status": "loading", "elapsed_seconds": round(now() - begun, 1)}, False
            loading.result()
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        yield {**told, "status": "success", "load_seconds": round(now() - begun, 3)}, True


def named(node: Node, told: Mapping[str, Any]) -> Record:
    """What a node told, under the name by which we know it, whatever it calls itself."""
    return {"node": node.name} | dict(told) | {"node": node.name}


def _kept(wish: LoadWish, node: Node) -> Record:
    keep_alive = node.spec.keep_alive if wish.keep_alive is None else wish.keep_alive
    return {} if keep_alive is None else {"keep_alive": keep_alive}


def _another(failure: tuple[Candidate, NodeError], place: Candidate) -> Record:
    failed, error = failure
    reason = f"{failed.node.name}: {error.message}"
    return {"model": place.model, "node": place.node.name, "status": "trying another node", "reason": reason}


def load_error(
    unknown: ModelNotFound, failures: Sequence[tuple[Candidate, NodeError]], verb: str = "load"
) -> GatewayError:
    """What the caller is told: the nodes' words, and the kind of error that the fittest one met."""
    said = "; ".join(f"{place.node.name}: {error.message}" for place, error in failures[:NODES_ASKED])
    if len(failures) > NODES_ASKED:
        said += f"; and {len(failures) - NODES_ASKED} more nodes"
    place, error = failures[0]
    match error:
        case NodeIncapable():
            return OperationUnsupported(said)
        case NodeRefused(status=status) if status == NOT_FOUND and "model" in error.message:
            return unknown  # else it is an older node, which has no such path
        case NodeRefused(status=status) if status == CONFLICT:
            return ModelInUse(said)
        case NodeRefused(status=status) if status != NOT_FOUND:
            return RequestInvalid(said, status=400)
        case NodeBusy():
            return NoNodes(said)
        case _:
            return AnswerBroken(f"could not {verb} the model: {said}", node=place.node.name, tokens_told=0)
