"""Workers in threads of this process, and a head that says by hand what each of them is to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy

from gpu_node.engine.step import BlockCopy, Row
from gpu_node.engine.step_shares import StepShare
from gpu_node.pipeline.control import WORKER_SETTINGS, ControlLink
from gpu_node.pipeline.ends import HEAD, LinkEnds
from gpu_node.pipeline.errors import LinkRefused
from gpu_node.pipeline.gate import Gate, connect_link
from gpu_node.pipeline.heart import Heart
from gpu_node.pipeline.links import Link
from gpu_node.pipeline.orders import (
    AnyPlace,
    Busy,
    Done,
    Failed,
    Hello,
    Load,
    Loaded,
    LoadWords,
    Progress,
    Report,
    Take,
    Taken,
    control_ends,
)
from gpu_node.pipeline.step_frames import RING_SETTINGS, Room, Rows, StepFailure, receive_answer, send_step
from gpu_node.pipeline.step_message import StepMessage, pack_step
from gpu_node.pipeline.surroundings import WorkerPlace
from gpu_node.pipeline.worker import Worker
from tests.fakes.tiny_model import VOCABULARY

TOKEN = "of this test"
HIDDEN = 32
PATIENCE_SECONDS = 60.0
WORDS = LoadWords(kernels="torch", threads=1)
BLOCK, BLOCKS = 4, 64


class Known:
    """One worker as the head sees it."""

    def __init__(self, number: int, control: ControlLink) -> None:
        self.number, self.control = number, control
        self.other: list[Any] = []  # what came and was not waited for
        hello = self.awaited(Hello)
        self.hello: Hello = hello

    def awaited(self, *kinds: type) -> Any:
        """The next answer of these kinds; progress and the like is noted."""
        while True:
            said = self.control.receive(PATIENCE_SECONDS)
            if isinstance(said, kinds):
                return said
            assert isinstance(said, (Progress, Report, Busy)), said
            self.other.append(said)

    def ask(self, order: Any) -> Any:
        self.control.send(order)
        answer = self.awaited(Loaded, Taken, Done, Failed)
        assert answer.number == order.number
        return answer

    def progress(self) -> list[Progress]:
        return [said for said in self.other if isinstance(said, Progress)]


class Crowd:
    def __init__(self, folder: Path) -> None:
        self.gate = Gate(str(folder / "head"), TOKEN, WORKER_SETTINGS)  # nobody is frozen here
        self.heart = Heart()
        self.heart.start()
        self.workers: list[Worker] = []
        self.known: list[Known] = []
        self._threads: list[threading.Thread] = []
        self._number = 100

    def add(self, worker: Worker | None = None) -> Known:
        """One more, in a thread."""
        number = len(self.known)
        worker = worker or Worker(self.place(number))
        thread = threading.Thread(target=worker.run, name=f"worker {number}", daemon=True)
        thread.start()
        self.workers.append(worker)
        self._threads.append(thread)
        return self.admit(number)

    def place(self, number: int) -> WorkerPlace:
        assert isinstance(self.gate.place, str)
        return WorkerPlace(self.gate.place, number, TOKEN, f"cpu:{number}")

    def admit(self, *numbers: int, within_seconds: float = PATIENCE_SECONDS) -> Known:
        """All of them, in the order in which they come; the last one's number is returned as it is known."""
        awaited, links = {control_ends(number) for number in numbers}, {}
        while awaited:
            link = self.gate.admit(awaited, within_seconds)
            self.heart.add(link)
            awaited.remove(link.ends)
            links[link.ends] = link
        self.known += [Known(number, ControlLink(links[control_ends(number)])) for number in numbers]
        return self.known[-1]

    def number(self) -> int:
        self._number += 1
        return self._number

    def load(self, at: int, path: Path, first: int, behind: int, **more: Any) -> Any:
        words = more.pop("words", WORDS)
        return self.known[at].ask(Load(self.number(), str(path), first, behind, words, **more))

    def ended(self, at: int) -> bool:
        self._threads[at].join(PATIENCE_SECONDS)
        return not self._threads[at].is_alive()

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        self.heart.stop()
        for known in self.known:
            known.control.link.close()
        self.gate.close()
        assert not any(thread.is_alive() for thread in self._threads), "a worker hangs"


@contextmanager
def crowd(folder: Path, count: int = 0) -> Iterator[Crowd]:
    found = Crowd(folder)
    try:
        for _ in range(count):
            found.add()
        yield found
    finally:
        found.close()


class Ring:
    """The head's ends of an epoch, and the steps that it sends through it."""

    def __init__(self, first: Link, last: Link, heart: Heart) -> None:
        self.first, self.last = first, last
        self._room, self._number = Room(), 0
        self._heart = heart
        for link in (first, last):
            heart.add(link)

    def send(self, rows: Sequence[Row], want: str, copies: Sequence[BlockCopy] = ()) -> int:
        self._number += 1
        message = StepMessage(self._number, tuple(rows), want, tuple(copies))  # type: ignore[arg-type]
        send_step(self.first, pack_step(message), self._number)
        return self._number

    def receive(self, number: int, outputs: int, want: str) -> Any:
        """An array, None, or the failure."""
        width = VOCABULARY if want == "logits" else HIDDEN
        found = receive_answer(self.last, number, (outputs, width), self._room)
        if isinstance(found, Rows):
            return numpy.frombuffer(found.data, "<f4").reshape(found.shape).copy()
        return found

    def run(self, *rows: Row, copies: Sequence[BlockCopy] = ()) -> dict[int, Any]:
        """As `Runner.run` without picks: the outputs of each row that has some."""
        found: dict[int, Any] = {}
        for share in StepShare.of(rows):
            mine = [rows[at] for at in share.indices]
            outputs = sum(row.output_tokens for row in mine)
            answer = self.receive(self.send(mine, share.want, copies), outputs, share.want)
            assert not isinstance(answer, StepFailure), answer
            copies = ()
            for at, place in share.places(rows).items():
                if rows[at].output_tokens:
                    found[at] = answer[place : place + rows[at].output_tokens]
        return found

    def close(self) -> None:
        for link in (self.first, self.last):
            self._heart.remove(link)
            link.close()


@contextmanager
def ring_of(
    crowd: Crowd,
    parts: Sequence[int],
    epoch: int = 1,
    blocks: int = BLOCKS,
    order: Sequence[int] = (),
    near: Sequence[int] = (),
    ignoring: int = 0,
    taken: list[Any] | None = None,
    **more: Any,
) -> Iterator[Ring]:
    """The workers' parts (numbers of their Loads) as one epoch; `order`: which worker is which stage; `near`: how many
    blocks each has of its own; `ignoring`: so many failures of orders before; `taken`: where answers go."""
    order = order or range(len(parts))
    stages = [crowd.known[at] for at in order]
    assert isinstance(crowd.gate.place, str)
    with ExitStack() as stack:
        gate = stack.enter_context(Gate(f"{crowd.gate.place}{epoch}", TOKEN, RING_SETTINGS))
        places = [*(known.hello.place for known in stages[1:]), gate.place]
        for stage, (known, part) in enumerate(zip(stages, parts, strict=True)):
            own = near[stage] if near else blocks
            take = Take(crowd.number(), part, epoch, stage, len(parts), BLOCK, blocks, own, places[stage], **more)
            known.control.send(take)
        first = connected(stages[0].hello.place, LinkEnds(HEAD, 0, epoch))
        stack.callback(first.close)
        last = gate.admit([LinkEnds(len(parts) - 1, HEAD, epoch)], PATIENCE_SECONDS)
        stack.callback(last.close)
        for known in stages:
            answer = known.awaited(Taken, Failed)
            while isinstance(answer, Failed) and ignoring:
                known.other.append(answer)
                answer, ignoring = known.awaited(Taken, Failed), ignoring - 1
            assert isinstance(answer, Taken), answer
            if taken is not None:
                taken.append(answer)
        ring = Ring(first, last, crowd.heart)
        stack.callback(ring.close)
        yield ring


def connected(place: AnyPlace, ends: LinkEnds) -> Link:
    """Refused for as long as the worker is in an older epoch."""
    while True:
        with suppress(LinkRefused):
            return connect_link(place, ends, TOKEN, RING_SETTINGS, PATIENCE_SECONDS)


def eventually(holds: Any) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(holds())
