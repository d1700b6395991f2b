"""The engine's loop body: let the scheduler plan a step, have it computed, and let every request go on from there.

Everything runs in the engine's thread. Invariants: every job ends with exactly one result or error; a job's failure
touches no other job; what failed is gone from the scheduler before its step is committed, so that nothing poisoned is
published; between two turns the scheduler's tokens and the answers' are the same. Must not know torch or asyncio.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from gpu_node.engine.generation import Generation, Sample
from gpu_node.engine.isolation import Computed, compute, told
from gpu_node.engine.mailbox import Outlet, Result
from gpu_node.engine.planned import Limits, Planned
from gpu_node.engine.reading import ReadingJob
from gpu_node.engine.room import StepRoom
from gpu_node.engine.scheduler import Scheduler
from gpu_node.engine.stats import Counters, Gauges
from gpu_node.engine.step import ModelRunner, Pick
from gpu_node.errors import DeadlineExceeded, DeviceOutOfMemory, GenerationFailed, NodeBusy, NodeError

log = logging.getLogger("gpu_node.engine")

Job = Generation | ReadingJob

# A request that was in the step each time when the thread died so often is taken for the reason.
DEATHS_OF_ONE = 3
# After so many steps one behind the other of which nothing came but errors, it is not the requests: a GPU whose context
# is broken, for instance, fails whatever it is asked for.
BARREN_STEPS = 16
# Of the cache, when even the smallest step does not fit.
KEPT_SHARE = 0.75


class EngineCore:
    def __init__(self, runner: ModelRunner, limits: Limits, clock: Callable[[], float], counters: Counters) -> None:
        self.runner, self.counters, self._clock = runner, counters, clock
        self._room = StepRoom(limits.step_tokens)
        self._scheduler = Scheduler(limits)
        self._samples: dict[int, Sample] = {}
        self._readings: dict[int, tuple[ReadingJob, int]] = {}  # sequence: whose, and the number of its text
        self._jobs: dict[Job, set[int]] = {}  # its sequences that have not ended
        self._outlets: set[Outlet] = set()
        self._fresh: set[int] = set()  # sequences that were in no step yet
        self._planned: Planned | None = None  # under way
        self._deaths: Counter[Job] = Counter()  # of the thread, while this job was in the step
        self._barren = 0

    # Commands

    def submit(self, job: Job) -> None:
        self._jobs[job] = set()
        self._outlets.add(job.call.outlet)
        try:
            self._begin(job)
        except NodeError as error:
            self._fail(job, error)
        except Exception as error:  # a request that cannot even begin must not harm the others
            log.exception("a request cannot begin")
            self._fail(job, GenerationFailed(told(error)))

    def cancel(self, job: Job) -> None:
        """Idempotent; nobody is told."""
        if job in self._jobs:
            self.counters.cancelled += 1
            self._drop(job)

    def fail_all(self, error: NodeError) -> None:
        for job in list(self._jobs):
            self._fail(job, error)
        self._publish()

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
            self._fail_sequence(sequence, DeadlineExceeded())
        planned = self._scheduler.schedule(now)
        if planned is not None:
            self._planned = planned
            self._step(planned, now)
            self._planned = None
        self._publish()
        if planned is not None:
            if self._barren >= BARREN_STEPS:
                raise RuntimeError(f"{self._barren} steps one behind the other gave nothing but errors")
            return 0.0
        due = self._scheduler.next_deadline()
        return None if due is None else max(due - now, 0.0)

    def revive(self) -> None:
        """After the thread died in the middle of anything: everything is computed again, nothing is told again."""
        self.counters.restarts += 1
        planned, self._planned = self._planned, None
        if planned is not None:
            self._scheduler.abandon(planned)
            self._suspect(planned)
        self._reset_cache(self._scheduler.limits)
        self._publish()

    # A step

    def _step(self, planned: Planned, now: float) -> None:
        self._note_begin(planned, now)
        broken: dict[int, str] = {}
        picks = self._picks(planned, broken)
        try:
            computed = compute(self.runner, planned.step, picks)
        except DeviceOutOfMemory as error:
            self._scheduler.abandon(planned)
            self._make_room(planned, error)
            return
        self._barren = self._barren + 1 if len(computed.errors) == len(planned.step.rows) else 0
        self.counters.count_step(len(planned.step.rows), planned.step.token_count)
        now = self._clock()
        accepted = self._judge(planned, computed, broken, now)
        self._read(planned, computed)
        self._scheduler.commit(planned, accepted, now)
        self._settle(planned, now)
        if self._room.widen():
            self._scheduler.limit_step(self._room.cap)

    def _note_begin(self, planned: Planned, now: float) -> None:
        if not self._fresh:
            return
        for row in planned.step.rows:
            if row.sequence in self._fresh:
                self._fresh.discard(row.sequence)
                sample = self._samples.get(row.sequence)
                if sample is not None:
                    sample.generation.note_begin(now, row.start)

    def _picks(self, planned: Planned, broken: dict[int, str]) -> list[Pick]:
        picks = []
        for pick in planned.picks:
            sample = self._samples[pick.sequence]
            history = self._scheduler.tokens(pick.sequence)
            try:
                picks.append(sample.pick(pick, history))
            except Exception as error:  # the guide's own
                log.exception("a guide failed")
                broken[pick.sequence] = told(error)
                picks.append(sample.pick_anything(pick, history))
        return picks

    def _judge(
        self, planned: Planned, computed: Computed, broken: dict[int, str], now: float
    ) -> dict[int, Sequence[int]]:
        """What each sequence goes on with. Those that failed are gone afterwards."""
        for index, error in computed.errors.items():
            self._fail_sequence(planned.step.rows[index].sequence, GenerationFailed(error))
        accepted: dict[int, Sequence[int]] = {}
        for pick, choice in zip(planned.picks, computed.choices, strict=True):
            sample = self._samples.get(pick.sequence)
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
            self._fail_sequence(pick.sequence, GenerationFailed(wrong))
        return {sequence: tokens for sequence, tokens in accepted.items() if sequence in self._samples}

    def _read(self, planned: Planned, computed: Computed) -> None:
        for read in planned.reads:
            known = self._readings.get(read.sequence)
            if known is None:
                continue
            job, number = known
            try:
                job.take(number, computed.arrays[read.row], read.last)
            except NodeError as error:
                self._fail(job, error)
            except Exception as error:  # for instance an array that is not there
                log.exception("a reading failed")
                self._fail(job, GenerationFailed(told(error)))

    def _settle(self, planned: Planned, now: float) -> None:
        """After the commit: who has finished leaves, who is full makes room."""
        for pick in planned.picks:
            sample = self._samples.get(pick.sequence)
            if sample is not None and sample.answer.reason is not None:
                self._finish_sample(sample, now)
            elif sample is not None and sample.answer.must_shift:
                self._scheduler.rebase(pick.sequence, sample.answer.shift())
        for read in planned.reads:
            if read.last and read.sequence in self._readings:
                self._finish_reading(read.sequence)

    def _finish_sample(self, sample: Sample, now: float) -> None:
        generation = sample.generation
        self._scheduler.finish(sample.sequence)
        del self._samples[sample.sequence]
        self._fresh.discard(sample.sequence)  # a sample that ends with the token it forked with never had its own row
        mine = self._jobs[generation]
        mine.discard(sample.sequence)
        if not mine:
            self._end(generation, generation.done(now))

    def _finish_reading(self, sequence: int) -> None:
        job, _ = self._readings.pop(sequence)
        mine = self._jobs[job]
        mine.discard(sequence)
        try:
            self._feed(job)
        except NodeError as error:
            self._fail(job, error)
            return
        if not mine:
            self._end(job, job.result())

    # Beginning and ending

    def _begin(self, job: Job) -> None:
        if not isinstance(job, Generation):
            self._feed(job)
            return
        sequences: list[int] = []
        for submission in job.submissions:
            entered = self._scheduler.submit(submission, self._clock())
            self._jobs[job].update(entered)
            sequences += entered
        job.begin(sequences)
        if not sequences:  # every answer had ended where it was begun
            self._end(job, job.done(self._clock()))
        self._fresh.update(sequences)
        self._samples.update((sample.sequence, sample) for sample in job.samples)

    def _feed(self, job: ReadingJob) -> None:
        """Keep a few of its texts under way; a full queue is no failure while some are."""
        mine = self._jobs[job]
        while job.pending and len(mine) < job.at_once:
            number, submission = job.pending[0]
            try:
                (sequence,) = self._scheduler.submit(submission, self._clock())
            except NodeBusy:
                if not mine:
                    raise
                return
            job.pending.popleft()
            mine.add(sequence)
            self._readings[sequence] = (job, number)

    def _end(self, job: Job, result: Result) -> None:
        self.counters.done += 1
        self._jobs.pop(job)
        self._deaths.pop(job, None)
        job.call.tell(result)

    def _fail_sequence(self, sequence: int, error: NodeError) -> None:
        job = self._job_of(sequence)
        if job is not None:
            self._fail(job, error)

    def _job_of(self, sequence: int) -> Job | None:
        sample, reading = self._samples.get(sequence), self._readings.get(sequence)
        if sample is not None:
            return sample.generation
        return None if reading is None else reading[0]

    def _fail(self, job: Job, error: NodeError) -> None:
        self.counters.failed += 1
        self._drop(job)
        job.call.tell(error)

    def _drop(self, job: Job) -> None:
        self._deaths.pop(job, None)
        for sequence in self._jobs.pop(job):
            self._scheduler.cancel(sequence)
            self._samples.pop(sequence, None)
            self._readings.pop(sequence, None)
            self._fresh.discard(sequence)

    # When things go wrong

    def _make_room(self, planned: Planned, error: DeviceOutOfMemory) -> None:
        self.counters.out_of_memory += 1
        rows, tokens = planned.step.rows, planned.step.token_count
        log.warning("a step of %d rows and %d tokens did not fit: %s", len(rows), tokens, error)
        if self._room.narrow(tokens):
            self._scheduler.limit_step(self._room.cap)
            self._scheduler.preempt_youngest()
            return
        self._fail_sequence(rows[0].sequence, GenerationFailed(f"the device ran out of memory: {error}"))
        self._shrink()

    def _shrink(self) -> None:
        limits = self._scheduler.limits
        try:
            shape = self.runner.shrink_cache(max(int(limits.block_count * KEPT_SHARE), 1))
        except DeviceOutOfMemory as error:
            log.warning("the cache cannot be made smaller: %s", error)
            return
        log.warning("the cache has %d blocks from now on", shape.block_count)
        self._reset_cache(replace(limits, block_count=shape.block_count))

    def _reset_cache(self, limits: Limits) -> None:
        """Everything is computed again; what has been told stays told."""
        for sequence in self._scheduler.reset_cache(limits):
            self._fail_sequence(sequence, GenerationFailed("the device has no room for this context any more"))
        for sequence, sample in list(self._samples.items()):
            sample.answer.narrow(self._scheduler.max_context(sequence))
            self._align(sequence, sample)

    def _suspect(self, planned: Planned) -> None:
        self._deaths.update({job for row in planned.step.rows if (job := self._job_of(row.sequence)) is not None})
        for job in [job for job, deaths in self._deaths.items() if deaths >= DEATHS_OF_ONE]:
            self._fail(job, GenerationFailed("the engine's thread died of this request"))

    def _align(self, sequence: int, sample: Sample) -> None:
        """The answer is what the client has been told; the scheduler may have died one step behind it."""
        if sample.answer.reason is not None:
            self._finish_sample(sample, self._clock())
        elif sample.answer.must_shift:
            self._scheduler.rebase(sequence, sample.answer.shift())
        elif list(self._scheduler.tokens(sequence)) != sample.answer.tokens:
            self._scheduler.rebase(sequence, sample.answer.tokens)

    def _publish(self) -> None:
        """Let the clients hear of it."""
        for outlet in list(self._outlets):
            outlet.flush()
            if outlet.dead:
                self._outlets.discard(outlet)
                for job in [job for job in self._jobs if job.call.outlet is outlet]:
                    self.cancel(job)
