"""Lending as the head does it: looks at the stages, asks the desk, and has the workers do what it has decided.

Everything happens in the engine's thread between steps, while nothing is under way, but for what is said to be any
thread's. Invariants: a lease that some worker refused, or did not answer in time, is undone on both sides; a worker
that is gone ends the ring, and all leases with it. Must not know torch, requests, or how blocks move.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gpu_node.engine.step import Step
from gpu_node.memory.desk import LendingDesk, Moves, Reclaim, StageCache, StageNow
from gpu_node.memory.leases import Lease
from gpu_node.memory.lending_policy import IDLE_MOST_SECONDS, LendingPolicy
from gpu_node.pipeline.crew import Crew
from gpu_node.pipeline.lineup import LineUp
from gpu_node.pipeline.orders import Done
from gpu_node.pipeline.orders_lending import Borrow, Lend, MoveToHost, Repay, TakeBack
from gpu_node.pipeline_status import LendingStatus, PipelineStatus

# A worker does what it is asked between steps, at once, or not at all.
ANSWER_SECONDS = 10.0
# How the stages stand is looked at so often.
LOOK_SECONDS = 0.5
# Between workers of one machine, until a move has told better.
USUAL_PACE = 1e9
# After so many lenders were lost while their devices lived, nobody borrows in this epoch any more.
MOST_LOSSES = 3
log = logging.getLogger("gpu_node.pipeline")


class HeadLending:
    """Of one epoch."""

    def __init__(
        self,
        policy: LendingPolicy,
        crew: Crew,
        lineup: LineUp,
        block_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._crew, self._lineup, self._tokens, self._clock = crew, lineup, block_tokens, clock
        stages = [
            StageCache(seat.device.name, seat.part.token_bytes * block_tokens, near)
            for seat, near in zip(lineup.seats, lineup.near_counts, strict=True)
        ]
        self._desk = LendingDesk(policy, stages, lineup.block_count)
        self._asked_back: dict[str, int] = {}
        self._begun = self._looked_at = clock()
        self._pace = USUAL_PACE
        self._due = False
        self._bereft: set[int] = set()
        self._losses = 0

    @property
    def wants_more(self) -> bool:
        return self._desk.wants_more and self._losses < MOST_LOSSES

    @property
    def restless(self) -> bool:
        """Something is to be asked back, or given back. Cheap: it is looked at now and then."""
        now = self._clock()
        if not self._due and now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._due = bool(len(self._desk.book)) and self._desk.is_due(self._stages_now(), now)
        return self._due

    def ask_back(self, device: str, size: int) -> None:
        """From any thread: this device needs so many bytes for something else, from now on; 0: no longer."""
        self._asked_back[device] = size
        self._looked_at = -LOOK_SECONDS

    def lost(self, stage: int) -> None:
        """A lender did not answer this stage any more: what the stage has with lenders is gone."""
        self._bereft.add(stage)
        self._losses += 1
        self._due = True

    def used(self, step: Step) -> None:
        """A step begins."""
        if len(self._desk.book):
            self._desk.used(max(max(row.blocks) for row in step.rows), self._clock())

    def tend(self, shortage: int, urgent: bool = False) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Blocks that may be used from now on, and those that may not any more."""
        now = self._clock()
        self._due, self._looked_at = False, now
        if self._bereft:
            self._bury()
            return self._desk.changes()  # before the same blocks are granted anew: what they held is gone
        shortage = shortage if self._losses < MOST_LOSSES else 0
        moves = self._desk.decide(shortage, self._stages_now(), now, urgent)
        self._reclaim(moves)
        for lease in moves.repayments:
            if self._desk.has(lease.number):
                self._end(lease)
        for lease in moves.grants:
            if self._desk.has(lease.number):
                self._grant(lease)
        return self._desk.changes()

    def status(self) -> LendingStatus:
        """From any thread."""
        return self._desk.status(self._clock())

    def far_blocks(self, stage: int) -> int:
        """From any thread: of this stage, that lie elsewhere."""
        return sum(lease.terms.blocks for lease in self._desk.book if lease.terms.holder == stage)

    def _bury(self) -> None:
        """What the bereft had with lenders, and what was of use only together with it."""
        for lease in self._desk.book:
            gone = lease.terms.holder in self._bereft and lease.state == "lent"
            if gone and self._desk.has(lease.number):
                for each in self._desk.book.bundle(lease.number):
                    self._end(each, reclaimed=each.number == lease.number)
        self._bereft.clear()

    def _reclaim(self, moves: Moves) -> None:
        for reclaim in moves.reclaims:
            if reclaim.to_host and self._moved(reclaim):
                self._desk.moved(reclaim.lease.number)
                continue
            bundle = [reclaim.lease] if not reclaim.to_host else list(self._desk.book.bundle(reclaim.lease.number))
            for lease in bundle:
                self._end(lease, reclaimed=lease.number == reclaim.lease.number)

    def _moved(self, reclaim: Reclaim) -> bool:
        lease, began = reclaim.lease, self._clock()
        epoch, seconds = self._lineup.epoch, self._desk.policy.move_seconds
        if not self._ask(lease.terms.holder, lambda number: MoveToHost(number, epoch, lease.number, seconds)):
            return False
        self._pace = lease.terms.size_bytes / max(self._clock() - began, 1e-6)
        self._take_back(lease)
        return True

    def _grant(self, lease: Lease) -> None:
        if self._lend(lease) and self._borrow(lease):
            self._desk.granted(lease.number)
            return
        self._take_back(lease)
        rest = [each for each in self._desk.book.bundle(lease.number) if each.number != lease.number]
        self._desk.refused(lease.number, self._clock())
        for each in rest:
            self._end(each)

    def _lend(self, lease: Lease) -> bool:
        terms, epoch = lease.terms, self._lineup.epoch
        part: Any = self._lineup.seats[terms.holder].part

        def make(number: int) -> Lend:
            span = (terms.holder, terms.first, terms.behind, self._tokens)
            return Lend(number, epoch, lease.number, *span, part.dtype, part.layers)

        return self._ask(terms.lender, make)

    def _borrow(self, lease: Lease) -> bool:
        terms, epoch = lease.terms, self._lineup.epoch
        hello = self._lineup.seats[terms.lender].hand.hello
        assert hello is not None, "it has taken a part"
        place = hello.place

        def make(number: int) -> Borrow:
            return Borrow(number, epoch, lease.number, terms.lender, terms.first, terms.behind, place)

        return self._ask(terms.holder, make)

    def _end(self, lease: Lease, reclaimed: bool = False) -> None:
        """On both sides, whatever became of it there."""
        state = self._desk.book.get(lease.number).state
        epoch = self._lineup.epoch
        if state != "asked":
            self._ask(lease.terms.holder, lambda number: Repay(number, epoch, lease.number))
            if state != "host":
                self._take_back(lease)
        self._desk.ended(lease.number, reclaimed)

    def _take_back(self, lease: Lease) -> None:
        terms, epoch = lease.terms, self._lineup.epoch
        self._ask(terms.lender, lambda number: TakeBack(number, epoch, lease.number, terms.holder))

    def _ask(self, stage: int, make: Callable[[int], Any]) -> bool:
        """Whether it was done. Who does not answer is told of by its ring's end, or its silence."""
        hand, changed = self._lineup.seats[stage].hand, self._crew.changed
        number = self._crew.order(hand, make)
        with changed:
            changed.wait_for(lambda: number in hand.answers or bool(hand.gone), ANSWER_SECONDS)
            answer = hand.answers.pop(number, None)
        if answer is None:
            hand.forget(number)
        elif not isinstance(answer, Done):
            log.info("Lending: %s refuses: %s", hand.name, getattr(answer, "message", answer))
        return isinstance(answer, Done)

    def _stages_now(self) -> list[StageNow]:
        rooms, elapsed = self._lineup.rooms, max(self._clock() - self._begun, 1e-6)
        found = []
        for stage, (seat, room) in enumerate(zip(self._lineup.seats, rooms, strict=True)):
            report, hello = seat.hand.report, seat.hand.hello
            weights = max(room.weights_bytes, report.weights_bytes if report is not None else 0)
            cache = self._lineup.cache_bytes.get(room.device, 0)
            own = weights + room.step_bytes + cache + self._asked_back.get(room.device, 0)
            used = own + self._desk.book.lent_bytes(stage)
            total = room.usable_bytes
            if not room.stated and hello is not None:
                free = report.free_bytes if report is not None else hello.free_bytes
                total, used = hello.total_bytes, max(used, hello.total_bytes - free)
            busy = min((report.busy_seconds if report is not None else 0.0) / elapsed, 1.0)
            found.append(StageNow(total, used, self._pace, (1.0 - busy) * IDLE_MOST_SECONDS))
        return found


def status_with(status: PipelineStatus, lending: HeadLending | None) -> PipelineStatus:
    """With what is lent."""
    if lending is None:
        return status
    stages = tuple(replace(stage, far_blocks=lending.far_blocks(stage.number)) for stage in status.stages)
    return replace(status, stages=stages, lending=lending.status())
