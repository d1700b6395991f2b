"""Workers as processes: the numbers of one runner, and an end in every way that ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.loader import LoadOptions, load_runner
from gpu_node.engine.step import Row, Step
from gpu_node.pipeline.orders import place_text
from gpu_node.pipeline.worker import main
from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.pipeline.worker_crowd import BLOCK, BLOCKS, TOKEN, Crowd, crowd, ring_of

ROWS = (Row(1, (5, 6, 7, 8, 9), 0, (3, 9), "logits", 2),)

# Importing torch takes seconds, on a machine with much to do some tens of them.
START_SECONDS = 120.0


def started(workers: Crowd, number: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gpu_node.pipeline.worker", place_text(workers.gate.place), str(number), "cpu:7"]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert child.stdin is not None
    child.stdin.write(TOKEN.encode() + b"\n")
    child.stdin.close()
    child.stdin = None  # `communicate` would write to it
    return child


@pytest.fixture
def children(tmp_path: Path) -> Iterator[tuple[Crowd, list[subprocess.Popen[bytes]]]]:
    with crowd(tmp_path) as workers:
        found: list[subprocess.Popen[bytes]] = []
        try:
            found += [started(workers, number) for number in range(2)]
            workers.admit(0, 1, within_seconds=START_SECONDS)
            yield workers, found
        finally:
            for child in found:
                child.kill()
                child.communicate()


def test_processes_compute_and_end(
    children: tuple[Crowd, list[subprocess.Popen[bytes]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), num_hidden_layers=3)
    workers, processes = children
    for known, process in zip(workers.known, processes, strict=True):
        hello = known.hello
        assert (hello.pid, hello.device) == (process.pid, "cpu:7") and 0 < hello.free_bytes <= hello.total_bytes
        assert hello.start_seconds > 0
    runner = load_runner(
        folder,
        LoadOptions("cpu", threads=1, kernels="torch", cache=CacheOptions(block_tokens=BLOCK, block_count=BLOCKS)),
    )
    wanted = runner.run(Step(ROWS), ()).arrays[0]
    runner.close()
    parts = [workers.load(0, folder, 0, 1).number, workers.load(1, folder, 1, 3).number]
    with ring_of(workers, parts) as ring:
        assert numpy.array_equal(ring.run(*ROWS)[0], wanted)
        processes[0].send_signal(signal.SIGINT)  # Ctrl-C at a terminal, which is the head's to hear
        assert numpy.array_equal(ring.run(*ROWS)[0], wanted)
        processes[0].send_signal(signal.SIGTERM)
        workers.known[1].control.link.close()
        said = [process.communicate(timeout=30)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert all(TOKEN.encode() not in each for each in said)
    places = [known.hello.place for known in workers.known]
    assert not any(Path(place).exists() for place in places if isinstance(place, str))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], 2), (["/nowhere"], 2), (["/nowhere", "first"], 2), (["nowhere", "0"], 2), (["/nowhere", "0"], 1)],
)
def test_a_start_that_cannot_be_is_told(arguments: list[str], code: int, tmp_path: Path) -> None:
    """In a process of its own these would be its last words; signals of this one stay as they were."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        assert main(arguments, lambda: f"{TOKEN}\n") == code
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
