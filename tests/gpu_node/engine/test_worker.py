"""One thread for commands and turns; one that dies is replaced, unless it dies too often."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from gpu_node.engine.worker import MOST_DEATHS, Worker


class ScriptedWork:
    """Each turn does what the script says next; without one it waits for commands."""

    def __init__(self) -> None:
        self.script: list[Callable[[], float | None]] = []
        self.turns = 0
        self.idents: list[int] = []
        self.revived: list[BaseException] = []
        self.given_up = threading.Event()
        self.fail_to_revive = 0
        self.second_turn = threading.Event()
        self.on_giving_up: Callable[[], object] = lambda: None

    def turn(self) -> float | None:
        self.turns += 1
        if self.turns == 2:
            self.second_turn.set()
        self.idents.append(threading.get_ident())
        return self.script.pop(0)() if self.script else None

    def revive(self, death: BaseException) -> None:
        self.revived.append(death)
        if self.fail_to_revive:
            self.fail_to_revive -= 1
            raise RuntimeError("cannot")

    def give_up(self, death: BaseException) -> None:
        self.on_giving_up()
        self.given_up.set()


@contextmanager
def worker_of(work: ScriptedWork, now: Callable[[], float] = lambda: 0.0) -> Iterator[Worker]:
    worker = Worker("test", work, now)
    try:
        yield worker
    finally:
        assert worker.close(60)


def die() -> None:
    raise SystemExit("the thread is told to end")


def test_jobs_run_in_order_in_one_thread() -> None:
    order = list[int]()
    with worker_of(ScriptedWork()) as worker:
        futures = [worker.submit(lambda n=n: order.append(n) or threading.get_ident()) for n in range(20)]
        idents = {future.result(60) for future in futures}
    assert order == list(range(20))
    assert len(idents) == 1 and threading.get_ident() not in idents


def test_an_error_belongs_to_its_job_alone() -> None:
    with worker_of(ScriptedWork()) as worker:
        with pytest.raises(ZeroDivisionError):
            worker.submit(lambda: 1 // 0).result(60)
        with pytest.raises(SystemExit):
            worker.submit(die).result(60)
        assert worker.submit(lambda: 7).result(60) == 7


def test_a_job_that_was_cancelled_while_waiting_never_runs() -> None:
    worker, gate, ran = Worker("test", ScriptedWork()), threading.Event(), list[int]()
    worker.submit(gate.wait)
    waiting = worker.submit(lambda: ran.append(1))
    assert waiting.cancel()
    gate.set()
    assert worker.close(60)
    assert ran == []


def test_closing_says_when_a_job_does_not_end() -> None:
    worker, gate = Worker("test", ScriptedWork()), threading.Event()
    worker.submit(gate.wait)
    assert not worker.close(0.01)
    gate.set()
    assert worker.close(60)


def test_turns_follow_each_other_until_there_is_nothing_to_do_and_then_only_commands_bring_one() -> None:
    work, idle = ScriptedWork(), threading.Event()
    work.script = [lambda: 0.0] * 10 + [lambda: idle.set()]
    with worker_of(work) as worker:
        assert idle.wait(60)
        assert work.turns == 11
        for commands in range(1, 4):
            assert worker.submit(lambda: work.turns).result(60) <= 10 + commands


def test_a_command_ends_the_waiting_between_turns() -> None:
    work, waited = ScriptedWork(), threading.Event()
    work.script.append(lambda: waited.set() or 3600.0)
    with worker_of(work) as worker:
        assert waited.wait(60)
        assert worker.submit(lambda: 7).result(60) == 7


def test_a_thread_that_dies_is_replaced_and_the_new_one_revives_first() -> None:
    work = ScriptedWork()
    work.script = [die, lambda: None]
    with worker_of(work) as worker:
        assert work.second_turn.wait(60)
        assert worker.alive and worker.submit(lambda: 7).result(60) == 7
    assert [type(death) for death in work.revived] == [SystemExit]


def test_commands_that_wait_survive_the_death() -> None:
    work, gate, ran = ScriptedWork(), threading.Event(), list[int]()

    def die_later() -> None:
        assert gate.wait(60)
        die()

    work.script = [die_later]
    with worker_of(work) as worker:
        futures = [worker.submit(lambda n=n: ran.append(n)) for n in range(3)]
        gate.set()
        for future in futures:
            future.result(60)
        assert work.second_turn.wait(60)
    assert ran == [0, 1, 2] and len(work.revived) == 1


def test_dying_while_reviving_counts_too() -> None:
    work = ScriptedWork()
    work.script, work.fail_to_revive = [die], 2
    with worker_of(work) as worker:
        assert work.second_turn.wait(60)
        assert worker.submit(lambda: 7).result(60) == 7
    assert len(work.revived) == 3


def test_too_many_deaths_in_short_time_are_final_until_somebody_asks_again() -> None:
    work = ScriptedWork()
    work.script = [die] * (MOST_DEATHS + 1)
    with worker_of(work) as worker:
        assert work.given_up.wait(60)
        assert len(work.revived) == MOST_DEATHS
        assert worker.submit(lambda: 7).result(60) == 7
        assert worker.alive


def test_who_asks_while_it_gives_up_is_heard() -> None:
    work, asked = ScriptedWork(), list[Future[int]]()
    work.script = [die] * (MOST_DEATHS + 1)
    work.on_giving_up = lambda: asked.append(worker.submit(lambda: 7))
    with worker_of(work) as worker:
        assert work.given_up.wait(60)
        assert asked[0].result(60) == 7


def test_deaths_that_lie_far_apart_are_forgiven() -> None:
    times = iter(range(0, 100_000, 100))
    work = ScriptedWork()
    work.script = [die] * (MOST_DEATHS * 3)
    with worker_of(work, lambda: float(next(times))) as worker:
        assert worker.submit(lambda: 7).result(60) == 7
        while work.script:
            worker.submit(lambda: None).result(60)
    assert not work.given_up.is_set()
    assert len(work.revived) == MOST_DEATHS * 3


@pytest.mark.parametrize("wait", [1e12, float("inf")])
def test_a_wait_longer_than_queues_can_wait_harms_nobody(wait: float) -> None:
    work = ScriptedWork()
    work.script = [lambda: wait]
    with worker_of(work) as worker:
        assert worker.submit(lambda: 7).result(60) == 7
        assert worker.submit(lambda: 8).result(60) == 8
    assert not work.revived
