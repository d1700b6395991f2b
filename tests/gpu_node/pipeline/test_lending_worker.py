"""Workers that lend to each other give the very tokens of one runner, through reclaims in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.loader import LoadOptions, load_runner
from gpu_node.engine.runner import Runner
from gpu_node.engine.step import BlockCopy, Row, Step
from gpu_node.pipeline.orders import Done, Failed, Loaded
from gpu_node.pipeline.orders_lending import Borrow, Lend, MoveToHost, Repay, TakeBack
from gpu_node.pipeline.step_frames import StepFailure
from tests.fakes.tiny_model import VOCABULARY, write_tiny_model
from tests.gpu_node.pipeline.worker_crowd import BLOCK, BLOCKS, Crowd, Ring, crowd, ring_of

NEAR = 6
ROOM = 1 << 20  # beside weights and cache, to lend


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("lending"), num_hidden_layers=4)


def single(path: Path) -> Runner:
    cache = CacheOptions(block_tokens=BLOCK, block_count=BLOCKS)
    return load_runner(path, LoadOptions(device="cpu", threads=1, kernels="torch", cache=cache))


class Lending:
    """Stage 0 has a few blocks; stage 1 has all of its own and lends."""

    def __init__(self, crowd: Crowd, ring: Ring, parts: list[Loaded], epoch: int) -> None:
        self.crowd, self.ring, self.parts, self.epoch = crowd, ring, parts, epoch

    def lend(self, lease: int, first: int, behind: int, epoch: int | None = None) -> Any:
        part = self.parts[0]
        return self.crowd.known[1].ask(
            Lend(self.crowd.number(), epoch or self.epoch, lease, 0, first, behind, BLOCK, part.dtype, part.layers)  # type: ignore[arg-type]
        )

    def borrow(self, lease: int, first: int, behind: int) -> Any:
        place = self.crowd.known[1].hello.place
        return self.crowd.known[0].ask(Borrow(self.crowd.number(), self.epoch, lease, 1, first, behind, place))

    def grant(self, lease: int, first: int, behind: int) -> None:
        for answer in (self.lend(lease, first, behind), self.borrow(lease, first, behind)):
            assert isinstance(answer, Done), answer

    def move(self, lease: int, within_seconds: float = 20.0) -> Any:
        return self.crowd.known[0].ask(MoveToHost(self.crowd.number(), self.epoch, lease, within_seconds))

    def repay(self, lease: int) -> Any:
        return self.crowd.known[0].ask(Repay(self.crowd.number(), self.epoch, lease))

    def take_back(self, lease: int) -> Any:
        return self.crowd.known[1].ask(TakeBack(self.crowd.number(), self.epoch, lease, 0))

    @property
    def lent_bytes(self) -> int:
        return self.crowd.workers[1].lending.lent_bytes

    @property
    def host_bytes(self) -> int:
        return self.crowd.workers[0].lending.host_bytes


@contextmanager
def lending(tmp_path: Path, folder: Path, epoch: int = 1, room: int = ROOM) -> Iterator[Lending]:
    with crowd(tmp_path, 2) as found:
        parts = [found.load(0, folder, 0, 2)]
        cache = BLOCKS * BLOCK * parts[0].token_bytes
        parts.append(found.load(1, folder, 2, 4, budget_bytes=_weights(found, folder) + cache + room))
        with ring_of(found, [part.number for part in parts], epoch, near=(NEAR, BLOCKS)) as ring:
            yield Lending(found, ring, parts, epoch)


def _weights(crowd: Crowd, folder: Path) -> int:
    found: int = crowd.load(1, folder, 2, 4).weights_bytes
    return found


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def row(ids: list[int], start: int, count: int, blocks: tuple[int, ...], **more: Any) -> Row:
    more = {"output": "logits", "output_tokens": 1} | more
    return Row(blocks[0], ids[start : start + count], start, blocks, **more)


LONG, SHORT = prompt(40, 1), prompt(9, 2)
FAR, NEARBY, MIXED = tuple(range(20, 30)), (0, 1, 2), (3, 40, 4, 50, 60)
STEPS: list[tuple[tuple[Row, ...], tuple[BlockCopy, ...]]] = [
    ((row(LONG, 0, 30, FAR), row(SHORT, 0, 5, NEARBY)), ()),
    ((row(LONG, 30, 1, FAR), row(SHORT, 5, 1, NEARBY), row(LONG, 0, 17, MIXED)), ()),
    ((row(SHORT, 6, 1, NEARBY),), ()),
    ((row(LONG, 31, 3, FAR, output_tokens=3), row(LONG, 17, 1, MIXED, output="hidden")), ()),
    ((row(LONG, 8, 1, (20, 21, 5)), row(SHORT, 4, 2, (0, 61)), row(LONG, 34, 1, FAR)), (BlockCopy(1, 61),)),
    ((row(LONG, 18, 2, (3, 40, 4, 50, 2)), row(LONG, 35, 1, FAR)), (BlockCopy(60, 2), BlockCopy(50, 41))),
    ((row(LONG, 20, 1, (3, 40, 4, 41, 2, 42)),), ()),
]


def same(found: dict[int, Any], expected: dict[int, Any]) -> None:
    assert found.keys() == expected.keys()
    for at, array in expected.items():
        numpy.testing.assert_allclose(found[at], array, rtol=1e-4, atol=1e-4)
        assert (found[at].argmax(-1) == array.argmax(-1)).all()


def test_far_blocks_give_the_numbers_of_near_ones_through_a_reclaim(tmp_path: Path, folder: Path) -> None:
    """Half-way through, one lease moves to host memory; nothing that follows changes."""
    runner = single(folder)
    with lending(tmp_path, folder) as lent:
        lent.grant(1, NEAR, 35)
        lent.grant(2, 35, BLOCKS)
        block_bytes = BLOCK * lent.parts[0].token_bytes
        assert lent.lent_bytes == (BLOCKS - NEAR) * block_bytes
        for at, (rows, copies) in enumerate(STEPS):
            same(lent.ring.run(*rows, copies=copies), runner.run(Step(rows, copies), ()).arrays)
            if at == 2:
                assert isinstance(lent.move(1), Done) and isinstance(lent.take_back(1), Done)
                assert lent.lent_bytes == (BLOCKS - 35) * block_bytes
                assert lent.host_bytes == (35 - NEAR) * block_bytes
    runner.close()


def test_a_move_that_would_take_too_long_leaves_everything_where_it_is(tmp_path: Path, folder: Path) -> None:
    runner = single(folder)
    with lending(tmp_path, folder) as lent:
        lent.grant(1, NEAR, BLOCKS)
        rows, _ = STEPS[0]
        same(lent.ring.run(*rows), runner.run(Step(rows), ()).arrays)
        answer = lent.move(1, 0.0)
        assert isinstance(answer, Failed) and "does not come over" in answer.message
        assert lent.host_bytes == 0 and lent.lent_bytes
        rows, _ = STEPS[1]
        same(lent.ring.run(*rows), runner.run(Step(rows), ()).arrays)
    runner.close()


def test_blocks_that_were_repaid_are_nowhere_and_may_be_lent_anew(tmp_path: Path, folder: Path) -> None:
    with lending(tmp_path, folder) as lent:
        lent.grant(1, NEAR, 35)
        assert isinstance(lent.repay(1), Done) and isinstance(lent.take_back(1), Done)
        assert lent.lent_bytes == 0
        number = lent.ring.send([row(LONG, 0, 4, FAR)], "logits")
        failure = lent.ring.receive(number, 1, "logits")
        assert isinstance(failure, StepFailure) and "nowhere" in failure.message and failure.stage == 0
        lent.grant(2, NEAR, 35)
        lent.ring.run(row(LONG, 0, 4, FAR))


def test_nothing_is_lent_beyond_the_budget(tmp_path: Path, folder: Path) -> None:
    with lending(tmp_path, folder, room=12 * BLOCK * 128 * 4) as lent:
        block_bytes = BLOCK * lent.parts[0].token_bytes
        blocks = 12 * BLOCK * 128 * 4 // block_bytes
        answer = lent.lend(1, NEAR, NEAR + blocks + 1)
        assert isinstance(answer, Failed) and answer.kind == "out_of_memory" and "may still be lent" in answer.message
        lent.grant(1, NEAR, NEAR + blocks)
        assert lent.lent_bytes == blocks * block_bytes
        assert isinstance(lent.lend(2, NEAR + blocks, NEAR + blocks + 1), Failed)


def test_mistakes_and_other_epochs_are_refused(tmp_path: Path, folder: Path) -> None:
    with lending(tmp_path, folder, epoch=3) as lent:
        assert isinstance(lent.lend(1, NEAR, 10, epoch=2), Failed)
        assert isinstance(lent.move(9), Failed)
        assert isinstance(lent.repay(9), Failed)
        assert isinstance(lent.take_back(9), Failed)
        answer = lent.crowd.known[1].ask(Borrow(lent.crowd.number(), 3, 1, 0, 6, 7, lent.crowd.known[0].hello.place))
        assert isinstance(answer, Failed) and "all its blocks" in answer.message
        lent.grant(1, NEAR, 20)
        assert isinstance(lent.lend(1, 30, 40), Failed), "one lease of a number"
        assert isinstance(lent.lend(2, 10, 40), Failed), "no block twice"


def test_a_lender_that_hangs_up_fails_the_step_by_name_and_the_ring_goes_on(tmp_path: Path, folder: Path) -> None:
    with lending(tmp_path, folder) as lent:
        lent.grant(1, NEAR, 40)
        lent.ring.run(row(LONG, 0, 10, FAR))
        session = lent.crowd.workers[1].lending._session
        assert session is not None
        session._hang_up(0)
        failure = lent.ring.receive(lent.ring.send([row(LONG, 10, 1, FAR)], "logits"), 1, "logits")
        assert isinstance(failure, StepFailure) and "the lender of stage 1 is gone" in failure.message
        assert failure.kind == "blocks_lost" and failure.stage == 0
        lent.ring.run(row(SHORT, 0, 5, NEARBY))


def test_a_lender_that_hung_up_is_met_anew(tmp_path: Path, folder: Path) -> None:
    runner = single(folder)
    with lending(tmp_path, folder) as lent:
        for lease in (1, 2, 3):
            lent.grant(lease, NEAR, BLOCKS)
            rows, _ = STEPS[0]
            same(lent.ring.run(*rows), runner.run(Step(rows), ()).arrays)
            session = lent.crowd.workers[1].lending._session
            assert session is not None
            session._hang_up(0)
            failure = lent.ring.receive(lent.ring.send([row(LONG, 30, 1, FAR)], "logits"), 1, "logits")
            assert isinstance(failure, StepFailure) and failure.kind == "blocks_lost"
            assert isinstance(lent.repay(lease), Done) and isinstance(lent.take_back(lease), Done)
    runner.close()


def test_a_new_epoch_begins_without_leases(tmp_path: Path, folder: Path) -> None:
    with lending(tmp_path, folder) as lent:
        lent.grant(1, NEAR, 40)
        lent.ring.run(row(LONG, 0, 10, FAR))
        parts = [part.number for part in lent.parts]
        with ring_of(lent.crowd, parts, 2, near=(NEAR, BLOCKS)) as ring:
            lent.ring, lent.epoch = ring, 2
            assert lent.lent_bytes == 0
            lent.grant(1, NEAR, BLOCKS)
            lent.ring.run(row(LONG, 0, 10, FAR))
