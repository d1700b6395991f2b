"""`/api/models`: what there is, what is in memory and how; load and unload by name.

Loading takes options of its own, each honoured or refused with its reason, and shows its progress when asked to stream.
A request that is not streamed waits for the end. Paths are no names: nobody looks into this machine's folders by HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from gpu_node.api.body import read_body
from gpu_node.api.replies import Stream, WatchedAnswer, json_reply, send_whole
from gpu_node.api.schemas import Body, ModelBody, duration_of, parse
from gpu_node.api.service import Service
from gpu_node.errors import NodeError, RequestError
from gpu_node.host import ModelHost
from gpu_node.load_wish import (
    BLOCK_TOKENS,
    DeviceName,
    DtypeName,
    KernelsMode,
    LoadWish,
    SpeculationMode,
    WeightsMode,
    parse_bytes,
)
from gpu_node.names import is_valid

Record = dict[str, Any]
# How often a stream tells that the loading still goes on.
PROGRESS_SECONDS = 0.5


class LoadBody(Body):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str = Field(min_length=1, max_length=256)
    stream: bool | None = None
    keep_alive: int | float | str | None = None
    num_gpus: int | None = Field(default=None, ge=0)
    device: DeviceName | None = None
    dtype: DtypeName | None = None
    weights: WeightsMode | None = None
    kernels: KernelsMode | None = None
    threads: int | None = Field(default=None, ge=0, le=1024)
    context: int | None = Field(default=None, ge=0)
    block_tokens: int | None = None
    kv_memory: int | str | None = None
    kv_blocks: int | None = Field(default=None, ge=0)
    max_running: int | None = Field(default=None, ge=1, le=1024)
    step_tokens: int | None = Field(default=None, ge=0)
    mixed_step_tokens: int | None = Field(default=None, ge=0)
    speculation: SpeculationMode | None = None


class ModelsApi:
    def __init__(self, service: Service) -> None:
        self._service, self._residents = service, service.residents

    async def listed(self, request: Request) -> Response:
        entries = {entry.name: entry for entry in await asyncio.to_thread(self._service.catalog.entries)}
        hosts = {host.name: host for host in self._residents.hosts}
        models = []
        for name in dict.fromkeys([*hosts, *entries]):
            host, entry = hosts.get(name), entries.get(name)
            described = (host.description if host else None) or (entry.description if entry else None)
            record: Record = {"name": name, "main": host is self._residents.main, "available": described is not None,
                              "state": host.state if host else "empty"}  # fmt: skip
            if described is not None:
                record |= {"family": described.family, "parameters": described.parameter_count,
                           "size_bytes": described.size_bytes, "quantisation": described.quantisation,
                           "digest": described.digest}  # fmt: skip
            models.append(record | (self._facts(host) if host else {}))
        return json_reply({"models": models})

    async def load(self, request: Request) -> Response:
        body = parse(LoadBody, await read_body(request, self._service.max_body_bytes))
        if not is_valid(body.model):
            raise RequestError("invalid model name; paths are not loaded on request", field="model")
        wish = wish_of(body, self._residents.usual_wish, self._has_gpu)
        keep_alive = None if body.keep_alive in (None, "") else duration_of(body.keep_alive or 0)
        loading = _Loading(self._service, body.model, wish, keep_alive, self._facts)
        return WatchedAnswer(loading.stream if body.stream else loading.whole)

    async def unload(self, request: Request) -> Response:
        """At once where the model is idle, else as soon as it is."""
        name = parse(ModelBody, await read_body(request, self._service.max_body_bytes)).model_name
        if not name:
            raise RequestError("model is required", field="model")
        host = self._residents.find(name)
        if host.engine.runner is None:
            return json_reply({"model": host.name, "status": "not loaded"})
        gone = await self._residents.unload(host)
        waits = {} if gone else {"in_flight": host.running}
        return json_reply({"model": host.name, "status": "unloaded" if gone else "unloading", **waits})

    def _has_gpu(self) -> bool:
        return any(account.has_gpu for account in self._residents.accounts)

    def _facts(self, host: ModelHost) -> Record:
        runner = host.engine.runner
        if runner is None:
            return {"error": host.failure} if host.failure else {}
        claim = next((account.claims[host.name] for account in self._residents.accounts if host.name in account.claims),
                     None)  # fmt: skip
        return {
            "device": runner.device,
            "dtype": runner.dtype,
            "memory_bytes": claim.total_bytes if claim else runner.memory_bytes,
            "weights_bytes": runner.memory_bytes,
            "cache": {
                "blocks": runner.cache.block_count,
                "block_tokens": runner.cache.block_tokens,
                "bytes": runner.cache.block_count * runner.cache.block_bytes,
            },
            "context_length": host.context_tokens,
            "slots": host.slots.running,
            "in_flight": host.running,
            "idle_seconds_left": host.seconds_left if not host.kept else None,
            "summary": runner.summary,
        }


class _Loading:
    def __init__(
        self,
        service: Service,
        name: str,
        wish: LoadWish | None,
        keep_alive: float | None,
        facts: Callable[[ModelHost], Record],
    ) -> None:
        self._residents, self._name, self._wish = service.residents, name, wish
        self._keep_alive, self._facts = keep_alive, facts
        self._begun = time.perf_counter()
        self._host: ModelHost | None = None

    async def whole(self, send: Send) -> None:
        await send_whole(send, json_reply(await self._load()))

    async def stream(self, send: Send) -> None:
        stream = Stream(send)
        loading = asyncio.create_task(self._load(), name="load on request")
        try:
            while not (await asyncio.wait([loading], timeout=PROGRESS_SECONDS))[0]:
                await stream.line(self._progress())
            last = loading.result()
        except NodeError as error:
            if not stream.started:
                raise
            last = {"error": str(error)}
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        await stream.line(last)
        await stream.end()

    async def _load(self) -> Record:
        host = self._host = await self._residents.wanted(self._name, self._wish)
        await self._residents.load(host, self._keep_alive)
        seconds = round(time.perf_counter() - self._begun, 3)
        return {"model": host.name, "status": "success", "load_seconds": seconds, **self._facts(host)}

    def _progress(self) -> Record:
        host = self._host
        activity = host.activity if host is not None else ""
        elapsed = round(time.perf_counter() - self._begun, 1)
        record: Record = {"model": self._name, "status": activity or "waiting", "elapsed_seconds": elapsed}
        if host is not None and host.activity == "loading" and host.total_bytes:
            record |= {"completed": host.read_bytes, "total": host.total_bytes}
        return record


def wish_of(body: LoadBody, usual: LoadWish, has_gpu: Callable[[], bool]) -> LoadWish | None:
    """The usual way of loading with what the body says instead; None where it says nothing.

    Raises `RequestError` for what cannot be had.
    """
    device = _device(body, has_gpu)
    if body.block_tokens is not None and body.block_tokens not in BLOCK_TOKENS:
        raise RequestError(f"block_tokens must be one of {', '.join(map(str, BLOCK_TOKENS))}", field="block_tokens")
    if body.kv_memory is not None and body.kv_blocks is not None:
        raise RequestError("give kv_memory or kv_blocks, not both", field="kv_blocks")
    given = {
        "device": device,
        "dtype": body.dtype,
        "weights": body.weights,
        "kernels": body.kernels,
        "threads": body.threads,
        "context": body.context,
        "block_tokens": body.block_tokens,
        "max_running": body.max_running,
        "step_tokens": body.step_tokens,
        "mixed_step_tokens": body.mixed_step_tokens,
        "speculation": body.speculation,
    }
    if body.kv_memory is not None or body.kv_blocks is not None:
        given |= {"kv_bytes": _bytes(body.kv_memory), "kv_blocks": body.kv_blocks or 0}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(usual, **changes) if changes else None


def _device(body: LoadBody, has_gpu: Callable[[], bool]) -> DeviceName | None:
    if body.num_gpus is None:
        wanted = body.device
    elif body.num_gpus > 1:
        raise RequestError(
            "num_gpus must be 0 or 1; the node's --devices says what models are split over", field="num_gpus"
        )
    else:
        wanted = "cuda" if body.num_gpus else "cpu"
        if body.device not in (None, "auto", wanted):
            raise RequestError(f"num_gpus {body.num_gpus} contradicts device {body.device}", field="num_gpus")
    if wanted == "cuda" and not has_gpu():
        raise RequestError("this node has no GPU that it may use", field="num_gpus" if body.num_gpus else "device")
    return wanted


def _bytes(value: int | str | None) -> int:
    try:
        return parse_bytes(value or 0)
    except ValueError as error:
        raise RequestError(f"kv_memory: {error}", field="kv_memory") from error
