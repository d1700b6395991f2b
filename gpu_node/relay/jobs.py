"""Answers under way: each is written down frame by frame, so that a client whose connection was cut hears all of it.

Invariants: frames are numbered without a gap; whoever follows gets each once and in order; an answer that nobody hears
goes on until its session ends it; what is kept is bounded. One stream follows at a time, the latest. Must not know
engines or messages, only payloads.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from gpu_node.errors import NodeBusy, NodeError, RequestError, SessionGone
from gpu_node.relay.errors import CANCELLED, INTERNAL, Failure, failure_of
from wire.frames import Buffer, FrameType

log = logging.getLogger("gpu_node.relay")

# Frames of one answer: a hundred thousand tokens, or some thousand with twenty logprobs each.
JOB_BYTES = 8 << 20
# When many run at once they share this, but each keeps what it can say within the grace of a cut session.
RUNNING_BYTES = 64 << 20
LEAST_BYTES = 64 << 10
# What one more frame costs besides its bytes.
FRAME_BYTES = 64
# Answers that run at once in one session: as many as a connection has streams.
RUNNING_MOST = 1024
# Ended ones of which the client was told, until it is sure that it has heard. Those it was not told of yet may be as
# many and as large as those that run: all of them may end while the connection is cut.
TOLD_MOST = 256
TOLD_BYTES = 4 << 20


class Follower(Protocol):
    """Where the frames go: a stream of a connection."""

    async def send(self, kind: FrameType, *payload: Buffer) -> None:
        """Raises when nobody is there any more."""
        ...


class Replaced(Exception):
    """Another stream follows this answer now."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended: its last frame, or why there is none."""

    done: bytes = b""
    failure: Failure | None = None


Work = Callable[[], Awaitable[Ending]]


class Job:
    def __init__(self, fingerprint: bytes = b"", first_index: int = 0, most_bytes: int = JOB_BYTES) -> None:
        """`fingerprint` is that of the request, since the same job with another request is a mistake."""
        self.fingerprint = fingerprint
        self.ending: Ending | None = None
        self.told_at: float | None = None  # when the end was sent; nobody knows yet whether it arrived
        self.kept_bytes, self.most_bytes = 0, most_bytes
        self._frames: deque[bytes] = deque()
        self.first_index = self._first = first_index  # `_first`: number of the first frame that is kept
        self._follower: Follower | None = None
        self._leave: asyncio.Future[None] | None = None  # wakes who follows: the end came, or another follower
        self._task: asyncio.Task[None] | None = None

    @property
    def next_index(self) -> int:
        return self._first + len(self._frames)

    @property
    def running(self) -> bool:
        return self.ending is None

    @property
    def followed(self) -> bool:
        return self._leave is not None

    def start(self, work: Work, name: str) -> None:
        """`work` answers by `tell`, and raises `NodeError` for what cannot be answered."""
        self._task = asyncio.get_running_loop().create_task(self._run(work), name=name)

    async def stop(self) -> None:
        """Whoever follows hears of it by the work's own ending. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.ending is None:  # cancelled before its first step
            self._end(Ending(failure=CANCELLED))

    async def tell(self, kind: FrameType, payload: bytes) -> None:
        """One more frame: TOKENS are kept and numbered, others are for those who hear them now."""
        follower = self._follower
        if kind is FrameType.TOKENS:
            self._keep(payload)
        if follower is None:
            return
        try:
            await follower.send(kind, payload)
        except Exception as error:  # whatever a stream raises when it is over: that one is told, the answer goes on
            self._part(follower, error)

    async def follow(self, follower: Follower, next_index: int) -> Ending:
        """Send every frame from `next_index` on, those to come as well; returns when the answer has ended.

        Raises what the follower raises, `SessionGone` when those frames are not kept any more, `Replaced` when another
        one follows from now on.
        """
        if self._leave is not None and not self._leave.done():
            self._leave.set_exception(Replaced())
        self._follower = None
        leave = self._leave = asyncio.get_running_loop().create_future()
        try:
            await self._catch_up(follower, next_index, leave)
            if self.ending is None and not leave.done():
                self._follower = follower
            if self.ending is None or leave.done():
                await leave
        finally:
            if not leave.cancel() and not leave.cancelled():
                leave.exception()  # seen, though something else may have come first
            if self._leave is leave:
                self._leave = self._follower = None
        assert self.ending is not None, "it has ended, or something was raised"
        return self.ending

    async def _catch_up(self, follower: Follower, at: int, leave: asyncio.Future[None]) -> None:
        if at > self.next_index:
            raise RequestError(f"there are only {self.next_index} frames of this answer", field="next_index")
        while at < self.next_index and not leave.done():
            if at < self._first:
                raise SessionGone(f"of this answer only what follows frame {self._first} is kept")
            await follower.send(FrameType.TOKENS, self._frames[at - self._first])
            at += 1

    async def _run(self, work: Work) -> None:
        try:
            ending = await work()
        except NodeError as error:
            ending = Ending(failure=failure_of(error))
        except asyncio.CancelledError:
            ending = Ending(failure=CANCELLED)
        except Exception:  # top of the task
            log.exception("an answer broke off")
            ending = Ending(failure=INTERNAL)
        self._end(ending)

    def _end(self, ending: Ending) -> None:
        self.ending = ending
        if self._leave is not None and not self._leave.done() and self._follower is not None:
            self._leave.set_result(None)

    def _part(self, follower: Follower, error: Exception) -> None:
        if self._follower is follower:
            self._follower = None
            if self._leave is not None and not self._leave.done():
                self._leave.set_exception(error)

    def _keep(self, payload: bytes) -> None:
        self._frames.append(payload)
        self.kept_bytes += len(payload) + FRAME_BYTES
        while self.kept_bytes > self.most_bytes and len(self._frames) > 1:
            self.kept_bytes -= len(self._frames.popleft()) + FRAME_BYTES
            self._first += 1


class Jobs:
    """Those of one session, by the client's names for them."""

    def __init__(self) -> None:
        self._jobs: dict[bytes, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def running(self) -> int:
        return sum(job.running for job in self._jobs.values())

    def find(self, name: bytes, fingerprint: bytes) -> Job | None:
        """Raises `RequestError` when that name is another request's."""
        job = self._jobs.get(name)
        if job is not None and job.fingerprint != fingerprint:
            raise RequestError("this job is that of another request", field="job")
        return job

    def add(self, name: bytes, job: Job) -> None:
        """Raises `NodeBusy` when too many run."""
        if self.running >= RUNNING_MOST:
            raise NodeBusy()
        self._jobs[name] = job
        self._forget_oldest()
        self._share()

    def remove(self, name: bytes, job: Job) -> None:
        if self._jobs.get(name) is job:
            del self._jobs[name]

    def forget_heard(self, heard: Callable[[float], bool]) -> None:
        """Drop those whose end was sent at a time of which `heard` is sure that it arrived."""
        over = [name for name, job in self._jobs.items() if job.told_at is not None and heard(job.told_at)]
        for name in over:
            del self._jobs[name]

    async def stop_unheard(self) -> None:
        """End and forget what runs though nobody follows it."""
        unheard = {name: job for name, job in self._jobs.items() if job.running and not job.followed}
        for name in unheard:
            del self._jobs[name]
        await asyncio.gather(*(job.stop() for job in unheard.values()))

    async def stop(self) -> None:
        """End all that runs and forget everything."""
        jobs, self._jobs = list(self._jobs.values()), {}
        await asyncio.gather(*(job.stop() for job in jobs))

    def _share(self) -> None:
        running = [job for job in self._jobs.values() if job.running]
        share = min(JOB_BYTES, max(RUNNING_BYTES // len(running), LEAST_BYTES)) if running else JOB_BYTES
        for job in running:
            job.most_bytes = share

    def _forget_oldest(self) -> None:
        ended = [(name, job) for name, job in self._jobs.items() if not job.running]
        self._forget([one for one in ended if one[1].told_at is not None], TOLD_MOST, TOLD_BYTES)
        self._forget([one for one in ended if one[1].told_at is None], RUNNING_MOST, RUNNING_BYTES)

    def _forget(self, ended: list[tuple[bytes, Job]], most: int, most_bytes: int) -> None:
        kept = sum(job.kept_bytes for _, job in ended)
        for place, (name, job) in enumerate(ended):
            if len(ended) - place <= most and kept <= most_bytes:
                return
            kept -= job.kept_bytes
            del self._jobs[name]
