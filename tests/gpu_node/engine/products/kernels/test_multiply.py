from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gpu_node.engine.products.base import QuantisedWeight, pack_nibbles
from gpu_node.engine.products.kernels.tensors import RoundingRoom
from gpu_node.engine.products.kernels.weights import Unsuitable, dense_weight, packed_weight

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def random_weight(numbers: torch.Generator, rows: int, columns: int, bits: int, minima: bool, **how) -> QuantisedWeight:
    group = how.get("group", 32)
    scale_dtype = how.get("scales", torch.float16)
    low, high = (0, 16) if bits == 4 else (-128, 128)
    codes = torch.randint(low, high, (rows, columns), generator=numbers)
    shape = (rows, columns // group)
    scales = torch.rand(shape, generator=numbers).add(0.01).div(16).to(scale_dtype)
    least = torch.randn(shape, generator=numbers).div(8).to(scale_dtype) if minima else None
    packed = pack_nibbles(codes, group) if bits == 4 else codes.to(torch.int8)
    return QuantisedWeight(packed, scales, least, group, bits, (rows, columns))


def rounded(x: torch.Tensor) -> torch.Tensor:
    """What 8 bits for every 32 numbers leave of x."""
    groups = x.view(x.shape[0], -1, 32)
    scale = groups.abs().amax(dim=2, keepdim=True) / 127
    return ((groups / scale.clamp_min(1e-30)).round() * scale).view(x.shape)


def assert_near(found: torch.Tensor, wanted: torch.Tensor, share: float = 1e-5) -> None:
    wanted = wanted.to(found.dtype)
    assert (found - wanted).norm() <= share * (wanted.norm() + 1)


def product(kernels, weight, x: torch.Tensor) -> torch.Tensor:
    y = torch.full((x.shape[0], weight.rows), 99.0)
    kernels.run(kernels.multiply(weight, x, y))
    return y


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("rows", [1, 4, 7, 19])
def test_dense_products_equal_torch(kernels, numbers, kind, rows):
    for m, columns in ((1, 8), (2, 72), (3, 40), (4, 64), (5, 576), (7, 8), (8, 136), (16, 40), (20, 72)):
        held = torch.randn(rows, columns, generator=numbers).to(DTYPES[kind])
        x = torch.randn(m, columns, generator=numbers)
        assert_near(product(kernels, dense_weight(held), x), x @ held.float().t())


@pytest.mark.parametrize(
    ("bits", "minima", "scales"),
    [(4, True, torch.float16), (4, False, torch.float32), (8, False, torch.float16), (8, True, torch.float32)],
)
@pytest.mark.parametrize("rows", [1, 8, 13, 27])
def test_quantised_products_equal_the_dequantised_weight_times_the_rounded_input(
    kernels, numbers, bits, minima, scales, rows
):
    for m, columns in ((1, 32), (2, 96), (3, 64), (4, 160), (5, 64), (8, 32), (11, 96), (20, 64)):
        weight = random_weight(numbers, rows, columns, bits, minima, scales=scales)
        if scales is torch.float32:
            weight = replace(weight, scales=weight.scales * 1.00001)  # no half has these
        x = torch.randn(m, columns, generator=numbers)
        assert_near(product(kernels, packed_weight(weight), x), rounded(x) @ weight.dequantised().t())


def test_wide_groups_give_their_scale_to_every_32_columns(kernels, numbers):
    for bits, group in ((4, 64), (8, 192)):
        weight = random_weight(numbers, 12, 192, bits, minima=bits == 4, group=group)
        x = torch.randn(2, 192, generator=numbers)
        assert_near(product(kernels, packed_weight(weight), x), rounded(x) @ weight.dequantised().t())


def test_extreme_codes_do_not_overflow(kernels):
    """Instructions that sum pairs of products in 16 bits must hold the largest ones."""
    for bits, code in ((4, 15), (8, -128), (8, 127)):
        codes = torch.full((8, 64), code)
        packed = pack_nibbles(codes, 32) if bits == 4 else codes.to(torch.int8)
        weight = QuantisedWeight(packed, torch.ones(8, 2), None, 32, bits, (8, 64))
        for sign in (1.0, -1.0):
            found = product(kernels, packed_weight(weight), torch.full((1, 64), 127.0 * sign))
            assert torch.equal(found, torch.full((1, 8), code * 127.0 * sign * 64))


@pytest.mark.parametrize("quantised", [False, True])
def test_bias_and_addition_and_rows_that_lie_apart(kernels, numbers, quantised):
    for rows, m in ((9, 6), (8, 1), (16, 4), (6, 2)):
        bias = torch.randn(rows, generator=numbers)
        if quantised:
            held = random_weight(numbers, rows, 64, 4, minima=True)
            weight, plain = packed_weight(held, bias), held.dequantised()
        else:
            plain = torch.randn(rows, 64, generator=numbers)
            weight = dense_weight(plain, bias)
        x = torch.randn(m, 100, generator=numbers)[:, 3:67]
        y = torch.randn(m, rows + 5, generator=numbers)
        before = y.clone()
        kernels.run(kernels.multiply(weight, x, y[:, :rows], adds=True))
        given = rounded(x.contiguous()) if quantised else x
        assert_near(y[:, :rows], before[:, :rows] + given @ plain.t() + bias)
        assert torch.equal(y[:, rows:], before[:, rows:])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_spoil_their_own_row_only(kernels, numbers, poison):
    """Poisoned logits must be seen as such, also where x is rounded to codes."""
    held = torch.randn(11, 64, generator=numbers)
    for weight in (dense_weight(held), packed_weight(random_weight(numbers, 11, 64, 8, minima=False))):
        for at in range(64):
            x = torch.ones(3, 64)
            x[1, at] = poison
            found = product(kernels, weight, x)
            assert not torch.isfinite(found[1]).any()
            assert torch.isfinite(found[[0, 2]]).all()


def test_nothing_in_nothing_out(kernels, numbers):
    """Groups of zeros and of numbers too small for a scale have no inverse; they must not become NaN."""
    weight = packed_weight(random_weight(numbers, 8, 32, 4, minima=True))
    for x in (torch.zeros(1, 32), torch.full((1, 32), 1e-42)):
        assert torch.equal(product(kernels, weight, x), torch.zeros(1, 8))


def test_portable_code_computes_the_same(kernels, numbers):
    """Processors without the instructions that this one has get the same whole numbers."""
    from gpu_node.engine.products.kernels.catalogue import catalogue
    from gpu_node.engine.products.kernels.kernels import Kernels
    from gpu_node.engine.products.kernels.library import KernelLibrary

    portable = Kernels(KernelLibrary(catalogue(), target=replace(kernels.library.target, dots="portable")))
    for bits in (4, 8):
        weight = packed_weight(random_weight(numbers, 21, 96, bits, minima=True))
        x = torch.randn(3, 96, generator=numbers)
        assert torch.equal(product(portable, weight, x), product(kernels, weight, x))


def test_every_kind_of_processor_gets_code(kernels):
    """Compiled, not run: nothing of another machine's can be run here."""
    from llvmlite import binding

    from gpu_node.engine.products.kernels.availability import Target
    from gpu_node.engine.products.kernels.catalogue import catalogue
    from gpu_node.engine.products.kernels.library import KernelLibrary

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    arm = KernelLibrary(catalogue(), target=Target("aarch64-unknown-linux-gnu", "cortex-a76", "", "portable"))
    for name in ("packed4m_f16", "store_bf16", "run_program"):
        assert f"{name}:" in arm.assembly(name)
    modern = KernelLibrary(catalogue(), target=Target("x86_64-unknown-linux-gnu", "sapphirerapids", "", "vnni"))
    for name in ("packed4m_f16", "packed8_f16"):
        assert "vpdpbusd" in modern.assembly(name)


def test_weights_say_what_they_are(numbers):
    four = packed_weight(random_weight(numbers, 8, 64, 4, minima=True))
    assert (four.form, four.bits, four.bytes) == ("4-bit, compiled kernel", 4, 2 * (128 + 32))
    bias = torch.zeros(4)
    dense = dense_weight(torch.zeros(4, 8, dtype=torch.bfloat16), bias)
    assert (dense.form, dense.bits, dense.bytes) == ("bfloat16, compiled kernel", 0, 64 + 16)
    assert 8 < dense.rows_worth_it < four.rows_worth_it


@pytest.mark.parametrize(
    "make",
    [
        lambda: dense_weight(torch.zeros(4, 12)),
        lambda: dense_weight(torch.zeros(4, 16, dtype=torch.float64)),
        lambda: dense_weight(torch.zeros(16, 8).t()),
        lambda: dense_weight(torch.zeros(4, 8), torch.zeros(3)),
        lambda: packed_weight(random_weight(torch.Generator(), 8, 32, 4, minima=False, group=16)),
    ],
)
def test_weights_without_a_kernel_are_refused(make):
    with pytest.raises(Unsuitable):
        make()


def test_tensors_that_do_not_fit_are_refused(kernels):
    weight = dense_weight(torch.zeros(4, 8))
    x, y = torch.zeros(2, 8), torch.zeros(2, 4)
    for bad_x, bad_y in ((x[:, :4], y), (x, y[:1]), (x.double(), y), (torch.zeros(8, 2).t(), y), (x, y.half())):
        with pytest.raises(Unsuitable):
            kernels.multiply(weight, bad_x, bad_y)


def test_products_one_behind_the_other_round_in_the_same_room(kernels, numbers):
    weights = [packed_weight(random_weight(numbers, 24, columns, 4, True)) for columns in (64, 32)]
    x = [torch.randn(5, weight.columns, generator=numbers) for weight in weights]
    room = RoundingRoom.of(5, 64)
    answers = [torch.empty(5, 24) for _ in weights]
    together = [kernels.multiply(*each, room=room) for each in zip(weights, x, answers, strict=True)]
    kernels.run([operation for operations in together for operation in operations])
    for weight, part, answer in zip(weights, x, answers, strict=True):
        assert torch.equal(answer, product(kernels, weight, part))


def test_a_room_that_is_too_small_is_refused(kernels, numbers):
    weight = packed_weight(random_weight(numbers, 8, 64, 8, False))
    with pytest.raises(Unsuitable, match="do not fit"):
        kernels.multiply(weight, torch.ones(3, 64), torch.empty(3, 8), room=RoundingRoom.of(2, 64))
