"""The requests in the engine: which sequences each one has, how it begins, and its one end.

Invariants: every job ends with exactly one result or error; what has ended is gone from the scheduler; a job's failure
touches no other job. Must not know steps or the runner.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable

from gpu_node.engine.generation import Generation, Sample
from gpu_node.engine.isolation import told
from gpu_node.engine.mailbox import Outlet, Result
from gpu_node.engine.reading import ReadingJob
from gpu_node.engine.scheduler import Scheduler
from gpu_node.engine.stats import Counters
from gpu_node.errors import GenerationFailed, NodeBusy, NodeError

log = logging.getLogger("gpu_node.engine")

Job = Generation | ReadingJob

# A request that was in the step each time when the thread died so often is taken for the reason.
DEATHS_OF_ONE = 3


class Jobs:
    def __init__(self, scheduler: Scheduler, clock: Callable[[], float], counters: Counters) -> None:
        self._scheduler, self._clock, self._counters = scheduler, clock, counters
        self.samples: dict[int, Sample] = {}
        self.readings: dict[int, tuple[ReadingJob, int]] = {}  # sequence: whose, and the number of its text
        self.fresh: set[int] = set()  # sequences that were in no step yet
        self._sequences: dict[Job, set[int]] = {}  # those that have not ended
        self._outlets: set[Outlet] = set()
        self._deaths: Counter[Job] = Counter()  # of the thread, while this job was in the step

    def __bool__(self) -> bool:
        return bool(self._sequences)

    @property
    def empty(self) -> bool:
        """Nothing of anybody is left."""
        return not (self._sequences or self.samples or self.readings or self.fresh or self._deaths)

    # Beginning

    def submit(self, job: Job) -> None:
        self._sequences[job] = set()
        self._outlets.add(job.call.outlet)
        try:
            self._begin(job)
        except NodeError as error:
            self.fail(job, error)
        except Exception as error:  # a request that cannot even begin must not harm the others
            log.exception("a request cannot begin")
            self.fail(job, GenerationFailed(told(error)))

    def _begin(self, job: Job) -> None:
        if not isinstance(job, Generation):
            self._feed(job)
            return
        sequences: list[int] = []
        for submission in job.submissions:
            entered = self._scheduler.submit(submission, self._clock())
            self._sequences[job].update(entered)
            sequences += entered
        job.begin(sequences)
        if not sequences:  # every answer had ended where it was begun
            self._end(job, job.done(self._clock()))
        self.fresh.update(sequences)
        self.samples.update((sample.sequence, sample) for sample in job.samples)

    def _feed(self, job: ReadingJob) -> None:
        """Keep a few of its texts under way; a full queue is no failure while some are."""
        mine = self._sequences[job]
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
            self.readings[sequence] = (job, number)

    # Ending

    def finish_sample(self, sample: Sample, now: float) -> None:
        generation = sample.generation
        self._scheduler.finish(sample.sequence)
        del self.samples[sample.sequence]
        self.fresh.discard(sample.sequence)  # a sample that ends with the token it forked with never had its own row
        mine = self._sequences[generation]
        mine.discard(sample.sequence)
        if not mine:
            self._end(generation, generation.done(now))

    def finish_reading(self, sequence: int) -> None:
        job, _ = self.readings.pop(sequence)
        mine = self._sequences[job]
        mine.discard(sequence)
        try:
            self._feed(job)
        except NodeError as error:
            self.fail(job, error)
            return
        if not mine:
            self._end(job, job.result())

    def cancel(self, job: Job) -> None:
        """Idempotent; nobody is told."""
        if job in self._sequences:
            self._counters.cancelled += 1
            self._drop(job)

    def fail(self, job: Job, error: NodeError) -> None:
        self._counters.failed += 1
        self._drop(job)
        job.call.tell(error)

    def fail_sequence(self, sequence: int, error: NodeError) -> None:
        job = self._job_of(sequence)
        if job is not None:
            self.fail(job, error)

    def fail_all(self, error: NodeError) -> None:
        for job in list(self._sequences):
            self.fail(job, error)

    def suspect(self, sequences: Iterable[int]) -> None:
        """The thread died while these were in the step."""
        self._deaths.update({job for sequence in sequences if (job := self._job_of(sequence)) is not None})
        for job in [job for job, deaths in self._deaths.items() if deaths >= DEATHS_OF_ONE]:
            self.fail(job, GenerationFailed("the engine's thread died of this request"))

    def publish(self) -> None:
        """Let the clients hear of it."""
        for outlet in list(self._outlets):
            outlet.flush()
            if outlet.dead:
                self._outlets.discard(outlet)
                for job in [job for job in self._sequences if job.call.outlet is outlet]:
                    self.cancel(job)

    def _end(self, job: Job, result: Result) -> None:
        self._counters.done += 1
        self._sequences.pop(job)
        self._deaths.pop(job, None)
        job.call.tell(result)

    def _job_of(self, sequence: int) -> Job | None:
        sample, reading = self.samples.get(sequence), self.readings.get(sequence)
        if sample is not None:
            return sample.generation
        return None if reading is None else reading[0]

    def _drop(self, job: Job) -> None:
        self._deaths.pop(job, None)
        for sequence in self._sequences.pop(job):
            self._scheduler.cancel(sequence)
            self.samples.pop(sequence, None)
            self.readings.pop(sequence, None)
            self.fresh.discard(sequence)
