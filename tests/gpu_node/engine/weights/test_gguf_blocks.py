"""Blocks come apart into exactly the numbers that the `gguf` package computes from them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from gpu_node.engine.weights.gguf_blocks import BLOCK_BYTES, DECODERS, decoded, numbers
from gpu_node.gguf_header import BLOCK_TYPES

# Where each type keeps its half-precision scales; random bytes there would be NaN and infinity.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
}  # fmt: skip
ROWS, BLOCKS = 6, 3


def random_blocks(kind: str) -> np.ndarray:
    choose = np.random.default_rng(7)
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    raw = choose.integers(0, 256, (ROWS, BLOCKS * size), dtype=np.uint8)
    for at in SCALES[kind]:
        halves = choose.normal(0, 1, ROWS * BLOCKS).astype(np.float16)
        raw.reshape(-1, size)[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return raw


@pytest.mark.parametrize("kind", sorted(SCALES))
def test_every_value_is_the_same_number(kind: str) -> None:
    raw = random_blocks(kind)
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    found = numbers(torch.from_numpy(raw), kind, expected.shape[1])
    assert found.dtype is torch.float32
    assert np.array_equal(found.numpy(), expected)
    assert len(np.unique(expected)) > 100, "else nothing was compared"


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_codes_keep_the_size_that_they_have_in_the_file(kind: str) -> None:
    columns = BLOCKS * gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
    weight = decoded(torch.from_numpy(random_blocks(kind)), kind, columns)
    assert weight.shape == (ROWS, columns)
    assert weight.bits == (4 if kind[1] in "234" else 8)
    assert torch.equal(weight.dequantised(), numbers(torch.from_numpy(random_blocks(kind)), kind, columns))


@pytest.mark.parametrize(("kind", "dtype"), [("F32", np.float32), ("F16", np.float16), ("F64", np.float64)])
def test_plain_numbers_are_themselves(kind: str, dtype: type) -> None:
    values = np.random.default_rng(0).normal(size=(3, 8)).astype(dtype)
    found = numbers(torch.from_numpy(values.view(np.uint8)), kind, 8)
    assert np.array_equal(found.numpy(), values)


def test_sizes_are_those_of_the_format() -> None:
    for number, block in BLOCK_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == (block.name, block.values, block.size_bytes)
    for name, size in BLOCK_BYTES.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1] == size
