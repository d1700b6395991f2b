"""Every product against the plain one: widen or dequantise the whole weight, then multiply."""

import pytest
import torch

from gpu_node.engine.products.base import Numerics, QuantisedWeight, pack_nibbles
from gpu_node.engine.products.choice import lookup_of, product_of, product_of_parts, tied

ROWS, COLUMNS = 96, 128
TORCH = Numerics(kernels="torch")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def q4(minima=True, rows=ROWS, seed=1, group=32):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, COLUMNS), generator=generator)
    scales = torch.rand(rows, COLUMNS // group, generator=generator).half()
    low = -8 * scales if not minima else torch.randn(rows, COLUMNS // group, generator=generator).half()
    return QuantisedWeight(pack_nibbles(codes, group), scales, low, group, 4, (rows, COLUMNS))


def q8(rows=ROWS, group=32, seed=2):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (rows, COLUMNS), generator=generator).to(torch.int8)
    scales = torch.rand(rows, COLUMNS // group, generator=generator).half()
    return QuantisedWeight(codes, scales, None, group, 8, (rows, COLUMNS))


def widened(weight):
    return weight.dequantised() if isinstance(weight, QuantisedWeight) else weight.float()


# How held, with which relative tolerance: float32 sums in another order, rounded activations, rounded scales.
WEIGHTS = {
    "float32": (drawn(ROWS, COLUMNS), 1e-6),
    "bfloat16": (drawn(ROWS, COLUMNS).bfloat16(), 5e-3),
    "float16": (drawn(ROWS, COLUMNS).half(), 1e-6),
    "q4_1": (q4(), 8e-3),
    "q4_0": (q4(minima=False), 8e-3),
    "q8_0": (q8(), 1e-2),
    "q8 by row": (q8(group=COLUMNS), 5e-3),
    "groups of 16": (q4(group=16), 1e-2),
}


@pytest.mark.parametrize("held", WEIGHTS)
@pytest.mark.parametrize("count", [1, 2, 3, 13, 40])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_widening_everything(held, count, with_bias):
    weight, tolerance = WEIGHTS[held]
    bias = drawn(ROWS, seed=5) if with_bias else None
    x = drawn(count, COLUMNS, seed=4)
    product = product_of(weight, bias, TORCH)
    wanted = x @ widened(weight).t() + (0 if bias is None else bias)
    found = product(x)
    assert (product.rows, product.columns) == (ROWS, COLUMNS)
    assert found.dtype is torch.float32
    assert float((found - wanted).norm() / wanted.norm()) < tolerance


@pytest.mark.parametrize("held", WEIGHTS)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_adds_to_a_residual(held, scale):
    weight, _ = WEIGHTS[held]
    product = product_of(weight, drawn(ROWS, seed=5), TORCH)
    x, residual = drawn(3, COLUMNS, seed=4), drawn(3, ROWS, seed=6)
    wanted = residual + scale * product(x)
    torch.testing.assert_close(product.add_to(residual.clone(), x, scale), wanted, rtol=1e-4, atol=1e-4)


def test_logits_are_not_rounded():
    weight = drawn(ROWS, COLUMNS).bfloat16()
    x = drawn(1, COLUMNS, seed=4)
    wanted = x @ weight.float().t()
    _, head = tied(weight, TORCH)
    torch.testing.assert_close(head(x), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(product_of(weight, None, TORCH)(x), wanted, rtol=1e-5, atol=1e-5)


def test_large_activations_survive_half_precision_weights():
    weight = drawn(ROWS, COLUMNS).half()
    x = drawn(1, COLUMNS) * 1e6
    assert product_of(weight, None, TORCH)(x).isfinite().all()


def test_16_bit_compute_stays_16_bit():
    weight = drawn(ROWS, COLUMNS)
    x = drawn(4, COLUMNS).bfloat16()
    for held_as in ("given", "int8", "int4"):
        product = product_of(weight, None, Numerics(torch.bfloat16, "torch", held_as=held_as))
        assert product(x).dtype is torch.bfloat16


@pytest.mark.parametrize(("held_as", "form", "share"), [("int8", "int8", 0.3), ("int4", "int4", 0.17)])
def test_quantises_when_asked(held_as, form, share):
    weight = drawn(ROWS, COLUMNS)
    product = product_of(weight, None, Numerics(kernels="torch", held_as=held_as))
    assert product.form.startswith(form)
    assert product.bytes < share * weight.nbytes


def test_what_four_bits_do_not_fit_takes_eight():
    product = product_of(drawn(ROWS, 72), None, Numerics(kernels="torch", held_as="int4"))
    assert product.form.startswith("int8")


def test_parts_held_alike_become_one():
    parts = [q4(rows=64), q4(rows=32, seed=9)]
    bias = drawn(ROWS, seed=8)
    product = product_of_parts(parts, bias, TORCH)
    x = drawn(2, COLUMNS)
    wanted = torch.cat([x @ part.dequantised().t() for part in parts], dim=1) + bias
    assert product.form == "int4, groups of 32"
    assert float((product(x) - wanted).norm() / wanted.norm()) < 8e-3


def test_parts_held_differently_are_stacked():
    parts = [q4(rows=64), q8(rows=32)]
    bias = drawn(ROWS, seed=8)
    product = product_of_parts(parts, bias, TORCH)
    x = drawn(2, COLUMNS)
    wanted = torch.cat([x @ part.dequantised().t() for part in parts], dim=1) + bias
    assert "int4" in product.form and "int8" in product.form
    assert float((product(x) - wanted).norm() / wanted.norm()) < 1e-2
    residual = drawn(2, ROWS)
    torch.testing.assert_close(product.add_to(residual.clone(), x, 2.0), residual + 2.0 * product(x))


@pytest.mark.parametrize("held", ["float32", "bfloat16", "q4_1", "q8_0"])
def test_a_table_gives_its_rows(held):
    weight, _ = WEIGHTS[held]
    ids = torch.tensor([5, 0, 95, 5])
    found = lookup_of(weight, TORCH)(ids)
    assert torch.equal(found, widened(weight)[ids])


def test_a_tied_table_of_one_scale_a_row_is_held_once():
    table = q8(group=COLUMNS)
    lookup, head = tied(table, TORCH)
    ids, x = torch.tensor([1, 90]), drawn(2, COLUMNS)
    assert torch.equal(lookup(ids), table.dequantised()[ids])
    wanted = x @ table.dequantised().t()
    assert float((head(x) - wanted).norm() / wanted.norm()) < 5e-3
