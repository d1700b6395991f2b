"""What goes wrong with one worker, one step or one order does not go wrong with the rest."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from gpu_node.engine.step import Row
from gpu_node.pipeline.ends import HEAD, LinkEnds
from gpu_node.pipeline.gate import connect_link
from gpu_node.pipeline.orders import Done, Failed, Hello, Load, Loaded, Release, Report, StepLimits, Stop, Take, Taken
from gpu_node.pipeline.part_loading import LoadedPart
from gpu_node.pipeline.stage_loop import StagePart
from gpu_node.pipeline.step_frames import RING_SETTINGS, StepFailure
from gpu_node.pipeline.step_message import StepMessage
from gpu_node.pipeline.worker import Worker
from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.pipeline.pairs import header
from tests.gpu_node.pipeline.worker_crowd import BLOCK, BLOCKS, TOKEN, WORDS, Crowd, Known, Ring, crowd, ring_of

LAYERS = 4
POISON, HUGE = 13, 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("faults"), num_hidden_layers=LAYERS)


def row(*tokens: int, start: int = 0, output: Any = "logits") -> Row:
    return Row(1, tokens, start, tuple(range(8)), output, 0 if output == "nothing" else 1)


def parts(workers: Crowd, path: Path, *bounds: int) -> list[int]:
    found = []
    for at, (first, behind) in enumerate(pairwise(bounds)):
        answer = workers.load(at, path, first, behind)
        assert isinstance(answer, Loaded), answer
        found.append(answer.number)
    return found


class Moody:
    """A part that fails at certain tokens, before or after it has computed."""

    def __init__(self, part: StagePart) -> None:
        self._part = part
        self.device = part.device

    def compute(self, message: StepMessage, hidden: torch.Tensor | None) -> torch.Tensor:
        token = message.rows[0].tokens[0]
        if token == HUGE:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        found = self._part.compute(message, hidden)
        if token == POISON:
            raise ArithmeticError("poisoned")
        return found

    def close(self) -> None:
        self._part.close()


def moody(worker: Worker) -> Worker:
    usual: Callable[[Take, LoadedPart], StagePart] = worker.seating
    worker.seating = lambda take, loaded: Moody(usual(take, loaded))
    return worker


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_step_that_fails_is_answered_and_the_ring_goes_on(at: int, folder: Path, tmp_path: Path) -> None:
    with crowd(tmp_path) as workers:
        for number in range(3):
            worker = Worker(workers.place(number))
            workers.add(moody(worker) if number == at else worker)
        with ring_of(workers, parts(workers, folder, 0, 1, 3, 4)) as ring:
            before = ring.run(row(5, 6, 7))[0]
            numbers = [ring.send([row(token, 6, 7)], "logits") for token in (POISON, 5, HUGE, 5)]
            found = [ring.receive(number, 1, "logits") for number in numbers]
            assert found[0] == StepFailure(at, f"cpu:{at}", "error", "ArithmeticError: poisoned")
            assert found[2].kind == "out_of_memory" and found[2].stage == at
            assert numpy.array_equal(found[1], before) and numpy.array_equal(found[3], before)


def test_many_steps_are_under_way_at_once_and_answered_in_order(folder: Path, tmp_path: Path) -> None:
    with crowd(tmp_path, 2) as workers, ring_of(workers, parts(workers, folder, 0, 2, 4)) as ring:
        alone = [ring.run(row(token, 3))[0] for token in range(20)]
        numbers = [ring.send([row(token, 3)], "logits") for token in range(20)]
        for number, wanted in zip(numbers, alone, strict=True):
            assert numpy.array_equal(ring.receive(number, 1, "logits"), wanted)
        assert ring.receive(ring.send([row(3, output="nothing")], "nothing"), 0, "nothing") is None


def report(known: Known, holds: Callable[[Report], bool]) -> Report:
    """The first such one, also of those that came before."""
    told = [said for said in known.other if isinstance(said, Report)]
    while True:
        for said in told:
            if holds(said):
                return said
        told = [known.awaited(Report)]


def test_what_it_does_is_reported(folder: Path, tmp_path: Path) -> None:
    with crowd(tmp_path, 1) as workers, ring_of(workers, parts(workers, folder, 0, 4)) as ring:
        ring.run(row(1, 2, 3))
        found = report(workers.known[0], lambda said: said.steps == 1)
        current = workers.workers[0].parts.current
        assert current is not None
        assert (found.epoch, found.computed_tokens, found.broken) == (1, 3, "") and found.busy_seconds > 0
        assert found.hop_microseconds > 0
        assert found.weights_bytes == current.part.holding.bytes
        assert found.cache_bytes == current.part.cache_bytes > 0 and found.resident_bytes > found.weights_bytes


def test_a_neighbour_that_goes_breaks_the_ring_and_no_worker(folder: Path, tmp_path: Path) -> None:
    with crowd(tmp_path, 3) as workers:
        with ring_of(workers, parts(workers, folder, 0, 1, 3, 4)) as ring:
            wanted = ring.run(row(5, 6, 7))[0]
            workers.workers[1].stop()
            assert workers.ended(1)
            for at in (0, 2):
                assert report(workers.known[at], lambda said: bool(said.broken)).epoch == 1
        kept = workers.load(0, folder, 0, 3)
        assert kept.reused_layers == 1
        last = workers.load(2, folder, 3, 4)
        assert last.reused_layers == 1 and last.read_bytes == 0
        with ring_of(workers, [kept.number, last.number], 2, order=(0, 2)) as ring:
            assert numpy.array_equal(ring.run(row(5, 6, 7))[0], wanted)


def test_who_waits_for_a_neighbour_can_be_told_otherwise(folder: Path, tmp_path: Path) -> None:
    """Stage 1 never comes: the head asks for another epoch without waiting for the end of patience."""
    with crowd(tmp_path, 1) as workers:
        (part,) = parts(workers, folder, 0, 4)
        known = workers.known[0]
        place = str(tmp_path / "nobody")
        known.control.send(Take(1, part, 7, 0, 2, BLOCK, BLOCKS, BLOCKS, place, links_seconds=60.0))
        with ring_of(workers, [part], 8, ignoring=1) as ring:
            assert ring.run(row(1, 2))[0].shape == (1, 320)
        failure = next(said for said in known.other if isinstance(said, Failed))
        assert (failure.number, failure.kind) == (1, "links")


def test_a_neighbour_that_does_not_come_is_given_up(folder: Path, tmp_path: Path) -> None:
    with crowd(tmp_path, 1) as workers:
        (part,) = parts(workers, folder, 0, 4)
        place = str(tmp_path / "nobody")
        answer = workers.known[0].ask(Take(9, part, 1, 0, 1, BLOCK, BLOCKS, BLOCKS, place, links_seconds=0.05))
        assert isinstance(answer, Failed) and answer.kind == "links"


def hostile_step(ring: Ring) -> None:
    ring.first.send(header(9), b"what else")


def beyond_bounds(ring: Ring) -> None:
    ring.send([Row(1, (1,), 0, (BLOCKS,), "logits", 1)], "logits")


@pytest.mark.parametrize("wrong", [hostile_step, beyond_bounds])
def test_what_is_no_step_ends_the_ring_and_no_worker(wrong: Any, folder: Path, tmp_path: Path) -> None:
    with crowd(tmp_path, 2) as workers:
        numbers = parts(workers, folder, 0, 2, 4)
        with ring_of(workers, numbers) as ring:
            wanted = ring.run(row(5, 6, 7))[0]
            wrong(ring)
            assert "step" in report(workers.known[0], lambda said: bool(said.broken)).broken
        with ring_of(workers, numbers, 2) as ring:
            assert numpy.array_equal(ring.run(row(5, 6, 7))[0], wanted)


@pytest.mark.parametrize("order", [b"{}", b'{"order":"Format","number":1}', None])
def test_who_sends_what_is_no_order_is_no_head(order: bytes | None, tmp_path: Path) -> None:
    with crowd(tmp_path, 1) as workers:
        control = workers.known[0].control
        if order is None:
            control.send(Hello(1, "/x", "cpu", 1, 1, 0.0))  # a worker's word
        else:
            control.link.send(header(len(order)), order)
        assert workers.ended(0)


def test_it_ends_when_the_head_does_and_when_it_is_told(tmp_path: Path) -> None:
    with crowd(tmp_path, 2) as workers:
        place = workers.known[0].hello.place
        assert isinstance(place, str) and Path(place).exists()
        workers.known[0].control.link.close()
        assert workers.ended(0) and not Path(place).exists()
        assert workers.known[1].ask(Stop(3)) == Done(3)
        assert workers.ended(1)
        assert [path.name for path in tmp_path.iterdir()] == ["head"]


def test_strangers_and_other_epochs_are_kept_out(folder: Path, tmp_path: Path) -> None:
    with crowd(tmp_path, 1) as workers:
        (part,) = parts(workers, folder, 0, 4)
        place = workers.known[0].hello.place
        workers.known[0].control.send(Take(1, part, 5, 0, 1, BLOCK, BLOCKS, BLOCKS, str(tmp_path / "none")))
        for token, epoch in (("another", 5), (TOKEN, 4)):
            with pytest.raises(Exception, match="refuses"):
                connect_link(place, LinkEnds(HEAD, 0, epoch), token, RING_SETTINGS, 10)


def test_a_budget_holds_to_the_byte(folder: Path, tmp_path: Path) -> None:
    with crowd(tmp_path, 1) as workers:
        known = workers.known[0]
        free = workers.load(0, folder, 0, 2)
        cache = BLOCKS * BLOCK * free.token_bytes
        exact = free.weights_bytes + cache
        for budget, kind in ((free.weights_bytes - 1, "out_of_memory"), (exact - 1, None), (exact, None)):
            answer = workers.load(0, folder, 0, 2, budget_bytes=budget)
            if kind is not None:
                assert isinstance(answer, Failed) and answer.kind == kind, answer
                continue
            take = Take(workers.number(), answer.number, 1, 0, 1, BLOCK, BLOCKS, BLOCKS, "/none", links_seconds=0.01)
            found = known.ask(take)
            assert isinstance(found, Failed) and found.kind == ("links" if budget == exact else "out_of_memory"), found


def test_what_does_not_fit_beside_fits_instead(folder: Path, tmp_path: Path) -> None:
    with crowd(tmp_path, 1) as workers:
        alone = workers.load(0, folder, 0, 3)
        budget = alone.weights_bytes + BLOCKS * BLOCK * alone.token_bytes
        front = workers.load(0, folder, 0, 3, budget_bytes=budget)
        with ring_of(workers, [front.number], limits=StepLimits(8, 64, 8)):
            beside = workers.load(0, folder, 1, LAYERS, budget_bytes=budget)
            assert isinstance(beside, Failed) and beside.kind == "no_room_beside"
            held = workers.workers[0].parts
            kept = held.current.part.assembled.weights(2)  # type: ignore[union-attr]
            instead = workers.load(0, folder, 1, LAYERS, budget_bytes=budget, drop_current=True)
            assert isinstance(instead, Loaded) and instead.reused_layers == 2
            assert held.current is None and held.cache_bytes == 0 and held.weights_bytes == instead.weights_bytes
        with ring_of(workers, [instead.number], 2, ignoring=1):
            assert held.current is not None and held.current.part.assembled is not None
            assert held.current.part.assembled.weights(2) is kept


def test_what_was_loaded_and_not_taken_can_be_let_go(folder: Path, tmp_path: Path) -> None:
    with crowd(tmp_path, 1) as workers:
        loaded = workers.load(0, folder, 0, 2)
        assert workers.workers[0].parts.weights_bytes == loaded.weights_bytes
        assert workers.known[0].ask(Release(4)) == Done(4)
        assert workers.workers[0].parts.weights_bytes == 0
        take = Take(5, loaded.number, 1, 0, 1, BLOCK, BLOCKS, BLOCKS, "/none")
        assert isinstance(workers.known[0].ask(take), Failed)


def test_a_load_takes_the_place_of_one_that_was_not_ready(folder: Path, tmp_path: Path) -> None:
    """Both are answered."""
    with crowd(tmp_path, 1) as workers:
        known = workers.known[0]
        for number in (1, 2):
            known.control.send(Load(number, str(folder), 0, 4, WORDS))
        answers = {answer.number: answer for answer in (known.awaited(Loaded, Failed), known.awaited(Loaded, Failed))}
        assert isinstance(answers[2], Loaded)
        assert isinstance(answers[1], Loaded) or "called off" in answers[1].message
        assert workers.workers[0].parts.weights_bytes == answers[2].weights_bytes


@pytest.mark.parametrize(
    ("path", "first", "behind", "words"),
    [("nowhere", 0, 1, "layers"), ("", 0, 9, "layers"), ("", 3, 3, "layers"), ("", 0, 1, "quantised")],
)
def test_what_cannot_be_loaded_is_told(
    path: str, first: int, behind: int, words: str, folder: Path, tmp_path: Path
) -> None:
    with crowd(tmp_path, 1) as workers:
        given = WORDS if words == "layers" else type(WORDS)(kernels="torch", threads=1, weights="stored")
        answer = workers.load(0, folder / path if path else folder, first, behind, words=given)
        assert isinstance(answer, Failed) and answer.kind == "model", answer
        assert isinstance(workers.load(0, folder, 0, 1), Loaded)


def test_progress_is_told_up_to_the_end_and_what_is_there_is_done_already(folder: Path, tmp_path: Path) -> None:
    with crowd(tmp_path, 1) as workers:
        known = workers.known[0]
        first = workers.load(0, folder, 0, 3)
        told = known.progress()
        assert told[-1].done == told[-1].total == first.read_bytes
        known.other.clear()
        with ring_of(workers, [first.number]):
            more = workers.load(0, folder, 0, LAYERS)
        told = known.progress()
        assert told[0].done == first.read_bytes and told[-1].done == told[-1].total
        assert more.read_bytes == told[-1].total - told[0].done > 0 and more.reused_layers == 3


def test_files_that_were_changed_are_read_anew(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = write_tiny_model(tmp_path / "model", 1, num_hidden_layers=LAYERS)
    with crowd(tmp_path, 1) as workers:
        first = workers.load(0, path, 0, LAYERS)
        with ring_of(workers, [first.number]) as ring:
            before = ring.run(row(5, 6))[0]
        write_tiny_model(path, 2, num_hidden_layers=LAYERS)
        second = workers.load(0, path, 0, LAYERS)
        assert second.reused_layers == 0
        with ring_of(workers, [second.number], 2) as ring:
            assert not numpy.array_equal(ring.run(row(5, 6))[0], before)


def test_a_slow_device_rests_and_stops_resting_when_its_epoch_is_over(folder: Path, tmp_path: Path) -> None:
    with crowd(tmp_path, 1) as workers:
        slow = workers.load(0, folder, 0, LAYERS, speed=1e-9)  # for weeks
        with ring_of(workers, [slow.number]) as ring:
            ring.send([row(1, 2, 3)], "logits")
            assert report(workers.known[0], lambda said: said.epoch == 1).steps == 0
        quick = workers.load(0, folder, 0, LAYERS)
        with ring_of(workers, [quick.number], 2) as ring:
            assert ring.run(row(1, 2, 3))[0].shape == (1, 320)


def test_taken_says_what_it_takes(folder: Path, tmp_path: Path) -> None:
    with crowd(tmp_path, 1) as workers:
        loaded = workers.load(0, folder, 0, LAYERS)
        seen: list[Any] = []
        with ring_of(workers, [loaded.number], taken=seen):
            assert [type(said) for said in seen] == [Taken]
            assert seen[0].cache_bytes == BLOCKS * BLOCK * loaded.token_bytes
            assert seen[0].weights_bytes == loaded.weights_bytes
