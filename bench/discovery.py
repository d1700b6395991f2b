"""How long it takes to find a node: on one host, between two hosts, and between two that lose every fifth datagram.

A looking is all that a client does: open sockets, ask, hear the first answer that the token signed. The two hosts are
network namespaces joined by a bridge; loss is nftables' `numgen` on what comes in, at both, so that a question and its
answer both get through in 64 of 100 cases. `python -m bench.discovery --look` is one client, for the namespaces.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from bench.rig.report import Report, at_most, median, percentile, table
from tests.fakes.network_namespaces import LabHost, namespaces, stop_program, why_not
from tests.transport.ports import free_udp_port
from transport.beacons import DISCOVERY_PORT, Reach, discover

TOKEN = "a token of the measurement"
LOSS_PERCENT = 20
PATIENCE_SECONDS, PAUSE_SECONDS = 10.0, 0.2
HERE_BOUND_MS, LOSS_BOUND_MS = 100.0, 1000.0  # promised


@dataclass(frozen=True, slots=True)
class Times:
    """Of several lookings, in milliseconds; one that found nothing counts as the whole patience."""

    samples: tuple[float, ...]

    @property
    def figures(self) -> dict[str, float]:
        values = self.samples
        return {
            "runs": len(values),
            "median_ms": median(values),
            "p99_ms": percentile(values, 0.99),
            "worst_ms": max(values),
        }


async def look(runs: int, reach: Reach, token: str = TOKEN) -> list[float]:
    """Milliseconds until the first node, again and again. One looking before the first that counts warms up.

    Between two of them is a pause, or the node would take us for a flood and that would be measured.
    """
    samples = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        found = await discover(token, seconds=PATIENCE_SECONDS, enough=1, reach=reach)
        took = time.perf_counter() - began if found else PATIENCE_SECONDS
        samples.append(took * 1000)
        await asyncio.sleep(PAUSE_SECONDS)
    return samples[1:]


def measure_here(runs: int) -> Times:
    """Node and client are two processes of this host."""
    port = free_udp_port()
    command = [sys.executable, "-m", "tests.fakes.announcing_node", "--udp-port", str(port)]
    node = subprocess.Popen(command, env=_environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        _await_ready(node)
        return Times(tuple(asyncio.run(look(runs, Reach(network=False, port=port)))))
    finally:
        stop_program(node)


def measure_between(runs: int, loss_percent: int) -> Times:
    """Node and client are two hosts on one switch. Raises LabError where there are no namespaces."""
    with namespaces() as lab:
        near, far = lab.host("10.77.0.1/24"), lab.host("10.77.0.2/24")
        node = far.start([sys.executable, "-m", "tests.fakes.announcing_node", "--host", "0.0.0.0"], _environ())
        try:
            _await_ready(node)
            for host in (near, far):
                host.lose(loss_percent)
            return _looked_from(near, runs)
        finally:
            stop_program(node)


def _looked_from(host: LabHost, runs: int) -> Times:
    client = host.start([sys.executable, "-m", "bench.discovery", "--look", "--runs", str(runs)], _environ())
    said, _ = client.communicate(timeout=30 + runs * PATIENCE_SECONDS)
    return Times(tuple(json.loads(said)))


def _await_ready(node: subprocess.Popen[str]) -> None:
    assert node.stdout is not None
    if node.stdout.readline() != "ready\n":
        raise RuntimeError("the node did not start")


def _environ() -> Mapping[str, str]:
    return {**os.environ, "VRM_API_TOKEN": TOKEN}


def measured(runs: int) -> dict[str, dict[str, float]]:
    """Everything that this machine can do; what it cannot is said on stderr."""
    found = {"one host": measure_here(runs).figures}
    missing = why_not()
    if missing:
        print(f"not measured between hosts: {missing}", file=sys.stderr)
        return found
    found["two hosts"] = measure_between(runs, 0).figures
    found[f"two hosts, {LOSS_PERCENT} % loss"] = measure_between(runs, LOSS_PERCENT).figures
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.discovery", description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--look", action="store_true", help="be a client and print what it took, nothing else")
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    if arguments.look:
        print(
            json.dumps(
                asyncio.run(look(arguments.runs, Reach(port=DISCOVERY_PORT), os.environ.get("VRM_API_TOKEN", TOKEN)))
            )
        )
        return
    report = Report("discovery", vars(arguments))
    report.figures = measured(arguments.runs)
    head = ("where", "runs", "median ms", "p99 ms", "worst ms")
    print(table(head, [(name, *row.values()) for name, row in report.figures.items()]))
    lossy = report.figures.get(f"two hosts, {LOSS_PERCENT} % loss", {}).get("p99_ms")
    report.targets = [
        at_most("p99 on one host", report.figures["one host"]["p99_ms"], HERE_BOUND_MS, " ms"),
        at_most("p99 between hosts that lose every fifth datagram", lossy, LOSS_BOUND_MS, " ms"),
    ]
    report.finish(write=not arguments.no_write)


if __name__ == "__main__":
    main()
