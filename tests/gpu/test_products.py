"""Quantised products by the device's own kernels, against multiplying with the dequantised weight."""

import pytest
import torch

from gpu_node.engine.products.base import Numerics, QuantisedWeight
from gpu_node.engine.products.choice import product_of
from gpu_node.engine.products.quantise import quantised_int4, quantised_int8

ROWS, COLUMNS = 256, 512


def weights(device):
    torch.manual_seed(2)
    given = torch.randn(ROWS, COLUMNS, device=device)
    return {"int4": quantised_int4(given), "int8": quantised_int8(given, None)}


@pytest.mark.parametrize("form", ["int4", "int8"])
@pytest.mark.parametrize("count", [1, 8, 70])
def test_a_quantised_product_is_near_the_plain_one(form, count, device):
    weight = weights(device)[form]
    assert isinstance(weight, QuantisedWeight)
    x = torch.randn(count, COLUMNS, device=device).bfloat16()
    found = product_of(weight, None, Numerics(compute=torch.bfloat16, device=torch.device(device)))(x)
    wanted = x.float() @ weight.dequantised().to(device).t()
    assert found.device == x.device
    assert float((found.float() - wanted).norm() / wanted.norm()) < 2e-2
