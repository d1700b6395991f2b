"""Many clients streaming tokens from one node: over the relay, one connection each or one for all, and over HTTP."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

from bench.rig.servers import Server
from server.backends import Backends
from server.backends.base import Call
from server.exchange import Token
from server.nodes import NodeId, NodeKind, NodeSpec
from server.patience import Patience
from tests.gpu_node.serving import NAME
from transport.places import Access, Place
from transport.session import RelaySession
from wire.messages_work import ChatMessage, ChatPrompt, Generate, Tokens

QUESTION = "What does a token cost on its way?"
MESSAGES = [{"role": "user", "content": QUESTION}]
RELAY_EACH, RELAY_ONE, HTTP = "relay, a connection each", "relay, one for all (gateway)", "HTTP NDJSON (gateway)"


@dataclass(frozen=True, slots=True)
class TokenCost:
    """Microseconds of CPU a token at the node and at the client, and tokens a second over all."""

    node_us: float
    client_us: float
    per_second: float


@dataclass(frozen=True, slots=True)
class Ports:
    http: int
    relay: int


Way = Callable[[Ports, int, int], Awaitable[int]]


async def over_links(ports: Ports, clients: int, turns: int) -> int:
    """As clients of the protocol's own do it."""
    request = Generate(NAME, ChatPrompt((ChatMessage("user", QUESTION),)))

    async def client(session: RelaySession) -> int:
        told = 0
        for _ in range(turns):
            async with aclosing(session.generate(request)) as messages:
                async for message in messages:
                    told += isinstance(message, Tokens)
        return told

    async with AsyncExitStack() as stack:
        sessions = [RelaySession(Place("127.0.0.1", ports.relay), Access()) for _ in range(clients)]
        for session in sessions:
            stack.push_async_callback(session.close)
        return sum(await asyncio.gather(*map(client, sessions)))


def through(kind: NodeKind) -> Way:
    """As the gateway does it."""

    async def run(ports: Ports, clients: int, turns: int) -> int:
        backends, patience = Backends({}), Patience()
        port = ports.relay if kind == "relay" else ports.http
        spec = NodeSpec(NodeId("node"), "node", kind, "127.0.0.1", port)
        call = Call("chat", NAME, messages=MESSAGES)

        async def client() -> int:
            told = 0
            for _ in range(turns):
                async for batch in backends[kind].stream(spec, call, patience):
                    told += sum(isinstance(event, Token) and bool(event.text) for event in batch)
            return told

        try:
            return sum(await asyncio.gather(*(client() for _ in range(clients))))
        finally:
            await backends.aclose()

    return run


WAYS: dict[str, Way] = {RELAY_EACH: over_links, RELAY_ONE: through("relay"), HTTP: through("ollama")}


async def cost(way: Way, node: Server, ports: Ports, clients: int, turns: int) -> tuple[TokenCost, int]:
    """And how many tokens came."""
    node_before, own_before, began = node.cpu.total, own_cpu(), time.perf_counter()
    told = await way(ports, clients, turns)
    seconds = time.perf_counter() - began
    spent = TokenCost(
        (node.cpu.total - node_before) / told * 1e6, (own_cpu() - own_before) / told * 1e6, told / seconds
    )
    return spent, told


def own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
