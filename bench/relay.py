"""The relay protocol beside a bare socket doing the same bytes, and beside the node's HTTP API for tokens.

One run on two cores: the node (and the bare socket's other end) on one, the client on the other; ways take turns.
What is compared: round trips, tensors of 1 KB to 256 MB with checksums, 64 clients streaming tokens, CPU a token.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.rig import relay_bulk, relay_tokens
from bench.rig.loops import run
from bench.rig.raw_socket import RawClient, raw_server
from bench.rig.relay_bulk import Bulk, gigabytes_per_second, rounds_for, shares
from bench.rig.relay_tokens import HTTP, RELAY_EACH, RELAY_ONE, Ports, TokenCost
from bench.rig.report import Report, Target, at_least, at_most, median, percentile, table
from bench.rig.servers import Program, Server, free_ports
from transport.places import Access, Place
from transport.session import RelaySession

KIB, MIB = 1 << 10, 1 << 20
SIZES = (KIB, 16 * KIB, 256 * KIB, MIB, 16 * MIB, 256 * MIB)
WANTED_SHARE = 0.7  # of the bare socket's speed, from 1 MB up
CLIENTS, TOKENS = 64, 256
NODE_CORE, CLIENT_CORE = 1, 0


async def bulk(arguments: argparse.Namespace, relay_port: int, raw_port: int) -> dict[str, Any]:
    session = RelaySession(Place("127.0.0.1", relay_port), Access())
    raw = RawClient(raw_port)
    try:
        found = await relay_bulk.pings(session, raw, arguments.rounds, 500)
        figures: dict[str, Any] = {
            "ping": {
                way: {"p50_us": percentile(seconds, 0.5) * 1e6, "p99_us": percentile(seconds, 0.99) * 1e6}
                for way, seconds in found.items()
            }
        }
        sizes = [size for size in SIZES if size <= arguments.most_mib * MIB]
        work = Bulk(session, raw, sizes[-1])
        work.calibrate()
        figures["raw_piece_bytes"] = work.pieces
        figures["tensors"] = {}
        for size in sizes:
            seconds = await work.measure(size, rounds_for(size, sizes[-1]))
            figures["tensors"][str(size)] = {
                "share_of_raw": shares(seconds),
                "gb_per_second": {
                    name: {way: gigabytes_per_second(size, one) for way, one in ways.items()}
                    for name, ways in seconds.items()
                },
            }
        return figures
    finally:
        raw.close()
        await session.close()


async def tokens(arguments: argparse.Namespace, node: Server, ports: Ports) -> dict[str, dict[str, float]]:
    samples: dict[str, list[TokenCost]] = {name: [] for name in relay_tokens.WAYS}
    for turn in range(arguments.rounds + 1):
        for name, way in relay_tokens.WAYS.items():
            spent, told = await relay_tokens.cost(way, node, ports, CLIENTS, arguments.turns)
            if told != CLIENTS * arguments.turns * TOKENS:
                raise SystemExit(f"{name}: {told} tokens came, {CLIENTS * arguments.turns * TOKENS} were told")
            if turn:  # the first is a warm-up
                samples[name].append(spent)
    return {
        name: {field: median([asdict(one)[field] for one in costs]) for field in asdict(costs[0])}
        for name, costs in samples.items()
    }


def judge(figures: dict[str, Any]) -> list[Target]:
    found = []
    for size, cell in figures["tensors"].items():
        if int(size) >= MIB:
            for name in ("write", "read"):
                share = cell["share_of_raw"][name]["relay"]
                found.append(at_least(f"{name} of {size_name(int(size))}: share of a bare socket", share, WANTED_SHARE))
    costs = figures["tokens"]
    for way in (RELAY_EACH, RELAY_ONE):
        for end in ("node_us", "client_us"):
            share = costs[way][end] / costs[HTTP][end]
            found.append(at_most(f"{way}: CPU a token at the {end.removesuffix('_us')}, share of HTTP's", share, 1.0))
    return found


def size_name(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def show(figures: dict[str, Any]) -> None:
    ping = figures["ping"]
    print(
        table(["round trip, us", *ping], [[name, *(ping[way][name] for way in ping)] for name in ("p50_us", "p99_us")])
    )
    head = ["GB/s", *(f"{name}, {way}" for name in ("write", "read") for way in relay_bulk.WAYS)]
    rows = [
        [
            size_name(int(size)),
            *(cell["gb_per_second"][name][way] for name in ("write", "read") for way in relay_bulk.WAYS),
        ]
        for size, cell in figures["tensors"].items()
    ]
    print(table(head, rows))
    costs = figures["tokens"]
    fields = ("node_us", "client_us", "per_second")
    print(table([f"{CLIENTS} clients", *fields], [[way, *(costs[way][one] for one in fields)] for way in costs]))


async def measured(arguments: argparse.Namespace, node: Server, ports: Ports, raw_port: int) -> dict[str, Any]:
    figures = await bulk(arguments, ports.relay, raw_port)
    figures["tokens"] = await tokens(arguments, node, ports)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.relay", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=1, help="answers of each client in a round")
    parser.add_argument("--steps", type=int, default=50, help="of the node's engine in a second; 0: as fast as it can")
    parser.add_argument("--most-mib", type=int, default=256, help="the largest tensor")
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {CLIENT_CORE})
    report = Report("relay", vars(arguments))
    http, relay, raw_port = free_ports(3)
    command = [sys.executable, "-m", "bench.rig.relay_node", str(http), str(relay), str(TOKENS), str(arguments.steps)]
    program = Program("node", command, http, "/api/version", NODE_CORE)
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(program, Path(folder)) as node,
        raw_server(raw_port, NODE_CORE),
    ):
        report.figures = run(measured(arguments, node, Ports(http, relay), raw_port))
    show(report.figures)
    report.targets += judge(report.figures)
    report.finish(write=not arguments.no_write)


if __name__ == "__main__":
    main()
