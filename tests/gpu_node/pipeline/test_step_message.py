"""A step comes back from its bytes as it was, and nothing that a part does not have comes out of any bytes."""

from __future__ import annotations

import struct
from dataclasses import FrozenInstanceError, replace

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.engine.batch import batch_of
from gpu_node.engine.step import BlockCopy, Row
from gpu_node.pipeline.step_message import FEW, StepBounds, StepMessage, pack_step, unpack_step
from wire.errors import BadPayload, OutOfBounds

BOUNDS = StepBounds(block_tokens=4, block_count=32, vocabulary=211, hidden_size=3, rows=8, tokens=64, copies=4)
STEP = StepMessage(
    7,
    (
        Row(12, (3, 1, 4, 1, 5), 6, (9, 2, 30), "logits", 2),
        Row(13, (210,), 0, (31,)),
        Row(1 << 62, (8, 9), 2, (5,), "hidden", 1),
    ),
    "logits",
    (BlockCopy(1, 31), BlockCopy(0, 2)),
)
BLOCKS = st.integers(0, BOUNDS.block_count - 1)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    blocks = draw(st.lists(BLOCKS, min_size=1, max_size=6).map(tuple))
    count = draw(st.integers(1, min(len(blocks) * BOUNDS.block_tokens, 8)))
    start = draw(st.integers(0, len(blocks) * BOUNDS.block_tokens - count))
    tokens = tuple(draw(st.integers(0, BOUNDS.vocabulary - 1)) for _ in range(count))
    vectors = None
    if draw(st.booleans()):
        vectors = numpy.arange(count * 3, dtype=numpy.float32).reshape(count, 3) / 7
    kind = draw(st.sampled_from(["nothing", "logits", "hidden"]))
    return Row(draw(st.integers(0, 1 << 62)), tokens, start, blocks, kind, draw(st.integers(0, count)), vectors)


MESSAGES = st.builds(
    StepMessage,
    st.integers(0, (1 << 32) - 1),
    st.lists(rows(), min_size=1, max_size=8).map(tuple),
    st.sampled_from(["nothing", "logits", "hidden"]),
    st.lists(st.builds(BlockCopy, BLOCKS, BLOCKS), max_size=4).map(tuple),
)


@given(MESSAGES)
def test_every_step_comes_back(message: StepMessage) -> None:
    found = unpack_step(pack_step(message), BOUNDS)
    assert found == message  # embeddings are not compared by that
    for one, other in zip(found.rows, message.rows, strict=True):
        assert (one.vectors is None) == (other.vectors is None)
        assert other.vectors is None or numpy.array_equal(one.vectors, other.vectors)


@given(MESSAGES)
def test_the_batch_made_of_it_is_the_one_that_was_meant(message: StepMessage) -> None:
    found, meant = (
        batch_of(one.rows, BOUNDS.block_tokens) for one in (unpack_step(pack_step(message), BOUNDS), message)
    )
    for name in ("tokens", "positions", "tables", "output_rows"):
        assert getattr(found, name).equal(getattr(meant, name)), name
    assert (found.starts, found.lengths, found.fresh) == (meant.starts, meant.lengths, meant.fresh)


def test_rows_are_rows_like_any_other() -> None:
    found = unpack_step(pack_step(STEP), BOUNDS).rows
    assert found == STEP.rows and hash(found) == hash(STEP.rows) and repr(found) == repr(STEP.rows)
    assert {type(row) for row in found} == {Row} and replace(found[0], start=3).start == 3
    with pytest.raises(FrozenInstanceError):
        found[0].start = 3


@pytest.mark.parametrize("count", [FEW - 1, FEW, FEW + 1])
def test_many_numbers_are_looked_through_as_few_are(count: int) -> None:
    wide = StepBounds(block_tokens=4, block_count=200, vocabulary=300, hidden_size=3)
    good = Row(1, (299,) * count, 0, (*range(count - 1), 199), "logits", 1)
    assert unpack_step(pack_step(StepMessage(1, (good,), "logits")), wide).rows == (good,)
    for wrong in (replace(good, tokens=(*good.tokens[1:], 300)), replace(good, blocks=(*good.blocks[1:], 200))):
        with pytest.raises(BadPayload, match="a token or a block"):
            unpack_step(pack_step(StepMessage(1, (wrong,), "logits")), wide)


def test_lists_and_ranges_are_rows_too() -> None:
    row = Row(1, [3, 4], 0, range(2), "logits", 1)
    assert unpack_step(pack_step(StepMessage(0, (row,), "logits")), BOUNDS).rows == (
        replace(row, tokens=(3, 4), blocks=(0, 1)),
    )


def test_parts_behind_the_first_are_not_told_embeddings() -> None:
    row = Row(1, (3, 4), 0, (1,), "logits", 1, numpy.ones((2, 3), numpy.float32))
    message = StepMessage(0, (row,), "logits")
    told = unpack_step(pack_step(message), BOUNDS).rows[0].vectors
    assert told is not None and told.dtype == numpy.float32 and told.shape == (2, 3)
    small = pack_step(message, vectors=False)
    assert len(small) == len(pack_step(message)) - 2 * 3 * 4
    assert unpack_step(small, BOUNDS).rows[0].vectors is None


def test_it_is_as_small_as_its_numbers() -> None:
    """A header, 28 bytes a row, 8 a copy and 4 a number."""
    assert len(pack_step(STEP)) == 32 + 3 * 28 + 2 * 8 + 4 * (8 + 5)


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (replace(STEP, rows=()), "1 to 8 rows"),
        (replace(STEP, rows=STEP.rows * 3), "1 to 8 rows"),
        (replace(STEP, copies=STEP.copies * 3), "at most 4 copies"),
        (replace(STEP, rows=(Row(0, (1,) * 65, 0, tuple(range(17))),)), "at most 64 tokens"),
        (replace(STEP, copies=(BlockCopy(32, 0),)), "no block here"),
        (replace(STEP, copies=(BlockCopy(0, 32),)), "no block here"),
        (replace(STEP, rows=(Row(0, (211,), 0, (1,)),)), "a token or a block"),
        (replace(STEP, rows=(Row(0, (1,), 0, (32,)),)), "a token or a block"),
        (replace(STEP, rows=(Row(0, (), 0, (1,)),)), "a row has tokens"),
        (replace(STEP, rows=(Row(0, (1,), 0, (1,), "logits", 2),)), "outputs of them only"),
        (replace(STEP, rows=(Row(0, (1,), 4, (1,)),)), "blocks up to its end"),
        (replace(STEP, rows=(Row(0, (1,), 0, ()),)), "blocks up to its end"),
        (replace(STEP, rows=(Row(0, (1,), 131, (1,) * 33),)), "blocks up to its end"),
        (replace(STEP, rows=(Row(0, (1,), 0, (1,), vectors=numpy.ones((1, 4), "<f4")),)), "not all that is in"),
        (replace(STEP, rows=(Row(0, (1,), 0, (1,), vectors=numpy.ones((1, 2), "<f4")),)), "more embeddings"),
    ],
)
def test_what_the_part_does_not_have_is_refused(step: StepMessage, told: str) -> None:
    with pytest.raises(BadPayload, match=told):
        unpack_step(pack_step(step), BOUNDS)


@pytest.mark.parametrize(
    "step",
    [
        replace(STEP, number=1 << 32),
        replace(STEP, number=-1),
        replace(STEP, rows=(Row(0, (-1,), 0, (1,)),)),
        replace(STEP, rows=(Row(0, (1,), 0, (1 << 32,)),)),
        replace(STEP, rows=(Row(1 << 63, (1,), 0, (1,)),)),
        replace(STEP, rows=(Row(-1, (1,), 0, (1,)),)),
        replace(STEP, rows=(Row(0, (1,), -1, (1,)),)),
        replace(STEP, copies=(BlockCopy(0, -1),)),
    ],
)
def test_what_has_no_place_is_our_own_mistake(step: StepMessage) -> None:
    with pytest.raises(OutOfBounds):
        pack_step(step)


@pytest.mark.parametrize(
    ("place", "byte"),
    [(0, 0), (4, 2), (5, 3), (32 + 24, 3), (32 + 25, 2), (32 + 7, 0x80)],
    ids=["magic", "version", "want", "output", "given", "sequence"],
)
def test_other_bytes_are_no_step(place: int, byte: int) -> None:
    data = bytearray(pack_step(STEP))
    data[place] = byte
    with pytest.raises(BadPayload):
        unpack_step(data, BOUNDS)


def test_every_length_but_its_own_is_refused() -> None:
    data = pack_step(STEP)
    for size in range(len(data)):
        with pytest.raises(BadPayload):
            unpack_step(data[:size], BOUNDS)
    with pytest.raises(BadPayload):
        unpack_step(data + b"\0", BOUNDS)


def test_a_count_that_promises_gigabytes_takes_none() -> None:
    data = bytearray(pack_step(STEP))
    data[28:32] = struct.pack("<I", 0xFFFF_FFFF)
    with pytest.raises(BadPayload, match="has"):
        unpack_step(data, BOUNDS)


def test_rows_that_claim_each_others_tokens_are_refused() -> None:
    data = bytearray(pack_step(STEP))
    struct.pack_into("<I", data, 32 + 12, 6)  # of the first row, which has blocks for them
    with pytest.raises(BadPayload, match=r"not all|claim more"):
        unpack_step(data, BOUNDS)


@settings(max_examples=150)
@given(st.data())
def test_bytes_that_changed_give_a_step_within_bounds_or_none(data: st.DataObject) -> None:
    packed = bytearray(pack_step(data.draw(MESSAGES)))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = unpack_step(packed, BOUNDS)
    except BadPayload:
        return
    for row in found.rows:
        assert max(row.tokens) < BOUNDS.vocabulary and max(row.blocks) < BOUNDS.block_count
        assert row.start + len(row.tokens) <= len(row.blocks) * BOUNDS.block_tokens
        assert row.output_tokens <= len(row.tokens)
    batch_of(found.rows, BOUNDS.block_tokens)
