"""The engine's loop body: let the scheduler plan steps, have them computed, and let every request go on from there.

Everything runs in the engine's thread. Up to `ModelRunner.depth` steps are under way; they end in their order. With
one, a step is computed where it was planned. Invariants: a failure touches only whom it concerns; what failed is gone
from the scheduler before its step is committed, so that nothing poisoned is published; between two turns the
scheduler's tokens and the answers' are the same; the runner is tended while nothing is under way. Must not know torch
or asyncio.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from gpu_node.engine.generation import Sample
from gpu_node.engine.isolation import Computed, compute, told
from gpu_node.engine.jobs import DEATHS_OF_ONE, Job, Jobs
from gpu_node.engine.planned import Limits, Planned, PlannedPick
from gpu_node.engine.room import StepRoom
from gpu_node.engine.scheduler import Scheduler
from gpu_node.engine.stats import Counters, Gauges
from gpu_node.engine.step import CacheChange, CacheShape, ModelRunner, Pick
from gpu_node.engine.tending import ShortageCalls
from gpu_node.errors import BlocksLost, DeadlineExceeded, DeviceOutOfMemory, GenerationFailed, NodeError, StageLost

__all__ = ["BARREN_STEPS", "DEATHS_OF_ONE", "EngineCore", "Job"]

log = logging.getLogger("gpu_node.engine")

# After so many steps one behind the other of which nothing came but errors, it is not the requests: a GPU whose context
# is broken, for instance, fails whatever it is asked for.
BARREN_STEPS = 16
# Of the cache, when even the smallest step does not fit.
KEPT_SHARE = 0.75
# Steps one at a time after one of several under way failed: more than it takes until all its rows had their turn again.
CAREFUL_STEPS = 16


class EngineCore:
    def __init__(self, runner: ModelRunner, limits: Limits, clock: Callable[[], float], counters: Counters) -> None:
        self.runner, self.counters, self._clock = runner, counters, clock
        self._room = StepRoom(limits.step_tokens)
        self._scheduler = Scheduler(limits)
        self._jobs = Jobs(self._scheduler, clock, counters)
        self._flying: deque[Planned] = deque()  # begun and not finished, the oldest first
        self._planned: Planned | None = None  # is being begun, computed or judged right now
        self._careful = 0  # steps to come that are computed one at a time
        self._lost = False  # a part of the model, and what was in its cache
        self._calls = ShortageCalls()
        self._barren = 0

    # Commands

    def submit(self, job: Job) -> None:
        self._jobs.submit(job)

    def cancel(self, job: Job) -> None:
        """Idempotent; nobody is told."""
        self._jobs.cancel(job)

    def fail_all(self, error: NodeError) -> None:
        self._jobs.fail_all(error)
        self._jobs.publish()

    def gauges(self) -> Gauges:
        """From any thread: it reads single numbers, which a step under way may change between one and the next."""
        counts, limits = self._scheduler.counts(), self._scheduler.limits
        return Gauges(
            counts.running,
            max(counts.waiting, 0),
            limits.max_running,
            counts.blocks_used,
            counts.blocks_free,
            counts.blocks_cached,
            limits.block_tokens,
            min(limits.step_tokens, self._room.cap or limits.step_tokens),
            counts.prompt_tokens,
            counts.prefix_hit_tokens,
            counts.preemptions,
            counts.drafts,
            counts.accepted_drafts,
        )

    def turn(self) -> float | None:
        """One step. Seconds after which the next may find something to do; None: only after a command."""
        now = self._clock()
        for sequence in self._scheduler.expired(now):
            self._jobs.fail_sequence(sequence, DeadlineExceeded())
        runner = self.runner
        if (runner.restless or runner.lends or self._lost) and self._wants_tending(now):
            self._tend()
            now = self._clock()
        worked = self._work(now)
        self._jobs.publish()
        if worked:
            if self._barren >= BARREN_STEPS:
                raise RuntimeError(f"{self._barren} steps one behind the other gave nothing but errors")
            return 0.0
        due = self._scheduler.next_deadline()
        return None if due is None else max(due - now, 0.0)

    def revive(self) -> None:
        """After the thread died in the middle of anything: everything is computed again, nothing is told again."""
        self.counters.restarts += 1
        planned, self._planned = self._planned, None
        if self._flying or planned is not None:
            self.runner.drop()
        self._flying.clear()
        if planned is not None:
            self._scheduler.abandon(planned)
            self._jobs.suspect(row.sequence for row in planned.step.rows)
        self._reset_cache(self._scheduler.limits)
        self._jobs.publish()

    # Steps

    def _work(self, now: float) -> bool:
        """Let one step end. False when there is nothing to do."""
        depth = 1 if self._careful else self.runner.depth
        if depth == 1 and not self._flying:
            planned = self._scheduler.schedule(now)
            if planned is None:
                return False
            self._planned = planned
            self._step(planned, now)
            self._planned = None
            return True
        while len(self._flying) < depth and self._launch(depth, now):
            pass
        if self._flying:
            self._land()
            return True
        return self._lost and bool(self._jobs)

    def _step(self, planned: Planned, now: float) -> None:
        """Alone, from its beginning to its end."""
        self._note_begin(planned, now)
        broken: dict[int, str] = {}
        picks = self._picks(planned.picks, broken)
        try:
            computed = compute(self.runner, planned.step, picks)
        except DeviceOutOfMemory as error:
            self._scheduler.abandon(planned)
            self._make_room(planned, error)
            return
        except StageLost as error:
            self._lose(planned, error)
            return
        self._careful = max(self._careful - 1, 0)
        self._take(planned, planned.picks, computed, broken)

    def _launch(self, depth: int, now: float) -> bool:
        """One step more under way. False when there is none to be computed now."""
        planned = self._scheduler.schedule(now, depth)
        if planned is None:
            return False
        self._planned = planned
        self._note_begin(planned, now)
        try:
            self.runner.begin(planned.step)
            self._flying.append(planned)
        except StageLost as error:
            self._lose(self._flying[0] if self._flying else planned, error)
        self._planned = None
        return not self._lost

    def _land(self) -> None:
        """The oldest step under way ends, whatever has become of it and of its sequences."""
        planned = self._planned = self._flying.popleft()
        broken: dict[int, str] = {}
        live = self._scheduler.live(planned)
        picks = self._picks(live, broken)
        try:
            result = self.runner.finish(picks)
        except DeviceOutOfMemory as error:
            self._drop_from(planned)
            self._make_room(planned, error)
        except StageLost as error:
            self._lose(planned, error)
        except Exception:  # a model may raise anything; which row it was is found when each is computed alone
            log.exception("a step of %d rows failed; steps are computed one at a time", len(planned.step.rows))
            self._drop_from(planned)
            self._careful = CAREFUL_STEPS
        else:
            self._take(planned, live, Computed(result.choices, result.arrays), broken)
        self._planned = None

    def _note_begin(self, planned: Planned, now: float) -> None:
        fresh = self._jobs.fresh
        if not fresh:
            return
        for row in planned.step.rows:
            if row.sequence in fresh:
                fresh.discard(row.sequence)
                sample = self._jobs.samples.get(row.sequence)
                if sample is not None:
                    sample.generation.note_begin(now, row.start)

    def _picks(self, live: Sequence[PlannedPick], broken: dict[int, str]) -> list[Pick]:
        picks = []
        for pick in live:
            sample = self._jobs.samples[pick.sequence]
            history = self._scheduler.tokens(pick.sequence)
            try:
                picks.append(sample.pick(pick, history))
            except Exception as error:  # the guide's own
                log.exception("a guide failed")
                broken[pick.sequence] = told(error)
                picks.append(sample.pick_anything(pick, history))
        return picks

    def _take(self, planned: Planned, live: Sequence[PlannedPick], computed: Computed, broken: dict[int, str]) -> None:
        """What has been computed becomes part of the answers."""
        self._barren = self._barren + 1 if len(computed.errors) == len(planned.step.rows) else 0
        self.counters.count_step(len(planned.step.rows), planned.step.token_count)
        now = self._clock()
        for index, error in computed.errors.items():
            self._jobs.fail_sequence(planned.step.rows[index].sequence, GenerationFailed(error))
        accepted = self._judge(live, computed, broken, now)
        self._read(planned, computed)
        self._scheduler.commit(planned, accepted, now)
        self._settle(planned, now)
        if self._room.widen():
            self._scheduler.limit_step(self._room.cap)

    def _judge(
        self, live: Sequence[PlannedPick], computed: Computed, broken: dict[int, str], now: float
    ) -> dict[int, Sequence[int]]:
        """What each sequence goes on with. Those that failed are gone afterwards."""
        accepted: dict[int, Sequence[int]] = {}
        samples = self._jobs.samples
        for pick, choice in zip(live, computed.choices, strict=True):
            sample = samples.get(pick.sequence)
            if sample is None:
                continue
            wrong = choice.error or broken.get(pick.sequence, "") or ("" if choice.tokens else "nothing was chosen")
            if not wrong:
                try:
                    kept = sample.take(choice, now, self.counters)
                    accepted[pick.sequence] = choice.tokens[:kept]
                    continue
                except Exception as error:  # the guide's or the tokenizer's own
                    log.exception("an answer cannot go on")
                    wrong = told(error)
            self._jobs.fail_sequence(pick.sequence, GenerationFailed(wrong))
        return {sequence: tokens for sequence, tokens in accepted.items() if sequence in samples}

    def _read(self, planned: Planned, computed: Computed) -> None:
        for read in planned.reads:
            known = self._jobs.readings.get(read.sequence)
            if known is None:
                continue
            job, number = known
            try:
                job.take(number, computed.arrays[read.row], read.last)
            except NodeError as error:
                self._jobs.fail(job, error)
            except Exception as error:  # for instance an array that is not there
                log.exception("a reading failed")
                self._jobs.fail(job, GenerationFailed(told(error)))

    def _settle(self, planned: Planned, now: float) -> None:
        """After the commit: who has finished leaves, who is full makes room."""
        for pick in planned.picks:
            sample = self._jobs.samples.get(pick.sequence)
            if sample is not None and sample.answer.reason is not None:
                self._jobs.finish_sample(sample, now)
            elif sample is not None and sample.answer.must_shift:
                self._scheduler.rebase(pick.sequence, sample.answer.shift())
        for read in planned.reads:
            if read.last and read.sequence in self._jobs.readings:
                self._jobs.finish_reading(read.sequence)

    # Between steps

    def _wants_tending(self, now: float) -> bool:
        if self.runner.restless or (self._lost and self._jobs):
            return True
        if not self.runner.lends or not self._calls.due(now):
            return False
        return self._calls.worth(self._scheduler.shortage, now, self._scheduler.pressing)

    def _tend(self) -> None:
        while self._flying:
            self._land()
        self._jobs.publish()  # what follows may take long
        shortage = self._scheduler.shortage if self.runner.lends else 0
        try:
            change = self.runner.tend(shortage, bool(shortage) and self._scheduler.pressing)
        except NodeError as error:
            log.error("the model cannot be computed: %s", error)
            self.fail_all(error)
            return
        self._calls.answered(change is not None, self._clock())
        lost, self._lost = self._lost, False
        if change is not None or lost:
            self._change(change or CacheChange(self.runner.cache, reset=True), lost)

    def _change(self, change: CacheChange, lost: bool) -> None:
        limits = _fitted(self._scheduler.limits, change.shape)
        if change.reset or lost or limits != self._scheduler.limits:
            self._reset_cache(limits)
        self._scheduler.retire(change.retired)
        self._scheduler.restore(change.restored)

    # When things go wrong

    def _drop_from(self, planned: Planned) -> None:
        """The step and all after it are void; nothing of them is under way any more."""
        self.runner.drop()
        self._flying.clear()
        self._scheduler.abandon(planned)

    def _lose(self, oldest: Planned, error: StageLost) -> None:
        """The next turn has the runner tended, and then everything is computed again; or only what lay in blocks that
        are lost."""
        log.warning("steps are void: %s", error)
        self._drop_from(oldest)
        self._lost = self._lost or not isinstance(error, BlocksLost)
        self._barren += 1  # losses one behind the other with no step between them

    def _make_room(self, planned: Planned, error: DeviceOutOfMemory) -> None:
        self.counters.out_of_memory += 1
        rows, tokens = planned.step.rows, planned.step.token_count
        log.warning("a step of %d rows and %d tokens did not fit: %s", len(rows), tokens, error)
        if self._room.narrow(tokens):
            self._scheduler.limit_step(self._room.cap)
            self._scheduler.preempt_youngest()
            return
        self._jobs.fail_sequence(rows[0].sequence, GenerationFailed(f"the device ran out of memory: {error}"))
        self._shrink()

    def _shrink(self) -> None:
        limits = self._scheduler.limits
        try:
            shape = self.runner.shrink_cache(max(int(limits.promised_count * KEPT_SHARE), 1))
        except DeviceOutOfMemory as error:
            log.warning("the cache cannot be made smaller: %s", error)
            return
        log.warning("the cache has %d blocks from now on", shape.block_count)
        self._reset_cache(_fitted(limits, shape))

    def _reset_cache(self, limits: Limits) -> None:
        """Everything is computed again; what has been told stays told."""
        for sequence in self._scheduler.reset_cache(limits):
            self._jobs.fail_sequence(sequence, GenerationFailed("the device has no room for this context any more"))
        for sequence, sample in list(self._jobs.samples.items()):
            sample.answer.narrow(self._scheduler.max_context(sequence))
            self._align(sequence, sample)

    def _align(self, sequence: int, sample: Sample) -> None:
        """The answer is what the client has been told; the scheduler may have died one step behind it."""
        if sample.answer.reason is not None:
            self._jobs.finish_sample(sample, self._clock())
        elif sample.answer.must_shift:
            self._scheduler.rebase(sequence, sample.answer.shift())
        elif list(self._scheduler.tokens(sequence)) != sample.answer.tokens:
            self._scheduler.rebase(sequence, sample.answer.tokens)


def _fitted(limits: Limits, shape: CacheShape) -> Limits:
    return replace(limits, block_tokens=shape.block_tokens, block_count=shape.block_count, promised=shape.promised)
