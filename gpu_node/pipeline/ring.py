"""Steps on the ring of one epoch: sent to the first stage, answered by the last one, in their order.

A thread takes every answer as it comes, into rooms that were there before, so that no link fills up whatever is sent
meanwhile: stages never wait for the head. Invariants: one message on every link for each share of a step, counted; each
share gets exactly one outcome; all outcomes of a step are taken before anything of it is raised, so that the next
step's are its own; once a link is over every step fails with `StageLost`. `begin`, `finish` and `drop` are called by
one thread at a time. Must not know plans, workers or samplers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from gpu_node.engine.step import Step
from gpu_node.engine.step_shares import StepShare
from gpu_node.errors import BlocksLost, DeviceOutOfMemory, GenerationFailed, NodeError, StageLost
from gpu_node.pipeline.errors import LinkClosed, LinkError
from gpu_node.pipeline.links import Link
from gpu_node.pipeline.step_frames import Room, Rows, StepFailure, receive_answer, send_step
from gpu_node.pipeline.step_message import NUMBER_MOST, StepMessage, pack_step
from wire.errors import OutOfBounds


@dataclass(frozen=True, slots=True)
class RingShape:
    """What answers look like."""

    stages: int
    vocabulary: int
    hidden_size: int

    def answer(self, step: Step, share: StepShare) -> tuple[int, int]:
        """Rows and width of what the last stage sends for it."""
        if share.want == "nothing":
            return 0, self.hidden_size
        rows = sum(step.rows[at].output_tokens for at in share.indices)
        return rows, self.vocabulary if share.want == "logits" else self.hidden_size


@dataclass(frozen=True, slots=True)
class Awaited:
    number: int
    shape: tuple[int, int]
    room: Room


@dataclass(frozen=True, slots=True)
class Answered:
    """A step that came back. Its rows are valid until it is given back with `Ring.release`."""

    step: Step
    shares: Sequence[StepShare]
    outputs: Sequence[Rows | None]
    rooms: Sequence[Room]


@dataclass(frozen=True, slots=True)
class _Flying:
    step: Step
    shares: Sequence[StepShare]
    awaited: Sequence[Awaited]
    refusal: NodeError | None = None  # it was never sent


class Ring:
    def __init__(self, out: Link, back: Link, shape: RingShape, on_end: Callable[[LinkError], None]) -> None:
        """Takes both links over. `on_end` is called once, in the ring's thread, when they are over; not by `close`."""
        self.shape, self._out, self._back, self._on_end = shape, out, back, on_end
        self._flying: deque[_Flying] = deque()
        self._rooms: list[Room] = []
        self._awaited: SimpleQueue[Awaited | None] = SimpleQueue()
        self._outcomes: SimpleQueue[Rows | StepFailure | LinkError | None] = SimpleQueue()
        self._number = 0
        self._closing = False
        self.steps = self.sent = self.answered = 0
        self._reader = threading.Thread(target=self._read, name="answers of the pipeline", daemon=True)
        self._reader.start()

    @property
    def links(self) -> tuple[Link, Link]:
        return self._out, self._back

    @property
    def under_way(self) -> int:
        return len(self._flying)

    @property
    def over(self) -> str:
        """Why it can carry no step any more; empty while it can."""
        return next((str(link.end) for link in self.links if link.end is not None), "")

    def begin(self, step: Step) -> None:
        """Raises `StageLost`; the step is not under way then. What no message can hold is told by `finish`."""
        if self.over:
            raise _lost(self.over)
        shares = StepShare.of(step.rows)
        awaited, messages = [], []
        try:
            for index, share in enumerate(shares):
                self._number = self._number % NUMBER_MOST + 1
                rows = tuple(step.rows[at] for at in share.indices)
                copies = () if index else step.copies
                messages.append(pack_step(StepMessage(self._number, rows, share.want, copies)))
                awaited.append(Awaited(self._number, self.shape.answer(step, share), self._room()))
            if max(map(len, messages)) > self._out.most_bytes:
                raise OutOfBounds(f"{max(map(len, messages))} bytes; {self._out.most_bytes} are the most")
        except OutOfBounds as error:
            refusal = GenerationFailed(f"this step cannot be sent to the first stage: {error}")
            self._flying.append(_Flying(step, shares, (), refusal))
            return
        self._flying.append(_Flying(step, shares, awaited))
        try:
            for message, one in zip(messages, awaited, strict=True):
                self._awaited.put(one)
                send_step(self._out, message, one.number)
                self.sent += 1
        except LinkError as error:
            self._flying.pop()
            self._back.fail(error)  # whatever is still awaited does not come
            raise _lost(str(error)) from error

    def finish(self) -> Answered:
        """The oldest step under way. Raises `StageLost`, and what a stage said of the step."""
        flying = self._flying.popleft()
        if flying.refusal is not None:
            raise flying.refusal
        outcomes = [self._outcome() for _ in flying.awaited]
        rooms = [one.room for one in flying.awaited]
        failure = next((one for one in outcomes if isinstance(one, StepFailure)), None)
        if failure is not None:
            self._rooms += rooms
            raise _error_of(failure)
        self.steps += 1
        outputs = [None if isinstance(one, StepFailure) else one for one in outcomes]
        return Answered(flying.step, flying.shares, outputs, rooms)

    def release(self, answered: Answered) -> None:
        """Its rows are not needed any more."""
        self._rooms += answered.rooms

    def drop(self) -> None:
        """Let all that is under way run out."""
        while self._flying:
            try:
                self.release(self.finish())
            except NodeError:
                continue  # nobody wants to know

    def fail(self, error: LinkError) -> None:
        """Everything under way is lost; from any thread."""
        for link in self.links:
            link.fail(error)

    def close(self) -> None:
        self._closing = True
        for link in self.links:  # first, so that nothing is sent off any more that the reader does not know of
            link.close()
        self._awaited.put(None)
        self._reader.join()

    def _room(self) -> Room:
        return self._rooms.pop() if self._rooms else Room()

    def _outcome(self) -> Rows | StepFailure | None:
        found = self._outcomes.get()
        if isinstance(found, LinkError):
            self._outcomes.put(found)  # for whoever comes next
            raise _lost(str(found))
        return found

    def _read(self) -> None:
        try:
            while (one := self._awaited.get()) is not None:
                self._outcomes.put(receive_answer(self._back, one.number, one.shape, one.room))
                self.answered += 1
            self._outcomes.put(self._back.fail(LinkClosed("the ring was closed")))  # who waits all the same goes on
        except LinkError as error:
            self._out.fail(error)
            self._outcomes.put(error)
            if not self._closing:
                self._on_end(error)


def _lost(why: str) -> StageLost:
    return StageLost(f"a device that holds a part of the model is gone: {why}")


def _error_of(failure: StepFailure) -> NodeError:
    if failure.kind == "out_of_memory":
        return DeviceOutOfMemory(f"{failure.device} ran out of memory: {failure.message}")
    if failure.kind == "blocks_lost":
        return BlocksLost(failure.stage, f"{failure.device}: {failure.message}")
    return GenerationFailed(f"{failure.device}: {failure.message}")
