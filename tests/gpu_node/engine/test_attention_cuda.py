"""Which rows of a batch are read in place and which are gathered; the kernels themselves where Triton can interpret."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_node.engine.attention_cuda import rows_of_tokens, shares_of, triton_available
from gpu_node.engine.batch import batch_of
from gpu_node.engine.step import Row

ROOT = Path(__file__).resolve().parents[3]


def batch(*shapes, block_tokens=4):
    """(tokens computed before, new tokens) a row, over scattered blocks."""
    ids = list(range(400))
    random.Random(3).shuffle(ids)
    rows = []
    for index, (start, new) in enumerate(shapes):
        count = -(-(start + new) // block_tokens)
        rows.append(Row(index, list(range(new)), start, [ids.pop() for _ in range(count)]))
    return batch_of(rows, block_tokens)


def test_each_token_knows_its_row():
    assert rows_of_tokens(batch((3, 1), (0, 4), (7, 2))).tolist() == [0, 1, 1, 1, 1, 2, 2]


def test_decodes_and_prompts_become_batches_of_their_own():
    whole = batch((3, 1), (0, 20), (9, 3), (5, 40))
    few, long = shares_of(whole)
    assert few.tokens.tolist() == [0, 21, 22, 23]
    assert few.batch.starts == (0, 1, 4) and few.batch.lengths == (4, 12)
    assert long.batch.starts == (0, 20, 60) and long.batch.lengths == (20, 45)
    assert long.batch.positions.tolist() == whole.positions[long.tokens].tolist()
    assert few.batch.tables.tolist() == whole.tables[[0, 2]].tolist()
    assert sorted([*few.tokens.tolist(), *long.tokens.tolist()]) == list(range(64))


def test_a_batch_of_one_kind_is_not_split():
    few, long = shares_of(batch((3, 1), (4, 1)))
    assert long is None and few is not None
    few, long = shares_of(batch((0, 30)))
    assert few is None and long is not None


@pytest.mark.skipif(not triton_available(), reason="Triton is not installed; its CUDA runs are in tests/gpu")
def test_the_kernels_agree_with_the_reference_when_interpreted():
    """In a process of its own: Triton decides at import whether it interprets."""
    program = "import tests.gpu.kernel_cases as cases; cases.check_all('cpu')"
    environment = {"TRITON_INTERPRET": "1", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
