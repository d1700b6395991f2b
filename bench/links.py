"""What a hop between two stages costs: a frame to another process and back, by size, on Unix sockets and TCP.

Beside it the same bytes on a bare socket, gather write and receiving into place, with nothing around them. All ways
take turns within each round; the processes have a core each. A hop is half a round trip. What a link adds to the bare
socket is its software; what both share is the kernel's. `--echo PLACE` is the other process; it is also killed and
frozen, to see how soon that is noticed.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.rig.report import Report, at_most, median, percentile, table
from bench.rig.servers import ROOT, on_core
from gpu_node.pipeline.ends import HEAD, LinkEnds, LinkSettings
from gpu_node.pipeline.errors import LinkError
from gpu_node.pipeline.gate import Gate, Place, connect_link
from gpu_node.pipeline.heart import Heart
from gpu_node.pipeline.links import Link
from wire.tensors import DType, TensorFlags, TensorHeader

KIB, MIB = 1 << 10, 1 << 20
SIZES = (8 * KIB, 64 * KIB, MIB)
WAYS = ("unix link", "unix bare", "tcp link", "tcp bare", "tcp link, checked")
TOKEN = "a token of the measurement"
ENDS = LinkEnds(HEAD, 0, 1)
SETTINGS = LinkSettings(frame_bytes=MIB)
WANTED_US = 150.0  # a hop of 64 KB
WANTED_DETECTION_SECONDS = 0.5
BEFORE_SECONDS = 1.0
HERE_CORE, THERE_CORE = 0, 1


class BareLine:
    """A socket and two buffers; the other side knows the size."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._room = memoryview(bytearray(MIB))

    def send(self, data: memoryview) -> None:
        sent = self._line.sendmsg([data])
        while sent < len(data):
            sent += self._line.sendmsg([data[sent:]])

    def receive(self, size: int) -> memoryview:
        done = 0
        while done < size:
            count = self._line.recv_into(self._room[done:size])
            if not count:
                raise EOFError
            done += count
        return self._room[:size]

    def close(self) -> None:
        self._line.close()


def header_of(size: int, checked: bool) -> TensorHeader:
    flags = TensorFlags.LAST | (TensorFlags.CHECKED if checked else TensorFlags.NONE)
    return TensorHeader(DType.UINT8, (size,), size, flags=flags)


def link_turn(link: Link, size: int, checked: bool) -> Callable[[memoryview], None]:
    header = header_of(size, checked)  # a stage's steps have few shapes, too

    def turn(data: memoryview) -> None:
        link.send(header, data)
        link.receive()

    return turn


def bare_turn(line: BareLine) -> Callable[[memoryview], None]:
    def turn(data: memoryview) -> None:
        line.send(data)
        line.receive(len(data))

    return turn


def measure(turn: Callable[[memoryview], None], size: int, times: int) -> list[float]:
    """Microseconds of a hop. The first few find warm buffers for the others."""
    data = memoryview(bytearray(size))
    for _ in range(5):
        turn(data)
    samples = []
    for _ in range(times):
        began = time.perf_counter_ns()
        turn(data)
        samples.append((time.perf_counter_ns() - began) / 2000)
    return samples


def echo_link(link: Link) -> None:
    with link, Heart() as heart:
        heart.add(link)
        header: TensorHeader | None = None
        try:
            while True:
                frame = link.receive()
                header = header or frame.header
                link.send(header, frame.data)
        except LinkError:
            return


def echo_bare(line: socket.socket, size: int) -> None:
    bare = BareLine(line)
    with line:
        try:
            while True:
                bare.send(bare.receive(size))
        except (EOFError, ConnectionError):
            return


def serve(arguments: argparse.Namespace) -> None:
    """One client, and then the end."""
    place = place_of(arguments.echo)
    if not arguments.bare:
        with Gate(place, TOKEN, SETTINGS) as gate:
            print(place_text(gate.place), flush=True)
            echo_link(gate.admit([ENDS], 60))
        return
    family = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind(place)
        listener.listen(1)
        print(place_text(listener.getsockname()), flush=True)
        line, _ = listener.accept()
    if family == socket.AF_INET:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    echo_bare(line, arguments.bare)


def place_of(text: str) -> Place:
    host, colon, port = text.rpartition(":")
    return (host, int(port)) if colon else text


def place_text(place: Place) -> str:
    return place if isinstance(place, str) else f"{place[0]}:{place[1]}"


@contextmanager
def other_process(folder: Path, name: str, bare: int) -> Iterator[tuple[Place, subprocess.Popen[str]]]:
    """The echo in a process of its own; `bare` is the size of its turns, 0 for a link."""
    where = str(folder / f"{time.monotonic_ns()}.sock") if name.startswith("unix") else "127.0.0.1:0"
    command = [sys.executable, "-m", "bench.links", "--echo", where, "--bare", str(bare)]
    with subprocess.Popen(on_core(THERE_CORE, command), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield place_of(process.stdout.readline().strip()), process
        finally:
            process.terminate()


@contextmanager
def way(folder: Path, name: str, size: int) -> Iterator[Callable[[memoryview], None]]:
    bare = size if "bare" in name else 0
    with other_process(folder, name, bare) as (place, _), ExitStack() as stack:
        if bare:
            line = socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET)
            stack.callback(line.close)
            line.connect(place)
            if line.family == socket.AF_INET:
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield bare_turn(BareLine(line))
        else:
            link = stack.enter_context(connect_link(place, ENDS, TOKEN, SETTINGS))
            heart = stack.enter_context(Heart())
            heart.add(link)
            yield link_turn(link, size, "checked" in name)


def measure_size(folder: Path, size: int, rounds: int, times: int) -> dict[str, Any]:
    samples: dict[str, list[float]] = {name: [] for name in WAYS}
    with ExitStack() as stack:
        turns = {name: stack.enter_context(way(folder, name, size)) for name in WAYS}
        for _ in range(rounds):
            for name, turn in turns.items():
                samples[name] += measure(turn, size, times)
    return {name: {"median_us": median(found), "p90_us": percentile(found, 0.9)} for name, found in samples.items()}


def detection_seconds(folder: Path, number: signal.Signals) -> float:
    """From the moment in which the other process is killed or frozen until whoever waits for it knows."""
    with other_process(folder, "unix link", 0) as (place, process), ExitStack() as stack:
        link = stack.enter_context(connect_link(place, ENDS, TOKEN, SETTINGS))
        heart = stack.enter_context(Heart())
        heart.add(link)
        killer = threading.Timer(BEFORE_SECONDS, process.send_signal, [number])
        began = time.perf_counter()
        killer.start()
        try:
            link.receive(within_seconds=60)
        except LinkError:
            return time.perf_counter() - began - BEFORE_SECONDS
        finally:
            killer.join()
            process.kill()
    raise SystemExit("a dead stage has answered")


def show(hops: dict[str, Any], noticed: dict[str, list[float]]) -> None:
    rows = [
        [f"{int(size) // KIB} KB, {name}", figures["median_us"], figures["p90_us"]]
        for size, ways in hops.items()
        for name, figures in ways.items()
    ]
    print(table(["a hop, microseconds", "median", "p90"], rows))
    deaths = [[word, median(seconds), max(seconds)] for word, seconds in noticed.items()]
    print(table(["noticed after, seconds", "median", "worst"], deaths))


def judge(report: Report, hops: dict[str, Any], noticed: dict[str, list[float]]) -> None:
    ways = hops[str(64 * KIB)]
    for name in ("unix", "tcp"):
        whole, bare = (ways[f"{name} {kind}"]["median_us"] for kind in ("link", "bare"))
        report.targets.append(at_most(f"a hop of 64 KB, {name}", whole, WANTED_US, " us"))
        report.targets.append(at_most(f"what the link adds to the bare {name} socket", whole - bare, WANTED_US, " us"))
    worst = max(second for seconds in noticed.values() for second in seconds)
    report.targets.append(at_most("a death is noticed", worst, WANTED_DETECTION_SECONDS, " s"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--times", type=int, default=100, help="round trips of each way in a round")
    parser.add_argument("--deaths", type=int, default=5, help="of the other process, each by killing and by freezing")
    parser.add_argument("--no-write", action="store_true", help="do not write the result file")
    parser.add_argument("--echo", metavar="PLACE", help="be the other process")
    parser.add_argument("--bare", type=int, default=0, metavar="BYTES", help="with --echo: no link, turns of that size")
    arguments = parser.parse_args()
    if arguments.echo:
        serve(arguments)
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {HERE_CORE})
    report = Report("links", vars(arguments))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hops = {str(size): measure_size(folder, size, arguments.rounds, arguments.times) for size in SIZES}
        noticed = {
            word: [detection_seconds(folder, number) for _ in range(arguments.deaths)]
            for word, number in (("killed", signal.SIGKILL), ("frozen", signal.SIGSTOP))
        }
    report.figures = {"hops": hops, "noticed_seconds": noticed}
    show(hops, noticed)
    judge(report, hops, noticed)
    report.finish(write=not arguments.no_write)


if __name__ == "__main__":
    main()
