"""The next part is loaded, called off or refused; each order is answered once; nothing stays of what nobody took."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpu_node.pipeline.orders import Load, Loaded, LoadWords, Progress
from gpu_node.pipeline.parts import NoRoomBeside, Parts
from gpu_node.pipeline.preparing import CalledOff, Preparing
from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.pipeline.worker_crowd import WORDS, eventually


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("preparing"), num_hidden_layers=4)


class Listener:
    """What a worker would tell its head."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.failed: dict[int, BaseException] = {}
        self.stood_still = 0
        self.at_progress: Callable[[], object] = lambda: None

    def say(self, answer: object) -> None:
        self.said.append(answer)
        if isinstance(answer, Progress):
            self.at_progress()

    def fail(self, number: int, error: BaseException) -> None:
        self.failed[number] = error.with_traceback(None)

    def stand_still(self, reason: str) -> None:
        self.stood_still += 1

    def loaded(self) -> list[int]:
        return [said.number for said in self.said if isinstance(said, Loaded)]


@contextmanager
def preparing() -> Iterator[tuple[Listener, Parts, Preparing]]:
    listener, parts = Listener(), Parts()
    work = Preparing(listener, parts, lambda: 0.0)
    thread = threading.Thread(target=work.run)
    thread.start()
    try:
        yield listener, parts, work
    finally:
        work.end()
        thread.join()
        parts.close()
        work.close()


def order(number: int, folder: Path, first: int = 0, behind: int = 4, words: LoadWords = WORDS, **more: Any) -> Load:
    return Load(number, str(folder), first, behind, words, **more)


def test_a_part_is_ready_once_it_is_told(folder: Path) -> None:
    with preparing() as (listener, parts, work):
        work.begin(order(1, folder))
        assert eventually(lambda: listener.loaded() == [1])
        assert parts.current is None and parts.weights_bytes > 0
        chosen = parts.choose(1)
        assert chosen is not None and parts.current is chosen and parts.choose(1) is chosen
        assert parts.choose(2) is None


def test_what_is_called_off_while_it_is_read_leaves_nothing(folder: Path) -> None:
    with preparing() as (listener, parts, work):
        listener.at_progress = work.call_off
        work.begin(order(1, folder))
        assert eventually(lambda: 1 in listener.failed)
        assert isinstance(listener.failed[1], CalledOff) and not listener.loaded()
        assert parts.weights_bytes == 0


def test_orders_that_wait_are_called_off_by_later_ones(folder: Path) -> None:
    with preparing() as (listener, _, work):
        go_on = threading.Event()
        listener.at_progress = lambda: go_on.wait(60)
        work.begin(order(1, folder, 0, 1))
        assert eventually(lambda: bool(listener.said))
        work.begin(order(2, folder, 0, 2))
        work.begin(order(3, folder, 0, 3))
        go_on.set()
        assert eventually(lambda: listener.loaded() == [3])
        assert listener.failed.keys() == {1, 2}


def test_what_was_not_taken_is_freed(folder: Path) -> None:
    with preparing() as (listener, parts, work):
        work.begin(order(1, folder))
        assert eventually(lambda: listener.loaded() == [1])
        chosen = parts.choose(1)
        assert chosen is not None and chosen.part.assembled is not None
        gone = [weakref.ref(layer.weights.qkv) for layer in chosen.part.assembled.layers]
        del chosen
        gc.collect()
        gc.disable()  # nothing of it lies in a circle, which only a collection would find
        try:
            work.begin(order(2, folder, 2, 4, drop_current=True))
            assert eventually(lambda: listener.loaded() == [1, 2])
            assert [reference() is None for reference in gone] == [True, True, False, False]
            assert listener.stood_still == 1
        finally:
            gc.enable()


def test_a_device_that_is_none_is_refused_and_the_next_order_served(folder: Path) -> None:
    with preparing() as (listener, _, work):
        work.begin(order(1, folder, words=LoadWords(device="abacus:7")))
        assert eventually(lambda: 1 in listener.failed)
        work.begin(order(2, folder))
        assert eventually(lambda: listener.loaded() == [2])


def test_the_budget_counts_both_parts_and_what_is_beside_them(folder: Path) -> None:
    with preparing() as (listener, parts, work):
        work.begin(order(1, folder, 0, 2))
        assert eventually(lambda: listener.loaded() == [1])
        front = parts.weights_bytes
        assert parts.choose(1) is not None
        work.begin(order(2, folder, 2, 4, budget_bytes=2 * front - 1))
        assert eventually(lambda: 2 in listener.failed)
        assert isinstance(listener.failed[2], NoRoomBeside) and parts.weights_bytes == front
        work.begin(order(3, folder, 0, 3, budget_bytes=2 * front - 1))
        assert eventually(lambda: listener.loaded() == [1, 3])
        assert front < parts.weights_bytes < 2 * front, "two layers are held once"
