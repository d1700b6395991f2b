"""A step's rows by place: nothing lost, nothing doubled; and only what keeps the rules is read back."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.memory.scene import Scene, SceneBounds, unpack_scene
from tests.gpu_node.memory.scattered import BLOCK_TOKENS, batch_over, tables_of
from wire.errors import BadPayload

BLOCKS = 60
BOUNDS = SceneBounds(BLOCK_TOKENS, rows=8, tokens=100, blocks=200)
SIZES = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12)), min_size=1, max_size=6)


def known(blocks: numpy.ndarray) -> bool:
    return bool((blocks < BLOCKS).all())


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(0, 99))
def test_every_block_and_every_new_token_is_in_one_place(sizes: list[tuple[int, int]], places: int, seed: int) -> None:
    owner = numpy.random.default_rng(seed).integers(0, places, BLOCKS)
    batch = batch_over(sizes, BLOCKS, seed)
    blocks, written, fresh = [], [], []
    for place, (scene, tokens) in tables_of(batch).places(owner).items():
        assert (owner[scene.blocks] == place).all() and scene.sizes.min() > 0
        assert scene.tokens == len(tokens)
        positions = numpy.concatenate(
            [start + numpy.arange(n) for start, n in zip(scene.starts, scene.counts, strict=True)]
        )
        assert (positions == batch.positions.numpy()[tokens]).all()
        row_of = numpy.repeat(numpy.arange(scene.rows), scene.sizes)
        blocks += zip(scene.starts[row_of], scene.at, scene.blocks, strict=True)
        written += zip(tokens[scene.write_tokens], scene.write_blocks, scene.write_slots, strict=True)
        fresh += scene.fresh.tolist()
    tables = batch.tables.numpy()
    starts = [past for past, _ in sizes]
    expected = [
        (starts[row], at, tables[row, at])
        for row, length in enumerate(batch.lengths)
        for at in range(-(-length // BLOCK_TOKENS))
    ]
    assert sorted(blocks) == sorted(expected)
    slots = (batch.slots[0].tolist(), batch.slots[1].tolist())
    assert sorted(written) == list(zip(range(len(batch.tokens)), *slots, strict=True))
    assert sorted(fresh) == sorted(batch.fresh)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 99))
def test_what_was_packed_is_read_back(sizes: list[tuple[int, int]], seed: int) -> None:
    batch = batch_over(sizes, BLOCKS, seed)
    scene, _ = tables_of(batch).places(numpy.zeros(BLOCKS, dtype=numpy.int64))[0]
    found = unpack_scene(scene.pack(), BOUNDS, known)
    for name in Scene.__slots__:
        assert (getattr(found, name) == getattr(scene, name)).all(), name


def packed() -> bytearray:
    batch = batch_over([(5, 1), (0, 9)], BLOCKS, 1)
    return bytearray(tables_of(batch).places(numpy.zeros(BLOCKS, dtype=numpy.int64))[0][0].pack())


@given(st.data())
def test_other_bytes_are_refused_or_keep_the_rules(data: st.DataObject) -> None:
    changed = packed()
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        scene = unpack_scene(bytes(changed), BOUNDS, known)
    except BadPayload:
        return
    assert scene.tokens <= BOUNDS.tokens and scene.rows <= BOUNDS.rows
    assert known(scene.blocks) and known(scene.write_blocks) and known(scene.fresh)
    assert (scene.write_tokens < scene.tokens).all() and (scene.write_slots < BLOCK_TOKENS).all()


@pytest.mark.parametrize(
    "data", [b"", b"abc", bytes(16), b"\xff" * 64, bytes(packed()[:-4]), bytes(packed()) + bytes(4)]
)
def test_what_is_cut_or_absurd_is_refused(data: bytes) -> None:
    with pytest.raises(BadPayload):
        unpack_scene(data, BOUNDS, known)


def test_a_block_that_nobody_lent_is_refused() -> None:
    with pytest.raises(BadPayload, match="nobody lent"):
        unpack_scene(bytes(packed()), BOUNDS, lambda blocks: not len(blocks))
