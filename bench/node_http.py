"""What one streamed answer of 8 tokens costs the gateway's side of a node's connection, beside aiohttp's client.

The reason for a connection of our own: with the whole backend (parse, check, make events) it has to stay well below
what aiohttp costs for the bytes alone. One process each for the node and the client, each on a core of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
import uvloop

from bench.rig.report import Report, at_most, median, table
from bench.rig.servers import Program, Server, free_ports, on_core
from server.backends import Backends
from server.backends.base import Call
from server.nodes import NodeId, NodeSpec
from server.patience import Patience

MODEL = "smollm2:135m"
TOKENS = 8
MESSAGES = [{"role": "user", "content": "What does a conversation with a phone cost?"}]
OPTIONS = {"temperature": 0, "num_predict": TOKENS}
WANTED_SHARE = 0.75  # of aiohttp's CPU time, our whole backend against its bare bytes


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one request: CPU microseconds in this process, and requests a second."""

    cpu_us: float
    per_second: float


async def with_backend(ports: list[int], requests: int, at_once: int) -> None:
    """The gateway's own way to a node, all of it."""
    backends = Backends({})
    specs = [NodeSpec(NodeId(str(port)), str(port), "ollama", "127.0.0.1", port) for port in ports]
    call, patience = Call("chat", MODEL, messages=MESSAGES, options=OPTIONS), Patience()

    async def client(number: int) -> None:
        for turn in range(requests // at_once):
            async for _ in backends["ollama"].stream(specs[(number + turn) % len(specs)], call, patience):
                pass

    await asyncio.gather(*(client(number) for number in range(at_once)))
    await backends.aclose()


async def with_aiohttp(ports: list[int], requests: int, at_once: int) -> None:
    """aiohttp as its documentation has it, and the JSON of each line parsed."""
    import aiohttp

    body = orjson.dumps({"model": MODEL, "messages": MESSAGES, "options": OPTIONS, "stream": True})
    headers = {"Content-Type": "application/json"}
    limits = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60)

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=limits, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:

        async def client(number: int) -> None:
            for turn in range(requests // at_once):
                url = f"http://127.0.0.1:{ports[(number + turn) % len(ports)]}/api/chat"
                async with session.post(url, data=body, headers=headers) as answer:
                    rest = b""
                    async for data in answer.content.iter_any():
                        *lines, rest = (rest + data).split(b"\n")
                        for line in lines:
                            orjson.loads(line)

        await asyncio.gather(*(client(number) for number in range(at_once)))


Way = Callable[[list[int], int, int], Awaitable[None]]
WAYS: dict[str, Way] = {
    "our backend": with_backend,
    "aiohttp, bytes and JSON only": with_aiohttp,
}


def cost_of(
    way: Callable[[list[int], int, int], Awaitable[None]], ports: list[int], requests: int, at_once: int
) -> Cost:
    async def run() -> None:
        await way(ports, requests, at_once)

    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    uvloop.run(run())
    after, seconds = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cpu / requests * 1e6, requests / seconds)


def measured(ports: list[int], requests: int, at_once: int, rounds: int) -> dict[str, dict[str, float]]:
    samples: dict[str, list[Cost]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            samples[name].append(cost_of(way, ports, requests, at_once))
    return {
        name: {
            "cpu_us": median([cost.cpu_us for cost in costs]),
            "per_second": median([cost.per_second for cost in costs]),
        }
        for name, costs in samples.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.node_http", description=__doc__)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {0})  # the node has core 1
    report = Report("node_http", vars(arguments))
    ports = free_ports(arguments.nodes)
    speed = ["--tokens-per-second", "0", "--prompt-tokens-per-second", "0", "--load-seconds", "0", "--burst", "1"]
    command = [
        sys.executable,
        "-m",
        "tests.fakes.phone",
        "--port",
        str(ports[0]),
        "--count",
        str(arguments.nodes),
        *speed,
    ]
    with tempfile.TemporaryDirectory() as folder:
        phones = Program("phones", on_core(1, command), ports[0], "/api/version")
        with Server(phones, Path(folder)):
            report.figures = measured(ports, arguments.requests, arguments.at_once, arguments.rounds)
    print(table(("way", "CPU us", "requests/s"), [(name, *row.values()) for name, row in report.figures.items()]))
    ours, theirs = (report.figures[name]["cpu_us"] for name in WAYS)
    report.targets = [at_most("our backend's share of aiohttp's CPU", ours / theirs, WANTED_SHARE)]
    report.finish(write=not arguments.no_write)


if __name__ == "__main__":
    main()
