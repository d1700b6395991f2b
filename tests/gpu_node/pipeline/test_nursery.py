"""Workers that are copies of a template are workers like any other, whatever becomes of it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from gpu_node.devices import Device
from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.loader import LoadOptions, load_runner
from gpu_node.engine.step import Row, Step
from gpu_node.pipeline.nursery import Nursery
from gpu_node.pipeline.process import ChildWorker, WorkerWords
from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.pipeline.worker_crowd import BLOCK, BLOCKS, TOKEN, Crowd, crowd, eventually, ring_of

ROWS = (Row(1, (5, 6, 7, 8, 9), 0, (3, 9), "logits", 2),)
# Importing torch takes seconds, on a machine with much to do some tens of them.
START_SECONDS = 120.0
END_SECONDS = 30.0
CPU = Device("cpu:7", "cpu", 7)
NOBODY = WorkerWords("/nowhere/at/all", 0, CPU, TOKEN)


class Plain(ChildWorker):
    """In place of what imports torch for seconds."""

    command = (sys.executable, "-c", "import sys; print('plainly', file=sys.stderr); sys.exit(len(input()) and 3)")


def pieces(text: str) -> tuple[str, str, str]:
    """A template that does this, once it has said that it is ready."""
    start = (
        "import os, socket, sys, time, signal\n"
        "from gpu_node.pipeline.births import *\n"
        "from gpu_node.pipeline import births, template\n"
        "line = socket.socket(fileno=os.dup(0))\n"
    )
    return sys.executable, "-c", start + text


def words_of(workers: Crowd, number: int, device: Device = CPU) -> WorkerWords:
    return WorkerWords(workers.gate.place, number, device, TOKEN)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def await_end(*pids: int, within_seconds: float = END_SECONDS) -> bool:
    """Whoever's children they are."""
    for pid in pids:
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            end = select.poll()
            end.register(handle, select.POLLIN)
            over = end.poll(within_seconds * 1000)
            os.close(handle)
            if not over:
                return False
    return True


def descriptors(pid: int) -> dict[str, str]:
    """What each is; but for those that are closed meanwhile."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found[entry.name] = os.readlink(entry)
    return found


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """The real one, which imports for seconds, once."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    found = Nursery(patience_seconds=START_SECONDS)
    try:
        yield found
    finally:
        found.close()
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Crowd]:
    with crowd(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def template(nursery: Nursery) -> int:
    """Its process, before any test looks for what is new."""
    worker = nursery.start(NOBODY)
    assert worker.wait(START_SECONDS) and worker.ending.startswith("its process ended with code 1")
    assert nursery.pid is not None and nursery.pid != worker.pid
    return nursery.pid


def test_copies_compute_like_any_worker(
    nursery: Nursery, template: int, workers: Crowd, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), num_hidden_layers=3)
    options = LoadOptions("cpu", threads=1, kernels="torch", cache=CacheOptions(block_tokens=BLOCK, block_count=BLOCKS))
    alone = load_runner(folder, options)
    wanted = alone.run(Step(ROWS), ()).arrays[0]
    alone.close()
    processes = [nursery.start(words_of(workers, number)) for number in range(2)]
    workers.admit(0, 1, within_seconds=START_SECONDS)
    assert [known.hello.pid for known in workers.known] == [process.pid for process in processes]
    assert [known.hello.device for known in workers.known] == ["cpu:7", "cpu:7"]
    parts = [workers.load(0, folder, 0, 1).number, workers.load(1, folder, 1, 3).number]
    with ring_of(workers, parts) as ring:
        assert numpy.array_equal(ring.run(*ROWS)[0], wanted)
        pids = [process.pid or 0 for process in processes]
        assert [os.getsid(pid) for pid in (*pids, template)] == [*pids, template]
        os.kill(pids[0], signal.SIGINT)  # which is the head's to hear
        assert numpy.array_equal(ring.run(*ROWS)[0], wanted)
        os.kill(pids[0], signal.SIGTERM)
        workers.known[1].control.link.close()
        assert all(process.wait(END_SECONDS) for process in processes)
    assert [process.ending for process in processes] == ["its process ended with code 0"] * 2
    assert nursery.pid == template and is_alive(template)


def test_a_copy_has_nothing_of_others(nursery: Nursery, template: int, workers: Crowd) -> None:
    """Neither descriptors nor the token of anybody, and its own card in sight."""
    processes = [nursery.start(words_of(workers, number)) for number in range(2)]
    try:
        workers.admit(0, 1, within_seconds=START_SECONDS)
        for process in processes:
            links = descriptors(process.pid or 0)
            assert links["0"].startswith("pipe:") and links["1"] == "/dev/null" and links["2"].startswith("pipe:")
            # The worker's own: its control link, its gate and what waits at it.
            assert not any(
                link.startswith(("pipe:", "anon_inode:[pidfd]")) for at, link in links.items() if int(at) > 2
            )
            known = (
                Path(f"/proc/{process.pid}/cmdline").read_bytes() + Path(f"/proc/{process.pid}/environ").read_bytes()
            )
            assert TOKEN.encode() not in known
            assert Path(f"/proc/{process.pid}/comm").read_text() == "worker cpu:7\n"
        # The line, and two handles, once what it gave to them is closed and who came before is buried.
        assert eventually(lambda: len(descriptors(template)) == 6)
        assert "Threads:\t1\n" in Path(f"/proc/{template}/status").read_text()
    finally:
        for process in processes:
            process.kill()
    assert [process.ending for process in processes] == ["its process was killed by signal 9"] * 2


def test_one_that_is_frozen_is_killed(nursery: Nursery, template: int, workers: Crowd) -> None:
    worker = nursery.start(words_of(workers, 0))
    workers.admit(0, within_seconds=START_SECONDS)
    assert not worker.wait(0.0) and worker.ending == ""
    os.kill(worker.pid or 0, signal.SIGSTOP)
    worker.kill()
    worker.kill()
    assert worker.wait(0.0) and not is_alive(worker.pid or 0)
    assert is_alive(template)


def test_another_number_of_threads_is_another_process(nursery: Nursery, template: int, tmp_path: Path) -> None:
    """Libraries have read it when they were loaded."""
    plain: list[WorkerWords] = []
    found = Nursery(pieces("while line.recv(1): pass"), lambda words: plain.append(words) or Plain(words))  # type: ignore[func-returns-value]
    try:
        pending = found.start(NOBODY)
        assert not plain and pending.pid is None and pending.ending == ""
        os.environ["OMP_NUM_THREADS"] = "3"
        other = found.start(NOBODY)
        assert plain == [NOBODY] and other.wait(END_SECONDS)
    finally:
        found.close()
    assert pending.wait(0.0) and pending.ending == "its process was never started"


COPIES = """
line.send(births.CODEC.pack(Ready(0.1)))
newborn = template.Template(line).serve()
if newborn is not None:
    line.detach()
    template.become(newborn)
    seen = [os.environ.get(name) for name in ("SEEN", "CUDA_VISIBLE_DEVICES")]
    print(sys.stdin.readline().strip() == newborn.birth.arguments[2], *seen, file=sys.stderr)
    {then}
os._exit(0)
"""


def copying(then: str) -> tuple[str, str, str]:
    """A template that imports nothing, and whose copies do this."""
    return pieces(COPIES.format(then=then))


def test_the_last_words_of_a_copy_are_the_reason_that_people_are_told() -> None:
    nursery = Nursery(copying("os._exit(4)"), Plain)
    try:
        worker = nursery.start(replace(NOBODY, token="cpu:7"))
        assert worker.wait(END_SECONDS) and worker.ending == "its process ended with code 4: True None None"
    finally:
        nursery.close()


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("line.send(births.CODEC.pack(Unfit('it has 3 threads'))); line.recv(1)", "plainly"),
        ("line.recv(1); sys.exit(9)", "plainly"),
        ("line.recv(1); line.send(b'something else'); time.sleep(60)", "plainly"),
        ("line.send(births.CODEC.pack(Ready(0.1))); time.sleep(60)", "plainly"),
    ],
    ids=["threads", "dies", "raves", "freezes"],
)
def test_where_no_template_is_workers_are_started_plainly(does: str, told: str) -> None:
    nursery = Nursery(pieces(does), Plain, patience_seconds=0.1)
    try:
        worker = nursery.start(NOBODY)
        assert worker.wait(END_SECONDS) and worker.ending == f"its process ended with code 3: {told}"
        again = nursery.start(NOBODY)
        assert again.wait(END_SECONDS) and again.ending == worker.ending
        assert isinstance(again, Plain) == ("threads" in does)  # another one may do better, but for that
    finally:
        nursery.close()


def test_a_template_that_dies_again_and_again_is_not_asked_any_more() -> None:
    nursery = Nursery(pieces("line.recv(1); sys.exit(9)"), Plain)
    try:
        workers = [nursery.start(NOBODY)]
        for _ in range(3):
            assert workers[-1].wait(END_SECONDS)
            workers.append(nursery.start(NOBODY))
        assert workers[-1].wait(END_SECONDS) and isinstance(workers[-1], Plain)
    finally:
        nursery.close()


@pytest.mark.parametrize("kind", ["rocm", "xpu", "mps"])
def test_libraries_that_look_for_cards_when_they_are_loaded_are_not_copied(kind: str) -> None:
    nursery = Nursery(("/nowhere",), Plain)
    worker = nursery.start(WorkerWords("/nowhere", 0, Device(f"{kind}:0", kind, 0), TOKEN))
    assert isinstance(worker, Plain) and worker.wait(END_SECONDS)


def test_no_template_where_none_is_possible() -> None:
    nursery = Nursery(("/nowhere",), Plain, possible=False)
    worker = nursery.start(NOBODY)
    assert isinstance(worker, Plain) and worker.wait(END_SECONDS)
    nursery.close()
    missing = Nursery(("/nowhere",), Plain)
    worker = missing.start(NOBODY)
    assert isinstance(worker, Plain) and worker.wait(END_SECONDS)
    missing.close()
    assert isinstance(worker := missing.start(NOBODY), Plain) and worker.wait(END_SECONDS)


def test_workers_outlive_their_template() -> None:
    """How they end nobody knows any more, but that they do."""
    nursery = Nursery(copying("time.sleep(60)"), Plain)
    try:
        worker = nursery.start(NOBODY)
        while worker.pid is None:
            worker.wait(0.05)
        assert nursery.pid is not None
        os.kill(nursery.pid, signal.SIGKILL)
        while nursery.pid is not None:
            worker.wait(0.05)
        assert is_alive(worker.pid) and not worker.wait(0.0)
        worker.kill()
        assert worker.ending == "its process ended" and await_end(worker.pid)
    finally:
        nursery.close()


def test_who_is_killed_before_it_begins_ends_when_it_does(tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    waits = f"while not os.path.exists({str(go_on)!r}): time.sleep(0.01)\n"
    nursery = Nursery(pieces(waits + COPIES.format(then="time.sleep(60)")), Plain, patience_seconds=END_SECONDS)
    try:
        worker, other = nursery.start(NOBODY), nursery.start(NOBODY)
        worker.kill()
        assert worker.wait(0.0) and worker.ending == "its process was killed by signal 9" and worker.pid is None
        go_on.touch()
        while other.pid is None:
            other.wait(0.05)
        assert worker.pid is not None and await_end(worker.pid)
    finally:
        nursery.close()
    assert await_end(other.pid, within_seconds=0.0)


def test_workers_end_though_their_template_does_not() -> None:
    """It is frozen when the node is closed, and ends nobody."""
    nursery = Nursery(copying("time.sleep(60)"), Plain, close_seconds=0.1)
    try:
        worker = nursery.start(NOBODY)
        while worker.pid is None:
            worker.wait(0.05)
        os.kill(nursery.pid or 0, signal.SIGSTOP)
    finally:
        nursery.close()
    assert await_end(worker.pid, within_seconds=0.0) and worker.wait(0.0)


HEAD = """
import sys, time
from gpu_node.pipeline.nursery import Nursery
from gpu_node.pipeline.process import WorkerWords
from gpu_node.devices import Device
nursery = Nursery({command!r}) if {command!r} else Nursery()
workers = [nursery.start(WorkerWords("/nowhere", at, Device("cpu:0", "cpu", 0), "")) for at in range(2)]
while {waits} and any(worker.pid is None for worker in workers):
    workers[0].wait(0.05)
print(nursery.pid, *(worker.pid or 0 for worker in workers), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("command", "waits"),
    [
        (copying("time.sleep(60)"), True),
        ((), False),
        (copying("signal.pause() if os.fork() else time.sleep(60)"), True),
    ],
    ids=["workers that hang", "while it imports", "what workers have started"],
)
def test_a_node_that_is_killed_leaves_nothing(command: tuple[str, ...], waits: bool) -> None:
    head = HEAD.format(command=command, waits=waits)
    with subprocess.Popen([sys.executable, "-c", head], stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        pids = [int(pid) for pid in node.stdout.readline().split()]
        sessions = {pid for pid in pids if pid}
        assert all(map(is_alive, sessions))
        node.kill()
    deadline = time.monotonic() + END_SECONDS  # less than what hangs there hangs for
    while left := [pid for pid in of_sessions(sessions) if is_alive(pid)]:
        assert time.monotonic() < deadline and await_end(*left)


def of_sessions(sessions: set[int]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) in sessions:
                found.append(int(entry.name))
    return found


def test_surroundings_reach_a_copy() -> None:
    """As they are when it is asked for; and its own card alone."""
    nursery = Nursery(copying("os._exit(4)"), Plain)
    try:
        first = nursery.start(replace(NOBODY, token="cpu:7"))
        os.environ |= {"SEEN": "it", "CUDA_VISIBLE_DEVICES": "4,6"}
        card = Device("cuda:1", "cuda", 1)
        second = nursery.start(WorkerWords("/nowhere", 1, card, "cuda:1"))
        assert first.wait(END_SECONDS) and second.wait(END_SECONDS)
        told = ("True None None", "True it 6")
        assert [first.ending, second.ending] == [f"its process ended with code 4: {seen}" for seen in told]
    finally:
        del os.environ["SEEN"], os.environ["CUDA_VISIBLE_DEVICES"]
        nursery.close()
