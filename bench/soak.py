"""A soak under the failure matrix: nothing lost, repeated, spliced or cut unseen; memory flat; no work left behind.

The gateway runs as people run it (uvicorn, uvloop, one process); two dozen fake phones of three templates and three
versions of Ollama fail in every way they know, at random. Each answer is compared with the very text that was due, or
must be an honest error after a right beginning; some clients leave in the middle. In pauses the phones must be idle,
the gateway's books at zero, and its memory is read. Limits are scaled down with the phones, so that waiting is short.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from bench.rig.answers import Judge, Reading, read_stream, read_whole
from bench.rig.peers import uvicorn
from bench.rig.phones import write_fleet
from bench.rig.questions import GROUPS, Question, Questions, model_of
from bench.rig.report import Report, at_most, slope, table
from bench.rig.servers import Server, free_ports
from bench.rig.weather import Weather
from tests.fakes.phone import FakeModel, FakePhone, PhoneSettings

VERSIONS = ("0.6.8", "0.24.0", "0.33.0-rc2", "0.24.0")
SETTLING_SECONDS = 6.0
ANSWER_SECONDS = 60.0  # no request may take longer: then it is lost
SAMPLES = 12  # findings shown in full
FLAT_KIB = 20.0  # growth per 1,000 requests that still counts as flat: 2 MiB over the whole soak
LIMITS = {  # of the gateway, a tenth of what is shipped and less, since the phones are a hundred times faster
    "POTLUCK_CONNECT_TIMEOUT_S": "0.5",
    "POTLUCK_FIRST_TOKEN_FLOOR_S": "0.6",
    "POTLUCK_BETWEEN_TOKENS_FLOOR_S": "0.6",
    "POTLUCK_LOAD_ALLOWANCE_S": "0.4",
    "POTLUCK_SILENCE_CEILING_S": "3",
    "POTLUCK_BREAKER_REST_S": "0.5",
    "POTLUCK_BREAKER_LONGEST_REST_S": "2",
    "POTLUCK_PROBE_INTERVAL_S": "0.5",
    "POTLUCK_PROBE_TIMEOUT_S": "0.4",
    "POTLUCK_PROBE_RETRY_S": "0.1",
    "POTLUCK_RETRY_BUDGET_FLOOR": "100",
    "POTLUCK_CACHE_ENTRIES": "256",
}


@dataclass(slots=True)
class Tally:
    """What became of all requests."""

    asked: int = 0
    whole: int = 0
    left: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)
    caches: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, float]] = field(default_factory=list)  # (requests, KiB)

    def add(self, question: Question, reading: Reading, findings: list[str]) -> None:
        if reading.left:
            self.left += 1
        elif reading.error is not None:
            self.errors[reading.error] += 1
        else:
            self.whole += 1
        for finding in findings:
            self.find(finding, f"{question.way} {question.body}")

    def find(self, finding: str, about: str) -> None:
        self.findings[finding.partition(":")[0]] += 1
        if len(self.samples) < SAMPLES:
            self.samples.append(f"{finding} -- {about[:300]}")
            print(f"FINDING {self.samples[-1]}", flush=True)


def phone_settings(group: str, index: int) -> PhoneSettings:
    """Half of the phones speak at once, half at a pace; one in three takes two requests at a time."""
    name = model_of(group)
    digest = hashlib.sha256(f"{name} {group}".encode()).hexdigest()
    return PhoneSettings(
        version=VERSIONS[index % len(VERSIONS)],
        models=(FakeModel(name, digest),),
        template=group,  # type: ignore[arg-type]
        tokens_per_second=8.0 if index % 2 else 0.0,
        prompt_tokens_per_second=30.0 if index % 2 else 0.0,
        load_seconds=2.0,
        time_scale=0.004,
        burst=3,
        num_parallel=2 if index % 3 == 0 else 1,
        answer_tokens=(8, 48),
        log_size=1,
        seed=index,
    )


class Soak:
    """One run: phones and clients here, the gateway in a process of its own."""

    def __init__(self, phones: list[FakePhone], server: Server, arguments: argparse.Namespace) -> None:
        self.tally = Tally()
        self.weather = Weather(phones, arguments.seed, arguments.weather_seconds)
        self._phones = phones
        self._server = server
        self._arguments = arguments
        self._questions = Questions(arguments.seed)
        self._judge = Judge({group: phone_settings(group, 0) for group in GROUPS})
        self._session: aiohttp.ClientSession | None = None

    async def run(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        async with aiohttp.ClientSession(self._server.url, connector=connector, timeout=timeout) as self._session:
            await self._wait_for_fleet()
            while self.tally.asked < self._arguments.requests:
                goal = min(self._arguments.requests, self.tally.asked + self._arguments.piece)
                await self._storm(goal)
                await self._look_around()

    async def _storm(self, goal: int) -> None:
        """Clients ask until `goal` requests have been asked; then the weather clears."""
        blowing = asyncio.create_task(self.weather.blow())
        try:
            await asyncio.gather(*(self._client(goal) for _ in range(self._arguments.clients)))
        finally:
            blowing.cancel()
            await asyncio.gather(blowing, return_exceptions=True)
            await self.weather.clear_up()

    async def _client(self, goal: int) -> None:
        while self.tally.asked < goal:
            self.tally.asked += 1
            question = self._questions.next()
            reading = await self._ask(question)
            self.tally.add(question, reading, self._judge.findings(question, reading))

    async def _ask(self, question: Question) -> Reading:
        """One exchange; some clients leave before its end."""
        if question.stream or question.leaves_after is None:
            return await self._exchange(question)
        asking = asyncio.create_task(self._exchange(question))
        await asyncio.wait((asking,), timeout=question.leaves_after)
        if asking.done():
            return asking.result()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return Reading(left=True)

    async def _exchange(self, question: Question) -> Reading:
        assert self._session is not None
        try:
            async with self._session.post(question.path, json=question.body, headers=question.headers) as answer:
                self.tally.caches[answer.headers.get("X-Cache", "none")] += 1
                if not question.stream or answer.status != 200:
                    return await self._read_whole(question, answer)
                return await self._read_stream(question, answer)
        except TimeoutError:
            return Reading(broken=f"no end within {ANSWER_SECONDS:.0f} s")
        except aiohttp.ClientError as problem:
            return Reading(broken=f"the connection broke: {problem!r}")

    async def _read_whole(self, question: Question, answer: aiohttp.ClientResponse) -> Reading:
        return read_whole(question, answer.status, await answer.read())

    async def _read_stream(self, question: Question, answer: aiohttp.ClientResponse) -> Reading:
        body = bytearray()
        pieces = 0
        try:
            async for piece in answer.content.iter_any():
                body += piece
                pieces += 1
                if question.leaves_after is not None and pieces > question.leaves_after:
                    answer.close()
                    reading = read_stream(question, answer.status, bytes(body), whole=False)
                    reading.left = reading.ends == 0
                    return reading
        except aiohttp.ClientPayloadError as problem:
            reading = read_stream(question, answer.status, bytes(body), whole=False)
            reading.broken = f"the body broke off: {problem}"
            return reading
        return read_stream(question, answer.status, bytes(body))

    async def _wait_for_fleet(self) -> None:
        deadline = time.monotonic() + SETTLING_SECONDS * 2
        while time.monotonic() < deadline:
            nodes = (await self._fetch("/health"))["nodes"]
            if all(node["status"] == "ready" for node in nodes):
                return
            await asyncio.sleep(0.2)

    async def _look_around(self) -> None:
        """All clients are gone: nothing may run any more, here, there or on a phone."""
        deadline = time.monotonic() + SETTLING_SECONDS
        for what in await self._busy_until(deadline):
            self.tally.find(f"left behind: {what}", f"after {self.tally.asked} requests")
        self.tally.memory.append((self.tally.asked / 1000, self._server.rss_mib * 1024))
        rss, errors = self._server.rss_mib, sum(self.tally.errors.values())
        done = f"{self.tally.whole} whole, {errors} errors, {self.tally.left} left"
        print(
            f"{self.tally.asked:7} asked: {done}, {sum(self.tally.findings.values())} findings, {rss} MiB", flush=True
        )

    async def _busy_until(self, deadline: float) -> list[str]:
        """Whoever still works, once nobody does or the time is over."""
        for _ in range(10_000):
            busy = await self._busy()
            if not busy or time.monotonic() > deadline:
                return busy
            await asyncio.sleep(0.1)
        return busy

    async def _busy(self) -> list[str]:
        busy = []
        for index, phone in enumerate(self._phones):
            counters = phone.counters
            if counters.generating or counters.waiting:
                busy.append(f"phone {index} works: {counters.generating} generating, {counters.waiting} waiting")
        health = await self._fetch("/health")
        if health["queue"]["waiting"]:
            busy.append(f"{health['queue']['waiting']} wait in the queue")
        busy += [f"{node['name']} in flight: {node['in_flight']}" for node in health["nodes"] if node["in_flight"]]
        return busy

    async def _fetch(self, path: str) -> Any:
        assert self._session is not None
        async with self._session.get(path) as answer:
            return await answer.json()

    async def books(self) -> defaultdict[str, float]:
        """The gateway's own count of ended requests by how they ended, and of what it did about failures."""
        async with aiohttp.ClientSession(self._server.url) as session, session.get("/metrics") as answer:
            text = await answer.text()
        sums: defaultdict[str, float] = defaultdict(float)
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            metric, _, labels = name.partition("{")
            if metric == "potluck_requests_total":
                sums[f"requests {labels.rpartition('outcome=')[2].strip('}').strip(chr(34))}"] += float(value)
            elif metric in ("potluck_retries_total", "potluck_attempt_failures_total"):
                sums[metric] += float(value)
            elif metric == "potluck_resumed_answers_total":
                sums[f"resumed by {labels.rpartition('way=')[2].strip('}').strip(chr(34))}"] += float(value)
        return sums


async def soak(arguments: argparse.Namespace, report: Report) -> None:
    phones = [FakePhone(phone_settings(group, index)) for index in range(8) for group in GROUPS]
    with tempfile.TemporaryDirectory(prefix="potluck-bench-") as folder:
        for phone in phones:
            await phone.start()
        entries = [{"max_concurrency": phone.settings.num_parallel} for phone in phones]
        fleet = write_fleet(Path(folder) / "phones.json", [phone.port for phone in phones], entries)
        environment = {**LIMITS, "POTLUCK_PHONES_FILE": str(fleet), "POTLUCK_EMBEDDED_NODE": "off"}
        program = uvicorn("gateway", "server:app", free_ports(1)[0], arguments.core, environment)
        server = Server(program, Path(folder))
        try:
            await asyncio.to_thread(server.__enter__)
            run = Soak(phones, server, arguments)
            began, cpu = time.monotonic(), server.cpu.total
            await run.run()
            seconds = time.monotonic() - began
            tell(report, run, await run.books(), (seconds, server.cpu.total - cpu))
            report.figures["gateway_log_faults"] = faults_in(server.log)
        finally:
            server.stop()
            for phone in phones:
                await phone.stop()


def faults_in(log: Path) -> int:
    """Lines in the gateway's log that tell of a fault of its own."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    wrong = [line for line in lines if "Traceback" in line or "fault of ours" in line or '"level":"error"' in line]
    for line in wrong[:5]:
        print(f"gateway's log: {line[:200]} ... {line[-700:]}", file=sys.stderr)
    return len(wrong)


def tell(report: Report, run: Soak, books: defaultdict[str, float], spent: tuple[float, float]) -> None:
    tally = run.tally
    half = tally.memory[len(tally.memory) // 2 :] if len(tally.memory) > 3 else tally.memory
    growth = slope(half)
    heard, told = tally.whole + sum(tally.errors.values()), books["requests done"] + books["requests failed"]
    ended = told + books["requests cancelled"]
    unbooked = max(0.0, heard - told) + max(0.0, ended - tally.asked)  # who left early may never have been booked
    report.figures |= {
        "requests": tally.asked,
        "per_second": tally.asked / spent[0],
        "gateway_cpu_ms_per_request": spent[1] / tally.asked * 1000,
        "whole_and_right": tally.whole,
        "clients_left": tally.left,
        "honest_errors": dict(tally.errors),
        "honest_error_share": sum(tally.errors.values()) / tally.asked,
        "findings": dict(tally.findings),
        "finding_samples": tally.samples,
        "cache": dict(tally.caches),
        "books": dict(books),
        "weather": dict(run.weather.came),
        "faults_struck": dict(sum((phone.counters.faults for phone in run.weather.phones), Counter())),
        "memory_kib": tally.memory,
        "memory_growth_kib_per_1000": growth,
    }
    print(table(["honest errors", "requests", "share"], [[c, n, n / tally.asked] for c, n in tally.errors.items()]))
    print(table(["the gateway's books", "count"], [[name, count] for name, count in sorted(books.items())]))
    wrong = float(sum(count for name, count in tally.findings.items() if not name.startswith("left behind")))
    left = float(sum(count for name, count in tally.findings.items() if name.startswith("left behind")))
    report.targets = [
        at_most("answers lost, repeated, spliced, cut unseen, or with more or less than one end", wrong, 0),
        at_most("work left behind after a storm", left, 0),
        at_most("requests without exactly one end in the gateway's books", unbooked, 0),
        at_most("memory growth in the second half, KiB per 1,000 requests", growth, FLAT_KIB),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--piece", type=int, default=2_500, help="requests between two pauses")
    parser.add_argument("--clients", type=int, default=64, help="who ask at the same time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--weather-seconds", type=float, default=0.012, help="between two changes of a phone's state")
    parser.add_argument("--core", type=int, help="bind the gateway to one core")
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    report = Report("soak", vars(arguments))
    uvloop.run(soak(arguments, report))
    report.finish(write=not arguments.no_write)


if __name__ == "__main__":
    main()
