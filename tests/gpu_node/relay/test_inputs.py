"""Every type of element as torch reads it; shapes that are one text, and those that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpu_node.errors import RequestError, Unsupported
from gpu_node.relay.inputs import are_ids, ids_of, tokens_in, vectors_of
from wire.tensors import DType, tensor_bytes

REALS = {
    DType.FLOAT16: torch.float16,
    DType.FLOAT32: torch.float32,
    DType.FLOAT64: torch.float64,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT8_E4M3FN: torch.float8_e4m3fn,
    DType.FLOAT8_E5M2: torch.float8_e5m2,
}
WHOLE = [DType.UINT8, DType.UINT16, DType.UINT32, DType.UINT64, DType.INT8, DType.INT16, DType.INT32, DType.INT64]


def bytes_of(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize("dtype", REALS)
def test_reals_become_singles_as_torch_makes_them(dtype: DType) -> None:
    if dtype.size == 1:
        stored = torch.arange(256, dtype=torch.uint8).view(REALS[dtype]).reshape(64, 4)
    else:
        stored = (torch.randn(64, 4, generator=torch.Generator().manual_seed(1)) * 100).to(REALS[dtype])
    found = vectors_of(dtype, (1, 64, 4), bytes_of(stored))
    assert found.shape == (64, 4)
    assert np.array_equal(np.frombuffer(found.data, "<f4").reshape(64, 4), stored.float().numpy(), equal_nan=True)


def test_singles_are_not_copied() -> None:
    data = bytearray(16)
    found = vectors_of(DType.FLOAT32, (2, 2), data)
    data[0:4] = b"\0\0\x80\x3f"
    assert np.frombuffer(found.data, "<f4")[0] == 1.0


@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_numbers_are_ids(dtype: DType) -> None:
    signed, width = dtype.name.startswith("INT"), dtype.size
    numbers = [0, 1, (1 << 8 * width - 1) - 1, -1 if signed else (1 << 8 * width) - 1]
    data = b"".join(number.to_bytes(width, "little", signed=signed) for number in numbers)
    assert are_ids(dtype) and ids_of(dtype, data) == tuple(numbers)


def test_every_type_is_read_or_refused() -> None:
    refused = []
    for dtype in DType:
        try:
            are_ids(dtype)
        except Unsupported as error:
            assert error.field == "inputs"
            refused.append(dtype)
    assert refused == [DType.BOOL, DType.COMPLEX64, DType.COMPLEX128]


@pytest.mark.parametrize(
    ("dtype", "shape", "tokens"),
    [
        (DType.INT64, (5,), 5),
        (DType.INT64, (1, 1, 5), 5),
        (DType.INT64, (), 1),
        (DType.INT64, (0,), 0),
        (DType.FLOAT16, (3, 8), 3),
        (DType.FLOAT16, (1, 3, 8), 3),
    ],
)
def test_shapes_of_one_text(dtype: DType, shape: tuple[int, ...], tokens: int) -> None:
    assert tokens_in(dtype, shape) == tokens
    data = bytes(tensor_bytes(dtype, shape))
    if are_ids(dtype):
        assert ids_of(dtype, data) == (0,) * tokens
    else:
        assert vectors_of(dtype, shape, data).shape == (tokens, 8)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(DType.INT64, (2, 5)), (DType.INT64, (0, 5)), (DType.FLOAT32, (8,)), (DType.FLOAT32, ()),
     (DType.FLOAT32, (2, 3, 8))],
)  # fmt: skip
def test_shapes_of_no_text(dtype: DType, shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="is not one text") as caught:
        tokens_in(dtype, shape)
    assert caught.value.field == "inputs"
