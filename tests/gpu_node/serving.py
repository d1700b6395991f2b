"""The node's application behind a real HTTP server on a free port of this machine, with a scripted model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from gpu_node.api.access import AccessRules, rules_of
from gpu_node.api.app import build_app
from gpu_node.engine.engine import Engine
from gpu_node.host import ModelHost
from gpu_node.listening import Server, bind
from gpu_node.model_folder import ModelDescription, Tensor
from tests.gpu_node.scripted import ScriptedRunner

NAME = "smollm2:135m"
DESCRIPTION = ModelDescription(
    family="llama",
    digest="d" * 64,
    size_bytes=98_363_007,
    quantisation="Q4_1",
    context_length=4096,
    embedding_length=576,
    modified_at=1_700_000_000.0,
    template="{{ messages }}",
    config={"num_attention_heads": 9, "vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2},
    tokenizer={},
    tensors=(Tensor("w", "BF16", (134_515_008,)),),
    licence="Apache-2.0",
    parameters={"temperature": 0.2, "stop": ["<end>"]},
)


@dataclass
class Served:
    host: ModelHost
    runner: ScriptedRunner
    client: httpx.AsyncClient
    port: int
    server: Server

    async def post(self, path: str, **body: object) -> httpx.Response:
        return await self.client.post(path, json={"model": NAME, **body})

    async def until_free(self) -> None:
        await until_true(lambda: not self.host.slot.busy and not self.host.slot.waiting)


async def until_true(condition: Callable[[], bool]) -> None:
    for _ in range(2500):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never became true")


@asynccontextmanager
async def serving(
    runner: ScriptedRunner | None = None,
    rules: AccessRules | None = None,
    max_waiting: int = 8,
    max_body_bytes: int = 1 << 16,
    loaded: bool = True,
) -> AsyncIterator[Served]:
    runner = runner or ScriptedRunner()
    host = ModelHost(Engine(lambda: runner), (NAME, "smollm2", "default"), 300, max_waiting)
    host.description = DESCRIPTION
    if loaded:
        await host.start()
    app = build_app(host, rules or rules_of((), (), ()), max_body_bytes)
    ports: list[int] = []
    server = Server(app, on_listening=lambda _, port: ports.append(port), on_stop=host.engine.stop)
    with bind("127.0.0.1", 0) as listener:
        task = asyncio.create_task(server.serve([listener]))
        await until_true(lambda: bool(ports) or task.done())
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[0]}", timeout=10) as client:
            try:
                yield Served(host, runner, client, ports[0], server)
            finally:
                runner.go_on.set()
        server.stop()
        await task
    assert await host.close()
