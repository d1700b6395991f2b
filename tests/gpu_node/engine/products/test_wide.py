"""16-bit weights under 32-bit activations: when the activations are rounded, and when they must not be."""

import pytest
import torch

from gpu_node.engine.products.wide import ROUNDED_ROWS, WideProduct

ROWS, COLUMNS = 96, 64


def parts(count, dtype=torch.bfloat16):
    torch.manual_seed(count)
    return torch.randn(ROWS, COLUMNS).to(dtype), torch.randn(ROWS), torch.randn(count, COLUMNS)


def exact(weight, bias, x):
    return x @ weight.float().t() + bias


def rounded(weight, bias, x):
    return torch.nn.functional.linear(x.to(weight.dtype), weight).float() + bias


@pytest.mark.parametrize("count", [ROUNDED_ROWS + 1, 33])
def test_many_rows_are_multiplied_in_single_precision(count):
    weight, bias, x = parts(count)
    torch.testing.assert_close(WideProduct(weight, bias)(x), exact(weight, bias, x))


@pytest.mark.parametrize("count", [ROUNDED_ROWS + 1, 33])
def test_with_native_units_they_are_rounded(count):
    weight, bias, x = parts(count)
    found = WideProduct(weight, bias, native=True)(x)
    torch.testing.assert_close(found, rounded(weight, bias, x), rtol=0, atol=0)
    assert not torch.equal(found, exact(weight, bias, x))


@pytest.mark.parametrize("count", [1, 33])
@pytest.mark.parametrize("native", [False, True])
def test_what_must_not_be_rounded_never_is(count, native):
    weight, bias, x = parts(count)
    product = WideProduct(weight, bias, may_round=False, native=native)
    torch.testing.assert_close(product(x), exact(weight, bias, x))


@pytest.mark.parametrize("count", [1, 33])
def test_half_precision_weights_never_round_activations(count):
    weight, bias, x = parts(count, torch.float16)
    torch.testing.assert_close(WideProduct(weight, bias, native=True)(x), exact(weight, bias, x))
