"""What relay nodes do besides answering, in the shapes of a GPU node's HTTP paths: models, devices, load, unload.

Whoever asks GPU nodes need not know how each is reached (`operations.OperationsByKind`). A path that the protocol has
nothing for is a `NodeIncapable`. As in the backends, only `NodeError`s leave.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from server.backends.base import Patience
from server.backends.operations import Record
from server.backends.relay_answer import cause_of, error_of, stalled, too_large, translated
from server.backends.relay_links import Line, RelayLinks
from server.backends.relay_listing import gpu_record, loaded_record, models_record, progress_record
from server.backends.relay_request import loading_of
from server.backends.relay_split import split_record
from server.backends.relay_watch import Watch
from server.errors import NodeBroken, NodeIncapable
from server.nodes import NodeSpec, model_key
from transport.errors import TransportError
from wire.errors import LocalError
from wire.messages_stats import Stats
from wire.messages_work import Load, Loaded, Phase, Progress, Unload

MODELS_PATH, GPU_PATH, PIPELINE_PATH = "/api/models", "/api/gpu", "/api/pipeline/status"
LOAD_PATH, UNLOAD_PATH = "/api/models/load", "/api/models/unload"
RECORDS: Mapping[str, Callable[[Stats], Record]] = {
    MODELS_PATH: models_record,
    GPU_PATH: gpu_record,
    PIPELINE_PATH: split_record,
}
QUIET_SECONDS = 0.4  # a node tells at once that a loading waits, and again after half a second


class RelayOperations:
    def __init__(self, links: RelayLinks) -> None:
        self._links = links

    async def ask(self, spec: NodeSpec, path: str, timeout_seconds: float) -> Record:
        if path not in RECORDS:
            raise NodeIncapable(f"a node of kind relay cannot be asked for {path}", 400)
        with self._links.line(spec) as line:
            return RECORDS[path](await line.stats(timeout_seconds, "total"))

    async def order(self, spec: NodeSpec, path: str, body: Mapping[str, Any], timeout_seconds: float) -> Record:
        if path != UNLOAD_PATH:
            raise NodeIncapable(f"a node of kind relay cannot be asked for {path}", 400)
        with self._links.line(spec) as line:
            return await _unload(line, str(body.get("model") or ""), timeout_seconds)

    async def lines(
        self, spec: NodeSpec, path: str, body: Mapping[str, Any], patience: Patience
    ) -> AsyncGenerator[Record, None]:
        if path != LOAD_PATH:
            raise NodeIncapable(f"a node of kind relay cannot be asked for {path}", 400)
        with self._links.line(spec) as line:
            async with aclosing(_loading(line, loading_of(body), patience)) as records:
                async for record in records:
                    yield record


async def _loading(line: Line, asked: Load, patience: Patience) -> AsyncGenerator[Record, None]:
    """The steps as they are told, last of all the one of success."""
    begun, watch = time.monotonic(), Watch(line.address, patience)
    try:
        watch.expect("connect", patience.connect)
        with watch:
            stream = await (await line.session.link()).open(asked)
        try:
            while True:
                watch.expect("load", patience.between_tokens)
                with watch:
                    answer = await stream.message()
                elapsed = time.monotonic() - begun
                if isinstance(answer, Progress):
                    if answer.phase is Phase.WAITING and elapsed < QUIET_SECONDS:
                        continue  # what is refused is refused at once, and then with its own status
                    yield progress_record(asked.model, answer, elapsed)
                elif isinstance(answer, Loaded):
                    slots = await line.stats(patience.connect, "load")
                    yield loaded_record(answer, slots, elapsed)
                    return
                else:
                    raise NodeBroken(f"{line.address} answered LOAD with {type(answer).__name__}")
        finally:
            stream.cancel()
    except TransportError as problem:
        raise error_of(line.address, problem, begun=False) from cause_of(problem)
    except LocalError as problem:
        raise too_large(problem) from problem
    finally:
        watch.close()


async def _unload(line: Line, model: str, timeout_seconds: float) -> Record:
    """Whether it was there, and whether it is gone, the node's state says."""
    before = await line.stats(timeout_seconds, "total")
    with translated(line.address):
        try:
            async with asyncio.timeout(timeout_seconds):
                await line.session.ask(Unload(model))
        except TimeoutError as problem:
            raise stalled(line.address, "total") from problem
    if _running(before, model) is None:
        return {"model": model, "status": "not loaded"}
    running = _running(await line.stats(timeout_seconds, "total"), model)
    if running is None:
        return {"model": model, "status": "unloaded"}
    return {"model": model, "status": "unloading", "in_flight": running}


def _running(stats: Stats, model: str) -> int | None:
    """How many answers a model gives just now; None where it is not in memory."""
    return next((one.running for one in stats.residents if model_key(one.model) == model_key(model)), None)
