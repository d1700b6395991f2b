"""The tensors of a step against what its rows say, token by token."""

from __future__ import annotations

from array import array

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from gpu_node.engine.batch import batch_of
from gpu_node.engine.step import Row

ROWS = (
    Row(0, [11, 12, 13], 2, (7, 4), "logits", 2),
    Row(1, (21,), 8, (1, 2, 3), "logits", 1),
    Row(2, array("l", [31, 32, 33, 34, 35]), 0, (9, 8)),
)


def test_a_batch_by_hand() -> None:
    batch = batch_of(ROWS, 4)
    assert batch.tokens.tolist() == [11, 12, 13, 21, 31, 32, 33, 34, 35]
    assert batch.positions.tolist() == [2, 3, 4, 8, 0, 1, 2, 3, 4]
    assert batch.slots[0].tolist() == [7, 7, 4, 3, 9, 9, 9, 9, 8]
    assert batch.slots[1].tolist() == [2, 3, 0, 0, 0, 1, 2, 3, 0]
    assert batch.tables.tolist() == [[7, 4, 4], [1, 2, 3], [9, 8, 8]]
    assert batch.output_rows.tolist() == [1, 2, 3]
    assert (batch.starts, batch.lengths, batch.rows) == ((0, 3, 4, 9), (5, 9, 5), 3)
    assert [batch.new_tokens(row) for row in range(3)] == [3, 1, 5]
    assert batch.fresh == (4, 3, 8)
    assert {part.dtype for part in (batch.tokens, batch.tables, *batch.slots)} == {torch.int64}


@pytest.mark.parametrize(
    ("start", "count", "fresh"),
    [(0, 1, (5,)), (0, 4, ()), (1, 1, ()), (3, 1, ()), (3, 2, (6,)), (4, 1, (6,)), (5, 3, ()), (0, 9, (7,))],
)
def test_only_blocks_that_are_begun_and_left_open_are_fresh(start: int, count: int, fresh: tuple[int, ...]) -> None:
    assert batch_of([Row(0, [0] * count, start, (5, 6, 7))], 4).fresh == fresh


def test_blocks_beyond_the_row_are_not_looked_at() -> None:
    batch = batch_of([Row(0, [1], 3, (5, 6, 7))], 4)
    assert batch.tables.tolist() == [[5]]


@pytest.mark.parametrize("row", [Row(0, [], 3, (1,)), Row(0, [1, 2], 3, (1,))])
def test_rows_that_cannot_be_are_noticed(row: Row) -> None:
    with pytest.raises(AssertionError):
        batch_of([row], 4)


@settings(max_examples=60, deadline=None)
@given(
    block_tokens=some.integers(1, 17),
    sizes=some.lists(some.tuples(some.integers(0, 60), some.integers(1, 30)), min_size=1, max_size=6),
)
def test_every_token_lies_where_its_row_has_its_position(block_tokens: int, sizes: list[tuple[int, int]]) -> None:
    rows, block = [], 0
    for sequence, (start, count) in enumerate(sizes):
        needed = -(-(start + count) // block_tokens)
        rows.append(Row(sequence, list(range(count)), start, range(block, block + needed), "logits", 1))
        block += needed
    batch = batch_of(rows, block_tokens)
    at = 0
    for index, row in enumerate(rows):
        for offset in range(len(row.tokens)):
            position = row.start + offset
            slot = (int(batch.slots[0][at]), int(batch.slots[1][at]))
            assert slot == (row.blocks[position // block_tokens], position % block_tokens)
            assert int(batch.tables[index, position // block_tokens]) == slot[0]
            at += 1
        assert int(batch.output_rows[index]) == at - 1
        assert set(batch.tables[index].tolist()) <= set(row.blocks)
    assert at == len(batch.tokens)


def test_embeddings_that_are_given_stand_in_the_places_of_their_rows() -> None:
    first, last = numpy.full((3, 2), 5.0, numpy.float32), numpy.arange(10, dtype=numpy.float32).reshape(5, 2)
    rows = [
        Row(0, [11, 12, 13], 2, (7, 4), vectors=first),
        Row(1, (21,), 8, (1, 2, 3), "logits", 1),
        Row(2, (31, 32, 33, 34, 35), 0, (9, 8), vectors=last),
    ]
    batch = batch_of(rows, 4)
    embedded = batch.with_given(torch.zeros(9, 2), factor=2.0)
    assert embedded[:3].tolist() == [[10.0, 10.0]] * 3
    assert embedded[3].tolist() == [0.0, 0.0]
    assert torch.equal(embedded[4:], torch.from_numpy(last) * 2)
    plain = torch.ones(9, 2)
    assert batch_of(ROWS, 4).vectors is None and batch_of(ROWS, 4).with_given(plain) is plain
