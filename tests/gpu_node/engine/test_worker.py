from __future__ import annotations

import threading

import pytest

from gpu_node.engine.worker import Worker


def test_jobs_run_in_order_in_one_thread() -> None:
    worker, order = Worker("test"), list[int]()
    futures = [worker.submit(lambda n=n: order.append(n) or threading.get_ident()) for n in range(20)]  # type: ignore[misc]
    idents = {future.result(5) for future in futures}
    assert order == list(range(20))
    assert len(idents) == 1 and threading.get_ident() not in idents
    assert worker.close(5)


def test_an_error_belongs_to_its_job_alone() -> None:
    worker = Worker("test")
    with pytest.raises(ZeroDivisionError):
        worker.submit(lambda: 1 // 0).result(5)
    assert worker.submit(lambda: 7).result(5) == 7
    assert worker.close(5)


def test_a_job_that_was_cancelled_while_waiting_never_runs() -> None:
    worker, gate, ran = Worker("test"), threading.Event(), list[int]()
    worker.submit(gate.wait)
    waiting = worker.submit(lambda: ran.append(1))
    assert waiting.cancel()
    gate.set()
    assert worker.close(5)
    assert ran == []


def test_closing_says_when_a_job_does_not_end() -> None:
    worker, gate = Worker("test"), threading.Event()
    worker.submit(gate.wait)
    assert not worker.close(0.01)
    gate.set()
    worker._thread.join(5)
