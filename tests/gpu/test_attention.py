"""The decode kernels on a real device, in every dtype that models come in."""

import pytest
import torch

from tests.gpu.kernel_cases import CASES, check


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_kernels_agree_with_the_reference(case, dtype):
    check(case, "cuda", dtype)
