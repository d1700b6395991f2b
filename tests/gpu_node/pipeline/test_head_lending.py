"""A split model whose small stage borrows: more blocks, the same tokens, through reclaims of every kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpu_node.device_fleet import DeviceFleet
from gpu_node.devices import parse_devices
from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.loader import LoadOptions, load_runner
from gpu_node.engine.step import BlockCopy, CacheChange, Pick, Row, Step
from gpu_node.memory.lending_policy import LendingPolicy
from gpu_node.pipeline.split_model import SplitOptions
from gpu_node.pipeline.split_runner import SplitRunner
from tests.fakes.greedy_steps import some_prompts
from tests.fakes.tiny_model import VOCABULARY, write_tiny_model
from tests.gpu_node.engine.driving import GREEDY, greedy
from tests.gpu_node.pipeline.splits import EXACT, PATIENT, split

LAYERS, BLOCK = 4, 4
CACHE = CacheOptions(block_tokens=BLOCK, context=128, max_running=4)
LOAD = LoadOptions("cpu", "float32", kernels="torch", cache=CACHE)
PROMPTS = some_prompts(VOCABULARY, (21, 34, 9), seed=8)
POLICY = LendingPolicy(chunk_blocks=8, idle_seconds=1e6)
# For weights, a step and 20 blocks of a KiB; and for all the 128 that are wanted, with what the other lacks.
BUDGETS = (160_000, 600_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("split") / "tiny", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[list[int]]:
    runner = load_runner(folder, EXACT)
    found = [greedy(runner, prompt, 24) for prompt in PROMPTS]
    runner.close()
    return found


def mismatched() -> DeviceFleet:
    devices = parse_devices("cpu:1MiB,cpu:1MiB")
    return DeviceFleet([replace(one, budget_bytes=size) for one, size in zip(devices, BUDGETS, strict=True)])


class People:
    """Sequences side by side over the blocks that are there, as a scheduler would give them out."""

    def __init__(self, runner: SplitRunner) -> None:
        shape = runner.cache
        self.runner = runner
        self.free = list(range(shape.promised_count))
        self.tokens: dict[int, list[int]] = {}
        self.blocks: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self.starts: dict[int, int] = {}

    def enter(self, name: int, prompt: Sequence[int]) -> None:
        self.tokens[name], self.blocks[name], self.computed[name] = list(prompt), [], 0
        self.starts[name] = len(prompt)

    def answers(self, wanted: Sequence[Sequence[int]]) -> list[list[int]]:
        """As far as these go: nothing ends here by itself."""
        return [self.tokens[at][self.starts[at] :][: len(each)] for at, each in enumerate(wanted)]

    def lack(self) -> int:
        """Blocks that the next step needs and nobody has."""
        return max(sum(self._more(name) for name in self.tokens) - len(self.free), 0)

    def tend(self, shortage: int = 0) -> CacheChange | None:
        change = self.runner.tend(shortage)
        if change is not None:
            assert not change.reset
            self.free = sorted({*self.free, *change.restored} - {*change.retired})
            for name, blocks in self.blocks.items():
                if set(blocks) & set(change.retired):  # who holds them gives way
                    self.free = sorted({*self.free, *blocks} - {*change.retired})
                    self.blocks[name], self.computed[name] = [], 0
        return change

    def step(self) -> None:
        rows, picks = [], []
        for name, tokens in self.tokens.items():
            for _ in range(self._more(name)):
                self.blocks[name].append(self.free.pop(0))
            start = self.computed[name]
            rows.append(Row(name, tokens[start:], start, tuple(self.blocks[name]), "logits", 1))
            written = len(tokens) - self.starts[name]
            picks.append(Pick(len(rows) - 1, GREEDY, key=1, written=written, history=tokens))
        for name, choice in zip(list(self.tokens), self.runner.run(Step(tuple(rows)), picks).choices, strict=True):
            self.computed[name] = len(self.tokens[name])
            self.tokens[name] += choice.tokens

    def go(self, count: int) -> None:
        for _ in range(count):
            if self.lack():
                self.tend(self.lack())
            self.step()

    def far(self) -> set[int]:
        return {b for blocks in self.blocks.values() for b in blocks if b >= self.runner.cache.promised_count}

    def _more(self, name: int) -> int:
        return max(-(-len(self.tokens[name]) // BLOCK) - len(self.blocks[name]), 0)


@contextmanager
def lending(folder: Path, **changes: Any) -> Iterator[tuple[SplitRunner, People]]:
    fleet = mismatched()
    options: SplitOptions = replace(PATIENT, lending=replace(POLICY, **changes))
    with split(folder, (2, 2), fleet=fleet, options=options, load=LOAD) as (runner, _, _):
        yield runner, People(runner)


def test_a_stage_that_is_short_borrows_and_answers_the_same(folder: Path, alone: list[list[int]]) -> None:
    with lending(folder) as (runner, people):
        shape = runner.cache
        assert 0 < shape.promised < shape.block_count and runner.lends
        for name, prompt in enumerate(PROMPTS):
            people.enter(name, prompt)
        people.go(24)
        assert people.far(), "the promised blocks do not suffice"
        assert people.answers(alone) == alone
        status = runner.pipeline
        assert status is not None and status.lending is not None
        (lease, *_) = status.lending.leases
        assert (lease.lender, lease.holder, lease.state) == ("cpu:1", "cpu:0", "lent")
        assert status.lending.lent_bytes == sum(each.size_bytes for each in status.lending.leases) > 0
        assert status.stages[0].far_blocks == sum(each.blocks for each in status.lending.leases)
        assert status.stages[0].blocks == shape.promised and status.stages[1].blocks == shape.block_count


@pytest.mark.parametrize("changes", [{}, {"move_seconds": 0.0}, {"host_bytes": 0}], ids=["moved", "late", "no room"])
def test_a_reclaim_in_the_middle_changes_no_token(
    folder: Path, alone: list[list[int]], changes: dict[str, float]
) -> None:
    with lending(folder, **changes) as (runner, people):
        for name, prompt in enumerate(PROMPTS):
            people.enter(name, prompt)
        people.go(12)
        used = people.far()
        assert used
        runner.ask_back("cpu:1", 1 << 20)
        assert runner.restless
        change = people.tend()
        status = runner.pipeline
        assert status is not None and status.lending is not None
        assert status.lending.lent_bytes == 0 and status.lending.reclaimed
        if changes:
            assert change is not None and used <= set(change.retired)
            assert status.lending.recomputed_blocks and not status.lending.host_bytes
        else:
            assert change is None and status.lending.moved_blocks and status.lending.host_bytes
        runner.ask_back("cpu:1", 0)
        people.go(12)
        assert people.answers(alone) == alone


def test_nobody_lends_where_it_is_switched_off(folder: Path) -> None:
    fleet = mismatched()
    with split(folder, (2, 2), fleet=fleet, options=replace(PATIENT, lending=None), load=LOAD) as (runner, _, _):
        assert not runner.lends and runner.cache.promised == 0
        assert runner.tend(5) is None and runner.pipeline is not None and runner.pipeline.lending is None
    with lending(folder, ratio=0.0) as (runner, _):
        assert not runner.lends


def test_leases_without_use_are_given_back(folder: Path) -> None:
    with lending(folder, idle_seconds=0.0) as (runner, people):
        change = people.tend(3)
        assert change is not None and len(change.restored) >= 3
        given = people.tend(0)
        assert given is not None and set(given.retired) == set(change.restored)
        status = runner.pipeline
        assert status is not None and status.lending is not None and status.lending.lent_bytes == 0


def test_copies_between_near_and_far_blocks_keep_their_content(folder: Path, alone: list[list[int]]) -> None:
    """As forks of a sequence, and prefixes that are shared, copy them."""
    with lending(folder) as (runner, people):
        change = people.tend(8)
        assert change is not None
        far = change.restored
        prompt = PROMPTS[0]
        near = tuple(range(6))
        row = Row(0, prompt[:-1], 0, near)
        runner.run(Step((row,)), ())
        copies = tuple(BlockCopy(at, far[at]) for at in (1, 5))
        mixed = (near[0], far[1], *near[2:5], far[5])
        pick = Pick(0, GREEDY, key=1, written=0, history=prompt)
        step = Step((Row(1, prompt[-1:], len(prompt) - 1, mixed, "logits", 1),), copies)
        assert runner.run(step, [pick]).choices[0].tokens == (alone[0][0],)


def test_blocks_of_a_lender_that_was_lost_are_taken_away_before_they_are_granted_anew(folder: Path) -> None:
    """Their numbers may come back with the next call, their content does not."""
    with lending(folder) as (runner, people):
        change = people.tend(8)
        assert change is not None and runner._lending is not None
        runner._lending.lost(0)
        assert runner.restless
        gone = people.tend(8)
        assert gone is not None and gone.retired == change.restored and not gone.restored
        again = people.tend(8)
        assert again is not None and again.restored == change.restored


def test_after_a_refusal_only_what_is_urgent_is_asked_again(folder: Path) -> None:
    with lending(folder, pause_seconds=1e6) as (runner, _):
        runner.ask_back("cpu:1", 1 << 20)
        refused = []
        for urgent in (False, False, True, False):
            assert runner.tend(8, urgent) is None
            status = runner.pipeline
            assert status is not None and status.lending is not None
            refused.append(status.lending.refused)
        assert refused == [1, 1, 2, 2]
        runner.ask_back("cpu:1", 0)
        assert runner.tend(8) is None
        change = runner.tend(4, urgent=True)
        assert change is not None
        status = runner.pipeline
        assert status is not None and status.lending is not None
        by_priority = {lease.priority: lease.blocks for lease in status.lending.leases}
        assert by_priority == {1: 4, 0: len(change.restored) - 4}, "what comes along is given back first"
