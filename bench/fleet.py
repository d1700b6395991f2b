"""A thousand phones at 10 tokens/s each, all relayed at the same time: no token lost, and the CPU that it takes.

Fake phones in one process, the gateway as people run it in another, the listeners here. Every listener asks for one
streamed answer after the other; each answer is compared with the very text that was due. The gateway's processor time
is read from the kernel, with and without streams, so that what probing a thousand phones takes is told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import uvloop

from bench.rig.answers import Judge, read_stream
from bench.rig.listening import Heard, Listener
from bench.rig.peers import uvicorn
from bench.rig.phones import write_fleet
from bench.rig.questions import Question
from bench.rig.report import Report, at_least, at_most, median, percentile, table
from bench.rig.servers import Program, Server, free_ports
from tests.fakes.phone import FakeModel, PhoneSettings

MODEL = "smollm2:135m"
READY_SECONDS = 90.0
CONNECTING_SECONDS = 2.0
RAMP_SECONDS = 3.0  # over which the listeners begin
FILES_PER_PHONE = 6  # descriptors: a listening socket, connections on both sides, some to spare


@dataclass(slots=True)
class Streams:
    """What the listeners heard."""

    answers: list[tuple[Question, Heard]] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0


def question(number: int, tokens: int) -> Question:
    content = f"Question {number}: what does phone {number % 97} see from its drawer?"
    messages = ({"role": "user", "content": content},)
    options = {"temperature": 0, "num_predict": tokens}
    body = {"messages": list(messages), **options}
    return Question("ask_stream", True, body, "closed", messages, None, options)


async def listen(port: int, listeners: int, seconds: float, tokens: int) -> Streams:
    """All listeners for that long; a stream that has begun is heard to its end.

    They connect before the first stream: a loop that is busy takes only one new connection in each of its turns.
    """
    loop = asyncio.get_running_loop()
    made = await asyncio.gather(*(loop.create_connection(Listener, "127.0.0.1", port) for _ in range(listeners)))
    await asyncio.sleep(CONNECTING_SECONDS)
    streams = Streams(began=loop.time())
    until = streams.began + seconds

    async def one(index: int, listener: Listener) -> None:
        await asyncio.sleep(RAMP_SECONDS * index / listeners)
        number = index
        while loop.time() < until:
            asked = question(number, tokens)
            streams.answers.append((asked, await listener.ask(asked.path, asked.body)))
            number += listeners
        listener.close()

    await asyncio.gather(*(one(index, listener) for index, (_, listener) in enumerate(made)))
    streams.ended = loop.time()
    return streams


def judged(streams: Streams, settings: PhoneSettings) -> tuple[Counter[str], int, list[str]]:
    """Findings by kind, tokens that came through right, and samples of what is wrong."""
    judge = Judge({"closed": settings})
    findings: Counter[str] = Counter()
    samples: list[str] = []
    tokens = 0
    for asked, heard in streams.answers:
        reading = read_stream(asked, heard.status, heard.body)
        reading.broken = reading.broken or heard.broken
        found = judge.findings(asked, reading)
        if reading.error is not None:
            found.append(f"error {reading.error}: {heard.body[-200:]!r}")
        if not found:
            tokens += reading.tokens or 0
        for finding in found:
            findings[finding.partition(":")[0]] += 1
            samples.append(finding[:300])
    return findings, tokens, samples[:8]


async def all_ready(port: int, count: int) -> None:
    """Until every phone has been probed."""
    deadline = asyncio.get_running_loop().time() + READY_SECONDS
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        for _ in range(10_000):
            async with session.get("/ready") as answer:
                usable = (await answer.json()).get("usable_nodes", 0)
            if usable >= count:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise SystemExit(f"error: only {usable} of {count} phones were ready in {READY_SECONDS:.0f} s")
            await asyncio.sleep(1.0)


async def look(port: int, after_seconds: float) -> dict[str, int]:
    """One look at the whole fleet in the middle of the first answers: how many really speak at the same time."""
    await asyncio.sleep(after_seconds)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session, session.get("/health") as answer:
        health = await answer.json()
    nodes = health["nodes"]
    return {
        "in_flight_at_once": sum(node["in_flight"] for node in nodes),
        "waiting": health["queue"]["waiting"],
        "phones_not_ready": sum(node["status"] != "ready" for node in nodes),
    }


def phones_program(arguments: argparse.Namespace, port: int) -> Program:
    command = [sys.executable, "-m", "tests.fakes.phone", "--port", str(port), "--count", str(arguments.phones)]
    command += ["--tokens-per-second", str(arguments.speed), "--prompt-tokens-per-second", "0", "--load-seconds", "0"]
    command += ["--prompt-cache", "1", "--model", MODEL, "--answer-tokens", "500", "500", "--log-size", "1"]
    return Program("phones", command, port, "/api/version", arguments.load_core)


async def measure(arguments: argparse.Namespace, report: Report, folder: Path) -> None:
    ports = free_ports(arguments.phones + 1)
    fleet = write_fleet(folder / "phones.json", ports[1:])
    environment = {"POTLUCK_PHONES_FILE": str(fleet), "POTLUCK_EMBEDDED_NODE": "off"}
    phones = Server(phones_program(arguments, ports[1]), folder)
    gateway = Server(uvicorn("gateway", "server:app", ports[0], arguments.core, environment), folder)
    try:
        for server in (phones, gateway):
            await asyncio.to_thread(server.__enter__)
        await all_ready(ports[0], arguments.phones)
        await listen(ports[0], arguments.phones, RAMP_SECONDS, 4)  # every path has been gone once
        idle_began = gateway.cpu.total
        await asyncio.sleep(arguments.idle_seconds)
        idle = (gateway.cpu.total - idle_began) / arguments.idle_seconds
        before, phones_before = gateway.cpu, phones.cpu.total
        looking = asyncio.create_task(
            look(ports[0], CONNECTING_SECONDS + RAMP_SECONDS + 0.6 * arguments.tokens / arguments.speed)
        )
        streams = await listen(ports[0], arguments.phones, arguments.seconds, arguments.tokens)
        after = gateway.cpu
        report.figures |= await looking
        report.figures["gateway_cpu"] = {"user": after.user - before.user, "system": after.system - before.system}
        report.figures["gateway_cores_idle"] = idle
        report.figures["phones_cores"] = (phones.cpu.total - phones_before) / (streams.ended - streams.began)
        report.figures["gateway_rss_mib"] = gateway.rss_mib
    finally:
        gateway.stop()
        phones.stop()
    tell(arguments, report, streams)


def tell(arguments: argparse.Namespace, report: Report, streams: Streams) -> None:
    settings = PhoneSettings(models=(FakeModel(MODEL),), answer_tokens=(500, 500))
    findings, tokens, samples = judged(streams, settings)
    figures = report.figures
    seconds = streams.ended - streams.began
    cpu = sum(figures["gateway_cpu"].values())
    whole = [heard for _, heard in streams.answers if heard.last > heard.first]
    pace = [(arguments.tokens - 1) / (heard.last - heard.first) for heard in whole]
    figures |= {
        "answers": len(streams.answers),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "gateway_cores": cpu / seconds,
        "gateway_cpu_us_per_token": (cpu - figures["gateway_cores_idle"] * seconds) / max(1, tokens) * 1e6,
        "pace_median": median(pace),
        "pace_slowest": min(pace, default=0.0),
        "first_token_median_ms": median([(heard.first - heard.asked) * 1000 for heard in whole]),
        "first_token_p99_ms": percentile([(heard.first - heard.asked) * 1000 for heard in whole], 0.99),
        "findings": dict(findings),
        "finding_samples": samples,
    }
    shown = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    print(table(["figure", "value"], list(shown.items())))
    for sample in samples:
        print(f"FINDING {sample}")
    report.targets = [
        at_most("answers with a token lost, repeated or wrong", float(sum(findings.values())), 0),
        at_least("phones relayed at the same time", float(figures["in_flight_at_once"]), 1000),
        at_least("median pace of a stream, tokens/s", median(pace), 0.95 * arguments.speed),
        at_most("cores of the gateway", figures["gateway_cores"], 1),
    ]


def allow_files(count: int) -> None:
    """Raise our limit of open files, which children inherit, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--phones", type=int, default=1000)
    parser.add_argument("--speed", type=float, default=10.0, help="tokens/s of each phone")
    parser.add_argument("--tokens", type=int, default=100, help="of each answer")
    parser.add_argument("--seconds", type=float, default=20.0, help="then no new answer is begun")
    parser.add_argument("--idle-seconds", type=float, default=10.0, help="of probing alone, to be told apart")
    parser.add_argument("--core", type=int, default=0, help="of the gateway")
    parser.add_argument("--load-core", type=int, default=1, help="of the phones")
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    allow_files(FILES_PER_PHONE * arguments.phones + 1000)
    report = Report("fleet", vars(arguments))
    with tempfile.TemporaryDirectory(prefix="potluck-bench-") as folder:
        uvloop.run(measure(arguments, report, Path(folder)))
    report.notes.append(f"gateway on core {arguments.core}, phones on core {arguments.load_core}, listeners on any")
    report.finish(write=not arguments.no_write)


if __name__ == "__main__":
    main()
