"""A chain of workers gives the very numbers of one runner, whatever becomes of it in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.loader import LoadOptions, load_runner
from gpu_node.engine.runner import Runner
from gpu_node.engine.step import BlockCopy, Row, Step
from gpu_node.pipeline.orders import Loaded
from tests.fakes.tiny_model import VOCABULARY, write_tiny_model
from tests.gpu_node.engine.layers.chains import divisions
from tests.gpu_node.pipeline.worker_crowd import BLOCK, BLOCKS, Crowd, Ring, crowd, ring_of

LAYERS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("split"), num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def tied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tied"), 1, num_hidden_layers=LAYERS, tie_word_embeddings=True)


def single(path: Path) -> Runner:
    cache = CacheOptions(block_tokens=BLOCK, block_count=BLOCKS)
    return load_runner(path, LoadOptions(device="cpu", threads=1, kernels="torch", cache=cache))


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def row(ids: Sequence[int], start: int, count: int, first: int = 0, **more: Any) -> Row:
    blocks = tuple(BLOCKS - 1 - first - at for at in range(-(-(start + count) // BLOCK)))
    more = {"output": "logits", "output_tokens": 1} | more
    return Row(first, ids[start : start + count], start, blocks, **more)


LONG, SHORT = prompt(23, 1), prompt(9, 2)
VECTORS = numpy.random.default_rng(3).normal(size=(5, 32)).astype("<f4")
STEPS: list[tuple[tuple[Row, ...], tuple[BlockCopy, ...]]] = [
    ((row(LONG, 0, 9, output="nothing", output_tokens=0),), ()),
    ((row(SHORT, 0, 4, 16, output_tokens=4), row(LONG, 9, 1)), ()),
    ((row(LONG, 10, 12), row(SHORT, 4, 4, 16, output="hidden", output_tokens=3)), ()),
    ((row(SHORT, 8, 1, 16), row(LONG, 22, 1), row(SHORT, 0, 5, 32, vectors=VECTORS, output_tokens=5)), ()),
    ((Row(9, SHORT[:1], 8, (0, 1, 45), "logits", 1),), (BlockCopy(47, 0), BlockCopy(46, 1))),
]


def same(found: dict[int, Any], wanted: dict[int, Any]) -> bool:
    return found.keys() == wanted.keys() and all(numpy.array_equal(found[at], wanted[at]) for at in found)


@pytest.fixture(scope="module")
def wanted(folder: Path, tied_folder: Path) -> Iterator[dict[Path, list[dict[int, Any]]]]:
    found = {}
    for path in (folder, tied_folder):
        runner = single(path)
        found[path] = [runner.run(Step(rows, copies), ()).arrays for rows, copies in STEPS]
        runner.close()
    yield found


def answers(ring: Ring) -> list[dict[int, Any]]:
    return [ring.run(*rows, copies=copies) for rows, copies in STEPS]


def loaded(crowd: Crowd, path: Path, counts: Sequence[int], **more: Any) -> list[Loaded]:
    """Each worker loads its share of the layers."""
    found = []
    for at, (first, behind) in enumerate(pairwise(accumulate(counts, initial=0))):
        answer = crowd.load(at, path, first, behind, **more)
        assert isinstance(answer, Loaded), answer
        found.append(answer)
    return found


def test_every_division_gives_the_numbers_of_one_runner(
    folder: Path, tied_folder: Path, wanted: dict[Path, list[dict[int, Any]]], tmp_path: Path
) -> None:
    """The same four workers one division after the other: what they have of the next one they keep."""
    with crowd(tmp_path, LAYERS) as workers:
        epoch = 0
        for path in (folder, tied_folder):
            for counts in divisions(LAYERS):
                epoch += 1
                parts = [answer.number for answer in loaded(workers, path, counts)]
                with ring_of(workers, parts, epoch) as ring:
                    found = answers(ring)
                assert all(map(same, found, wanted[path])), counts
