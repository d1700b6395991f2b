import torch

from gpu_node.engine.products.base import Numerics
from gpu_node.engine.products.choice import product_of
from gpu_node.engine.products.dense import DenseProduct
from gpu_node.engine.products.quantise import measure_error, quantised_int4, quantised_int8, quantised_rows


def random_weight(rows=96, columns=128):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)) * 0.05


def distance(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def test_four_bits_of_a_normal_weight_are_within_eight_percent():
    weight = random_weight()
    assert 0.03 < distance(quantised_int4(weight).dequantised(), weight) < 0.08


def test_the_best_range_beats_the_full_one():
    weight = random_weight()
    groups = weight.view(96, 4, 32)
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    step = (high - low) / 15
    full = (((groups - low) / step).round() * step + low).view_as(weight)
    assert distance(quantised_int4(weight).dequantised(), weight) < distance(full, weight)


def test_a_weight_of_sixteen_values_a_group_is_kept_exactly():
    codes = torch.randint(0, 16, (16, 64))
    codes[:, ::32], codes[:, 1::32] = 0, 15
    weight = codes * 0.5 - 2.0
    assert torch.equal(quantised_int4(weight).dequantised(), weight)


def test_equal_numbers_stay_what_they_are():
    weight = torch.full((16, 32), 0.25)
    assert torch.equal(quantised_int4(weight).dequantised(), weight)
    assert torch.allclose(quantised_int8(weight).dequantised(), weight, rtol=1e-3)
    assert torch.equal(quantised_int8(torch.zeros(4, 32)).dequantised(), torch.zeros(4, 32))


def test_eight_bits_of_a_normal_weight_are_within_one_percent():
    weight = random_weight()
    assert distance(quantised_int8(weight).dequantised(), weight) < 0.01


def test_groups_lose_less_than_whole_rows():
    weight = random_weight() * torch.linspace(0.1, 3.0, 128)
    grouped, by_row = quantised_int8(weight, 32), quantised_int8(weight)
    assert (grouped.group, grouped.scales.dtype) == (32, torch.float16)
    assert distance(grouped.dequantised(), weight) < distance(by_row.dequantised(), weight)


def test_grouped_scales_become_one_a_row():
    grouped = quantised_int4(random_weight())
    by_row = quantised_rows(grouped)
    assert (by_row.bits, by_row.group) == (8, 128)
    assert distance(by_row.dequantised(), grouped.dequantised()) < 0.01


def test_tiles_leave_no_seam():
    weight = random_weight(rows=48, columns=2**14)  # three tiles of sixteen rows
    whole = quantised_int4(weight)
    part = quantised_int4(weight[16:32])
    assert torch.equal(whole.select(slice(16, 32)).codes, part.codes)


def test_the_measured_error_is_none_for_the_weight_itself():
    weight = random_weight()
    assert measure_error(DenseProduct(weight), weight, torch.float32) < 1e-6


def test_the_measured_error_is_that_of_the_weight():
    weight = random_weight()
    product = product_of(weight, None, Numerics(kernels="torch", held_as="int4"))
    wanted = distance(quantised_int4(weight).dequantised(), weight)
    assert abs(measure_error(product, weight, torch.float32) - wanted) < 0.2 * wanted
