"""Compiled products beside the plain one: widen or dequantise the whole weight, then multiply."""

import pytest
import torch

from gpu_node.engine.products.base import Numerics
from gpu_node.engine.products.choice import product_of, product_of_parts, tied, with_kernels
from gpu_node.engine.products.compiled import DENSE_ROWS, CompiledProduct
from gpu_node.engine.products.quantise import measure_error
from gpu_node.errors import ModelError
from tests.gpu_node.engine.products.test_choice import COLUMNS, ROWS, drawn, q4, q8, widened

# With which relative tolerance: kernels round activations of quantised weights to 8 bits.
WEIGHTS = {
    "float32": (drawn(ROWS, COLUMNS), 1e-6),
    "bfloat16": (drawn(ROWS, COLUMNS).bfloat16(), 1e-6),
    "float16": (drawn(ROWS, COLUMNS).half(), 1e-6),
    "q4_1": (q4(), 1e-2),
    "q4_0": (q4(minima=False), 1e-2),
    "q8_0": (q8(), 1e-2),
}


@pytest.mark.parametrize("held", WEIGHTS)
@pytest.mark.parametrize("count", [1, 3, DENSE_ROWS, DENSE_ROWS + 1])
def test_equals_widening_everything(held, count, product_kernels):
    weight, tolerance = WEIGHTS[held]
    bias, x = drawn(ROWS, seed=5), drawn(count, COLUMNS, seed=4)
    product = product_of(weight, bias, Numerics(compiled=product_kernels))
    assert isinstance(product, CompiledProduct)
    wanted = x @ widened(weight).t() + bias
    assert float((product(x) - wanted).norm() / wanted.norm()) < tolerance
    for scale in (1.0, 0.5):
        residual = drawn(count, ROWS, seed=6)
        found = product.add_to(residual.clone(), x, scale)
        torch.testing.assert_close(found, residual + scale * product(x), rtol=1e-4, atol=1e-4)


def test_no_rows_are_no_mistake(product_kernels):
    product = product_of(q4(), None, Numerics(compiled=product_kernels))
    assert product(drawn(0, COLUMNS)).shape == (0, ROWS)
    assert product.add_to(drawn(0, ROWS), drawn(0, COLUMNS)).shape == (0, ROWS)


def test_what_has_no_kernel_is_left_to_torch(product_kernels):
    numerics = Numerics(compiled=product_kernels)
    parts = [q4(rows=64), drawn(32, COLUMNS).double()]
    product = product_of_parts(parts, None, numerics)
    x = drawn(2, COLUMNS)
    wanted = torch.cat([x @ widened(part).t() for part in parts], dim=1)
    assert product.form == "4-bit, compiled kernel + float32"
    assert float((product(x) - wanted).norm() / wanted.norm()) < 1e-2


@pytest.mark.parametrize("weight", [q8(group=16), q4(group=16)])
def test_scales_for_16_columns_become_scales_for_32(weight, product_kernels):
    product = product_of(weight, None, Numerics(compiled=product_kernels))
    assert isinstance(product, CompiledProduct)
    assert measure_error(product, weight, torch.float32) < 0.01


@pytest.mark.parametrize("table", [q8(), q4(), q4(minima=False), q8(group=COLUMNS)])
def test_a_quantised_table_is_held_once(table, product_kernels):
    lookup, head = tied(table, Numerics(compiled=product_kernels))
    ids = torch.tensor([5, 0, 95, 8, 5])
    torch.testing.assert_close(lookup(ids), table.dequantised()[ids], rtol=1e-6, atol=1e-6)
    assert isinstance(head, CompiledProduct)
    assert lookup.bytes == head.bytes
    assert lookup(torch.tensor([], dtype=torch.int64)).shape == (0, COLUMNS)


def test_kernels_are_for_single_precision_on_cpus():
    halves = Numerics(compute=torch.bfloat16)
    assert with_kernels(halves) is halves
    with pytest.raises(ModelError):
        with_kernels(Numerics(compute=torch.bfloat16, kernels="compiled"))


def test_kernels_that_nobody_wants_stay_closed():
    assert with_kernels(Numerics(kernels="torch")).compiled is None


def test_kernels_that_are_open_stay_those(product_kernels):
    numerics = Numerics(compiled=product_kernels)
    assert with_kernels(numerics) is numerics
