"""Rows become tensors and tensors rows, on a CPU where they lie."""

from __future__ import annotations

import numpy
import pytest
import torch

from gpu_node.pipeline.crossing import Crossing
from gpu_node.pipeline.step_frames import Rows

CPU = torch.device("cpu")


def test_what_comes_in_lies_in_the_room() -> None:
    crossing = Crossing(CPU)
    space = crossing.room.of(4 * 6)[: 4 * 6]
    space[:] = numpy.arange(6, dtype="<f4").tobytes()
    found = crossing.inward(Rows(2, 3, space))
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]
    found += 1
    assert numpy.frombuffer(space, "<f4").tolist() == [1, 2, 3, 4, 5, 6], "the same memory"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_goes_out_is_single_precision(dtype: torch.dtype) -> None:
    states = torch.randn(3, 8).to(dtype)
    rows = Crossing(CPU).outward(states[1:])
    assert rows.shape == (2, 8)
    assert numpy.array_equal(numpy.frombuffer(rows.data, "<f4").reshape(2, 8), states[1:].float().numpy())


def test_a_tensor_that_lies_well_is_not_copied() -> None:
    states = torch.zeros(3, 8)
    rows = Crossing(CPU).outward(states)
    states += 1
    assert numpy.frombuffer(rows.data, "<f4").min() == 1
    turned = Crossing(CPU).outward(torch.arange(6.0).view(2, 3).t())
    assert numpy.frombuffer(turned.data, "<f4").tolist() == [0, 3, 1, 4, 2, 5]


def test_no_rows_are_rows() -> None:
    assert Crossing(CPU).outward(torch.zeros(0, 8)).shape == (0, 8)
