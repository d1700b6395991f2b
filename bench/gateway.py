"""The gateway beside what people would use instead: requests/s, added latency, streams/s, memory; ratios in one run.

One mock of canned nodes and the load generator share one core; what is measured has the other one for itself. All
variants are loaded in turn, several rounds, medians, so whatever else the machine does touches all of them; who is not
measured stands still. Every question is new, every answer is read to its end and compared. The gateway has everything
on: queue, affinity, answer cache (every request a miss, checked), metrics, a log line per request.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.rig import peers, wrk
from bench.rig.peers import Place, Variant
from bench.rig.report import Report, at_least, at_most, median, table
from bench.rig.servers import Program, Server, free_ports
from bench.rig.wrk import Load, Measured

NODES = 8
STREAM_TOKENS = 64
SETTLING_SECONDS = 0.4  # after a pause: what was due meanwhile is made up for
SLOW_FACTOR = 3  # so much longer where a load of seconds sees hardly an answer
GATEWAY = "gateway /api/chat"
OWN_API = "gateway /ask"
FLOOR = "pass-through"
DIRECT = "direct"


def loads(seconds: float) -> list[Load]:
    return [
        Load("1 connection", 1, seconds),
        Load("64 connections", 64, seconds),
        Load("256 connections", 256, seconds),
        Load("32 streams", 32, seconds, stream=True, tokens=STREAM_TOKENS, burst=1),
        Load("32 streams, bursts of 16", 32, seconds, stream=True, tokens=STREAM_TOKENS, burst=16),
    ]


@dataclass(slots=True)
class Bench:
    """All programs of one run, and what was measured of each variant under each load."""

    place: Place
    mock_port: int
    load_core: int | None
    variants: list[Variant] = field(default_factory=list)
    servers: dict[str, Server] = field(default_factory=dict)
    samples: dict[tuple[str, str], list[Measured]] = field(default_factory=dict)
    cpu_us: dict[tuple[str, str], list[float]] = field(default_factory=dict)  # of a request, by variant and load

    def url(self, variant: Variant) -> str:
        if variant.program is None:
            return f"http://127.0.0.1:{self.mock_port}"
        return self.servers[variant.program.name].url

    def start(self, stack: ExitStack) -> None:
        for variant in self.variants:
            program = variant.program
            if program is not None and program.name not in self.servers:
                print(f"starting {program.name} ...", flush=True)
                self.servers[program.name] = stack.enter_context(Server(program, self.place.folder))

    def measure(self, variant: Variant, load: Load) -> Measured:
        if variant.slow:
            load = replace(load, seconds=load.seconds * SLOW_FACTOR)
        set_burst(self.mock_port, load.burst)
        self.wake_only(variant)
        return wrk.run(load, self.url(variant), variant.dialect, variant.key, self.load_core)

    def wake_only(self, variant: Variant) -> None:
        """All others stand still: even idle some of them take a tenth of the core."""
        for name, server in self.servers.items():
            if variant.program is not None and variant.program.name == name:
                server.resume()
            else:
                server.pause()
        time.sleep(SETTLING_SECONDS)

    def wake_all(self) -> None:
        for server in self.servers.values():
            server.resume()

    def run_round(self, chosen: Sequence[Load]) -> None:
        for load in chosen:
            for variant in self.variants:
                before = self.cpu_of(variant)
                measured = self.measure(variant, load)
                spent = self.cpu_of(variant) - before
                if measured.per_second and spent:
                    micros = spent * 1e6 / (measured.per_second * measured.seconds)
                    self.cpu_us.setdefault((variant.name, load.name), []).append(micros)
                self.samples.setdefault((variant.name, load.name), []).append(measured)
                if measured.errors:
                    print(f"  {variant.name}, {load.name}: {measured.errors} errors: {measured.sample}", flush=True)

    def cpu_of(self, variant: Variant) -> float:
        return self.servers[variant.program.name].cpu.total if variant.program is not None else 0.0

    def figure(self, variant: str, load: str, value: Callable[[Measured], float]) -> float | None:
        values = [value(sample) for sample in self.samples.get((variant, load), ())]
        return median(values) if values else None

    def per_second(self, variant: str, load: str) -> float | None:
        return self.figure(variant, load, lambda sample: sample.per_second)

    def errors(self, variant: str) -> int:
        return sum(sample.errors for (name, _), all_of in self.samples.items() if name == variant for sample in all_of)


def set_burst(port: int, burst: int) -> None:
    fetch(port, f"/_burst/{burst}")


def fetch(port: int, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def variants_of(arguments: argparse.Namespace, place: Place, notes: list[str]) -> list[Variant]:
    """What can be measured here; what cannot is told in the notes."""
    ports = free_ports(5)
    gateway = peers.gateway(place, ports[0], {})
    found = [Variant(DIRECT, None), Variant(GATEWAY, gateway), Variant(OWN_API, gateway, "ask")]
    found.append(Variant(FLOOR, peers.passthrough(place, ports[1])))
    makers: tuple[tuple[str, Callable[[Place, int], Program | None]], ...] = (
        ("nginx", peers.nginx),
        ("haproxy", peers.haproxy),
    )
    for port, (name, maker) in zip(ports[2:], makers, strict=False):
        program = maker(place, port)
        if program is None:
            notes.append(f"{name} is not installed, so it was not measured")
        else:
            found.append(Variant(name, program))
    if arguments.litellm is None:
        notes.append("LiteLLM was not measured: give the path of its command with --litellm")
    else:
        program, key = peers.litellm(place, ports[4], arguments.litellm, arguments.litellm_provider)
        found.append(Variant("litellm", program, "openai", key, slow=True))
    if arguments.only:
        found = [variant for variant in found if any(word in variant.name for word in (*arguments.only, DIRECT))]
    return found


def cache_hits(port: int) -> float:
    """Hits and joins of the answer cache so far: every request was to be a miss."""
    total = 0.0
    for line in fetch(port, "/metrics").splitlines():
        if line.startswith("potluck_cache") and ('"hit"' in line or '"joined"' in line):
            total += float(line.rpartition(" ")[2])
    return total


def figures_of(bench: Bench, chosen: Sequence[Load]) -> dict[str, dict[str, object]]:
    result: dict[str, dict[str, object]] = {}
    base = bench.figure(DIRECT, "1 connection", lambda sample: sample.median_ms) or 0.0
    base_p99 = bench.figure(DIRECT, "1 connection", lambda sample: sample.p99_ms) or 0.0
    for variant in bench.variants:
        row: dict[str, object] = {
            load.name: {
                "per_second": bench.per_second(variant.name, load.name),
                "median_ms": bench.figure(variant.name, load.name, lambda sample: sample.median_ms),
                "p99_ms": bench.figure(variant.name, load.name, lambda sample: sample.p99_ms),
                "cpu_us": median(bench.cpu_us.get((variant.name, load.name), [])),
            }
            for load in chosen
        }
        if variant.program is not None:
            row["added_median_ms"] = (bench.figure(variant.name, "1 connection", lambda s: s.median_ms) or 0.0) - base
            row["added_p99_ms"] = (bench.figure(variant.name, "1 connection", lambda s: s.p99_ms) or 0.0) - base_p99
            row["rss_mib"] = bench.servers[variant.program.name].rss_mib
        row["errors"] = bench.errors(variant.name)
        result[variant.name] = row
    return result


def print_table(figures: dict[str, dict[str, object]], chosen: Sequence[Load]) -> None:
    head = ["variant", *(f"{load.name}/s" for load in chosen), "added median ms", "added p99 ms", "MiB", "errors"]
    rows = []
    for name, row in figures.items():
        cells = [row[load.name] for load in chosen]
        speeds = [cell["per_second"] if isinstance(cell, dict) else None for cell in cells]
        rows.append(
            [name, *speeds, *(row.get(key) for key in ("added_median_ms", "added_p99_ms", "rss_mib", "errors"))]
        )
    print(table(head, rows))
    costs = [[name, *(bench_cpu(row[load.name]) for load in chosen)] for name, row in figures.items()]
    print(table(["CPU us per request", *(load.name for load in chosen)], costs))


def bench_cpu(cell: object) -> float | None:
    return cell["cpu_us"] or None if isinstance(cell, dict) else None


def ratio(upper: float | None, lower: float | None) -> float | None:
    return upper / lower if upper and lower else None


def judge(report: Report, bench: Bench, figures: dict[str, dict[str, object]]) -> None:
    for name in (GATEWAY, OWN_API):
        for load in ("64 connections", "256 connections"):
            share = ratio(bench.per_second(name, load), bench.per_second(FLOOR, load))
            report.targets.append(at_least(f"{name}: share of the pass-through at {load}", share, 0.5))
        added = figures[name].get("added_median_ms")
        report.targets.append(at_most(f"{name}: added median", added if isinstance(added, float) else None, 1.0, " ms"))
        streams = bench.per_second(name, "32 streams")
        report.targets.append(at_least(f"{name}: {STREAM_TOKENS}-token streams/s", streams, 500))
        report.targets.append(at_most(f"{name}: errors", float(bench.errors(name)), 0))
        if any(variant.name == "litellm" for variant in bench.variants):
            for load in ("64 connections", "32 streams"):
                times = ratio(bench.per_second(name, load), bench.per_second("litellm", load))
                report.targets.append(at_least(f"{name}: times LiteLLM at {load}", times, 20))
    memory = figures[GATEWAY].get("rss_mib")
    report.targets.append(at_most("gateway: memory", memory if isinstance(memory, float) else None, 120, " MiB"))


def run(arguments: argparse.Namespace, report: Report) -> None:
    chosen = loads(arguments.seconds)
    with tempfile.TemporaryDirectory(prefix="potluck-bench-") as folder, ExitStack() as stack:
        nodes = free_ports(NODES)
        base = nodes[0]
        place = Place(arguments.core, nodes, Path(folder))
        command = [sys.executable, "-m", "bench.rig.mock", "--port", str(base), "--count", str(NODES)]
        mock = Program("mock", command, base, "/api/version", arguments.load_core)
        stack.enter_context(Server(mock, place.folder))
        bench = Bench(place, base, arguments.load_core, variants_of(arguments, place, report.notes))
        bench.start(stack)
        for variant in bench.variants:
            bench.measure(variant, Load("warm-up", 8, 1))
        for number in range(arguments.rounds):
            time.sleep(arguments.pause if number else 0)
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
            bench.run_round(chosen)
        bench.wake_all()
        figures = figures_of(bench, chosen)
        report.figures = {"variants": figures, "cache_hits": cache_hits(bench.servers["gateway"].program.port)}
        print_table(figures, chosen)
        judge(report, bench, figures)
    report.notes.append(
        f"what is measured ran on core {arguments.core}, mock and load generator on core {arguments.load_core}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="of each load of each variant in each round")
    parser.add_argument("--pause", type=float, default=0, help="seconds between rounds, for a shared machine")
    parser.add_argument("--core", type=int, default=0, help="of what is measured")
    parser.add_argument("--load-core", type=int, default=1, help="of mock and load generator")
    parser.add_argument("--litellm", type=Path, help="LiteLLM's command, in an environment of its own")
    parser.add_argument("--litellm-provider", choices=("openai", "ollama_chat"), default="openai")
    parser.add_argument("--only", nargs="*", help="variants whose name contains one of these words")
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    if not wrk.is_installed():
        parser.exit(
            2, "error: wrk is missing (a package of most Linux distributions), and nothing else makes the load\n"
        )
    report = Report("gateway", vars(arguments))
    run(arguments, report)
    report.finish(write=not arguments.no_write)


if __name__ == "__main__":
    main()
