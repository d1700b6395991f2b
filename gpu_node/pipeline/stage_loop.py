"""The work of one stage: receive a step, compute its layers, rest, send on. One thread, until a link of it ends.

Invariants: every step that came is answered or handed on exactly once and in order; what goes wrong while computing is
that step's failure, and the next one is computed as if nothing had been. Must not know which layers these are, nor who
asked for them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpu_node.engine.batch import batch_of
from gpu_node.engine.chain import Part
from gpu_node.engine.step import Row
from gpu_node.memory.errors import LendingError
from gpu_node.pipeline.crossing import Crossing
from gpu_node.pipeline.errors import LinkError
from gpu_node.pipeline.links import Link
from gpu_node.pipeline.shortage import give_back, is_shortage
from gpu_node.pipeline.slow_down import Pace
from gpu_node.pipeline.step_frames import StepFailure, Work, receive_step, send_failure, send_hidden, send_output
from gpu_node.pipeline.step_message import StepBounds, StepMessage, pack_step

log = logging.getLogger("gpu_node.pipeline")


class StagePart(Protocol):
    """A part and the blocks of its cache, wherever they lie."""

    @property
    def device(self) -> torch.device: ...

    def compute(self, message: StepMessage, hidden: Tensor | None) -> Tensor:
        """Copies of blocks first, then the rows; as `Part.forward` answers. In inference mode."""
        ...

    def close(self) -> None:
        """The epoch is over; the part itself stays."""
        ...


@dataclass(frozen=True, slots=True)
class Seat:
    """Where in the ring a stage is."""

    before: Link
    behind: Link
    stage: int
    last: bool
    device: str  # for people

    @property
    def first(self) -> bool:
        return self.stage == 0


@torch.inference_mode()
def warm(part: Part) -> None:
    """Whatever is made at the first forward of a device is made: one token goes through, and is forgotten."""
    pool = part.pool
    assert pool is not None, "a cache is taken before"
    batch = batch_of((Row(0, (0,), 0, (0,), "logits", 1),), pool.block_tokens, part.device)
    part.forward(batch, torch.zeros(1, part.hidden_size, device=part.device), "logits")
    pool.clear((0,))


@dataclass(slots=True)
class Tally:
    """Written by the loop, read by whoever reports."""

    steps: int = 0
    tokens: int = 0
    failures: int = 0
    busy_seconds: float = 0.0


class StageLoop:
    def __init__(self, part: StagePart, seat: Seat, bounds: StepBounds, pace: Pace, tally: Tally) -> None:
        self._part, self._seat, self._bounds = part, seat, bounds
        self._pace, self._tally = pace, tally
        self._crossing = Crossing(part.device)

    def run(self) -> LinkError:
        """Until a link ends, and why."""
        try:
            with torch.inference_mode():
                while True:
                    self.turn()
        except LinkError as error:
            return error

    def turn(self) -> None:
        """One step. Raises `LinkError`."""
        seat = self._seat
        work = receive_step(seat.before, self._bounds, None if seat.first else self._crossing.room)
        failure = work.failure
        if failure is None:
            self._pace.begin()
            found = self._computed(work)
            self._count(work)
            if isinstance(found, Tensor):
                self._hand_on(work, found)
                return
            failure = found.pack()
        send_failure(seat.behind, None if seat.last else self._onward(work), work.message.number, failure)

    def _computed(self, work: Work) -> Tensor | StepFailure:
        try:
            hidden = None if work.hidden is None else self._crossing.inward(work.hidden)
            return self._part.compute(work.message, hidden)
        except LendingError as error:
            log.warning("A step has failed: %s", error)
            return StepFailure.of(self._seat.stage, self._seat.device, "blocks_lost", error)
        except Exception as error:  # one step's failure must not be another's
            if is_shortage(error):
                log.warning("Out of memory in a step of %d tokens", _tokens(work.message))
                give_back(self._part.device)
                return StepFailure.of(self._seat.stage, self._seat.device, "out_of_memory", error)
            log.exception("A step has failed")
            return StepFailure.of(self._seat.stage, self._seat.device, "error", error)

    def _hand_on(self, work: Work, found: Tensor) -> None:
        number = work.message.number
        if not self._seat.last:
            send_hidden(self._seat.behind, self._onward(work), number, self._crossing.outward(found))
        elif work.message.want == "nothing" or not found.shape[0]:
            send_output(self._seat.behind, number, None)
        else:
            send_output(self._seat.behind, number, self._crossing.outward(found))

    def _onward(self, work: Work) -> bytes | memoryview:
        """The step for the next stage, as it came: but for embeddings, which are read here."""
        if any(row.vectors is not None for row in work.message.rows):
            return pack_step(work.message, vectors=False)
        return work.data

    def _count(self, work: Work) -> None:
        self._tally.busy_seconds += self._pace.end()
        self._tally.steps += 1
        self._tally.tokens += _tokens(work.message)


def _tokens(message: StepMessage) -> int:
    return sum(len(row.tokens) for row in message.rows)
