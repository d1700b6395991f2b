"""Answers that are written down: every frame once and in order, whoever follows, whatever breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_node.errors import GenerationFailed, NodeBusy, RequestError, SessionGone
from gpu_node.relay import jobs as module
from gpu_node.relay.errors import CANCELLED, INTERNAL
from gpu_node.relay.jobs import FRAME_BYTES, Ending, Job, Jobs, Replaced
from wire.frames import Buffer, FrameType
from wire.messages_session import ErrorCode

TOKENS = FrameType.TOKENS


class Follower:
    """Keeps what it hears; breaks or waits when it is told to."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self.heard: list[bytes] = []
        self.others: list[FrameType] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._breaks_at = breaks_at

    async def send(self, kind: FrameType, *payload: Buffer) -> None:
        await self.gate.wait()
        if self._breaks_at is not None and len(self.heard) >= self._breaks_at:
            raise ConnectionError("the line is cut")
        if kind is TOKENS:
            self.heard.append(bytes(payload[0]))
        else:
            self.others.append(kind)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def speaker(job: Job, frames: int, gate: asyncio.Event | None = None) -> Callable[[], Awaitable[Ending]]:
    async def work() -> Ending:
        for number in range(frames):
            if gate is not None and number == frames // 2:
                await gate.wait()
            await job.tell(TOKENS, b"%d" % number)
            await asyncio.sleep(0)
        return Ending(b"done")

    return work


def ended(told_at: float | None = None, kept_bytes: int = 0) -> Job:
    job = Job()
    job.ending, job.told_at, job.kept_bytes = Ending(b"done"), told_at, kept_bytes
    return job


def frames(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last)]


async def test_who_follows_hears_everything_and_the_end() -> None:
    job, follower = Job(), Follower()
    job.start(speaker(job, 5), "speak")
    assert await job.follow(follower, 0) == Ending(b"done")
    assert follower.heard == frames(0, 5) and not job.running


async def test_it_goes_on_when_nobody_hears_and_is_told_again_from_anywhere() -> None:
    job, first, gate = Job(), Follower(breaks_at=3), asyncio.Event()
    job.start(speaker(job, 8, gate), "speak")
    with pytest.raises(ConnectionError):
        gate.set()
        await job.follow(first, 0)
    await turns(20)
    assert first.heard == frames(0, 3) and not job.running
    for at in (0, 3, 8):
        again = Follower()
        assert await job.follow(again, at) == Ending(b"done")
        assert again.heard == frames(at, 8)
    with pytest.raises(RequestError):
        await job.follow(Follower(), 9)


async def test_the_latest_follower_counts_also_while_an_earlier_one_is_stuck() -> None:
    job, stuck, gate = Job(), Follower(), asyncio.Event()
    job.start(speaker(job, 6, gate), "speak")
    following = asyncio.create_task(job.follow(stuck, 0))
    await turns(12)
    assert stuck.heard == frames(0, 3)
    stuck.gate.clear()
    gate.set()
    await turns()
    later = Follower()
    hearing = asyncio.create_task(job.follow(later, 3))
    with pytest.raises(Replaced):
        await following
    stuck.gate.set()
    assert await hearing == Ending(b"done")
    assert later.heard == frames(3, 6)


async def test_who_is_still_catching_up_can_be_replaced() -> None:
    job, gate = Job(), asyncio.Event()
    job.start(speaker(job, 6, gate), "speak")
    await turns(12)
    slow = Follower()
    slow.gate.clear()
    following = asyncio.create_task(job.follow(slow, 0))
    await turns()
    later = Follower()
    hearing = asyncio.create_task(job.follow(later, 0))
    await turns()
    slow.gate.set()
    gate.set()
    assert await hearing == Ending(b"done")
    assert later.heard == frames(0, 6)
    with pytest.raises(Replaced):
        await following
    assert len(slow.heard) <= 1


async def test_progress_is_for_those_who_hear_it_now() -> None:
    job, follower, gate = Job(), Follower(), asyncio.Event()

    async def work() -> Ending:
        await job.tell(FrameType.PROGRESS, b"unheard")
        await gate.wait()
        await job.tell(FrameType.PROGRESS, b"heard")
        return Ending(b"done")

    job.start(work, "work")
    await turns()
    following = asyncio.create_task(job.follow(follower, 0))
    await turns()
    gate.set()
    await following
    assert follower.others == [FrameType.PROGRESS] and job.next_index == 0


@pytest.mark.parametrize("error", [GenerationFailed("it broke"), ZeroDivisionError()])
async def test_whatever_work_raises_is_an_ending(error: Exception) -> None:
    job = Job()

    async def work() -> Ending:
        await asyncio.sleep(0)
        raise error

    job.start(work, "work")
    ending = await job.follow(Follower(), 0)
    assert ending.failure is not None
    assert ending.failure == INTERNAL or ending.failure.code is ErrorCode.GENERATION_FAILED


@pytest.mark.parametrize("steps", [0, 3])
async def test_stopping_ends_it_for_who_follows(steps: int) -> None:
    job, gate = Job(), asyncio.Event()
    job.start(speaker(job, 2, gate), "speak")
    following = asyncio.create_task(job.follow(Follower(), 0))
    await turns(steps)
    await job.stop()
    await job.stop()
    assert (await following).failure == CANCELLED


async def test_what_is_kept_is_bounded_and_who_wants_more_is_told() -> None:
    job = Job(most_bytes=3 * (FRAME_BYTES + 1))
    job.start(speaker(job, 9), "speak")
    assert await job.follow(Follower(), 0) == Ending(b"done")  # who hears it loses nothing
    again = Follower()
    await job.follow(again, 6)
    assert again.heard == frames(6, 9)
    with pytest.raises(SessionGone):
        await job.follow(Follower(), 5)


@given(st.integers(1, 12), st.lists(st.integers(1, 5), max_size=4))
def test_any_cuts_give_every_frame_once(count: int, cuts: list[int]) -> None:
    async def story() -> None:
        job, heard = Job(), list[bytes]()
        job.start(speaker(job, count), "speak")
        for cut in [*cuts, None]:
            follower = Follower(cut)
            try:
                ending = await job.follow(follower, len(heard))
            except ConnectionError:
                heard += follower.heard
                continue
            heard += follower.heard
            assert ending == Ending(b"done")
            break
        await job.stop()
        assert heard == frames(0, count)

    asyncio.run(story())


async def test_names_are_their_requests() -> None:
    jobs, job = Jobs(), Job(b"request")
    jobs.add(b"name", job)
    assert jobs.find(b"name", b"request") is job and jobs.find(b"other", b"request") is None
    with pytest.raises(RequestError, match="another request"):
        jobs.find(b"name", b"another")
    jobs.remove(b"name", Job())
    assert len(jobs) == 1
    jobs.remove(b"name", job)
    assert len(jobs) == 0


async def test_running_ones_are_bounded_and_ended_ones_forgotten() -> None:
    jobs = Jobs()
    for number in range(module.RUNNING_MOST):
        jobs.add(b"%d" % number, Job())
    with pytest.raises(NodeBusy):
        jobs.add(b"one more", Job())
    jobs = Jobs()
    for number in range(module.TOLD_MOST + 10):
        jobs.add(b"%d" % number, ended(told_at=1.0))
    assert len(jobs) == module.TOLD_MOST and jobs.find(b"0", b"") is None and jobs.find(b"265", b"") is not None


async def test_many_that_run_share_what_is_kept() -> None:
    jobs, first = Jobs(), Job()
    jobs.add(b"first", first)
    assert first.most_bytes == module.JOB_BYTES
    for number in range(63):
        jobs.add(b"%d" % number, Job())
    assert first.most_bytes == module.RUNNING_BYTES // 64
    for number in range(900):
        jobs.add(b"more %d" % number, Job())
    assert first.most_bytes >= module.LEAST_BYTES


async def test_large_ended_ones_are_forgotten_sooner() -> None:
    jobs = Jobs()
    for number in range(6):
        jobs.add(b"%d" % number, ended(told_at=1.0, kept_bytes=module.TOLD_BYTES // 3))
    assert len(jobs) == 3


async def test_what_nobody_was_told_of_is_kept_though_others_end() -> None:
    jobs = Jobs()
    for number in range(module.RUNNING_MOST):  # all ended while the connection was cut
        jobs.add(b"untold %d" % number, ended())
    for number in range(module.TOLD_MOST + 1):
        jobs.add(b"told %d" % number, ended(told_at=1.0, kept_bytes=module.TOLD_BYTES))
    assert jobs.find(b"untold 0", b"") is not None and jobs.find(b"told 0", b"") is None
    jobs.add(b"one more", ended())
    assert jobs.find(b"untold 0", b"") is None
    jobs.add(b"large", ended(kept_bytes=module.RUNNING_BYTES))
    jobs.add(b"small", ended(kept_bytes=1))
    assert jobs.find(b"large", b"") is None and jobs.find(b"small", b"") is not None


async def test_what_runs_and_nobody_follows_can_be_ended() -> None:
    jobs, gate, heard = Jobs(), asyncio.Event(), Follower()
    followed, left = Job(), Job()
    for name, job in ((b"followed", followed), (b"left", left), (b"over", ended())):
        jobs.add(name, job)
    for job in (followed, left):
        job.start(speaker(job, 2, gate), "speak")
    following = asyncio.create_task(followed.follow(heard, 0))
    await asyncio.sleep(0)
    await jobs.stop_unheard()
    assert not left.running and followed.running and len(jobs) == 2 and jobs.find(b"left", b"") is None
    gate.set()
    await following


async def test_what_was_surely_heard_is_forgotten() -> None:
    jobs = Jobs()
    for name, told_at in ((b"heard", 10.0), (b"fresh", 50.0), (b"running", None)):
        job = Job()
        job.told_at = told_at
        jobs.add(name, job)
    jobs.forget_heard(lambda told_at: told_at < 20)
    assert jobs.find(b"heard", b"") is None and len(jobs) == 2


async def test_a_session_that_ends_stops_them_all() -> None:
    jobs, job, gate = Jobs(), Job(), asyncio.Event()
    job.start(speaker(job, 2, gate), "speak")
    jobs.add(b"job", job)
    assert jobs.running == 1
    await jobs.stop()
    assert not job.running and len(jobs) == 0
