from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from gpu_node.engine.products.kernels.weights import Unsuitable

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def assert_near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (3, 64), (5, 576)])
@pytest.mark.parametrize("with_delta", [False, True])
def test_norm(kernels, numbers, rows, columns, with_delta):
    x = torch.randn(rows, columns + 8, generator=numbers)[:, :columns]
    weight = torch.randn(columns, generator=numbers)
    delta = torch.randn(rows, columns, generator=numbers) if with_delta else None
    wanted_x = x.clone() if delta is None else x + delta
    y = torch.zeros(rows, columns)
    kernels.run(kernels.normalise(x, weight, y, 1e-5, delta))
    assert_near(x, wanted_x)
    assert_near(y, functional.rms_norm(wanted_x, (columns,), weight, 1e-5))


def test_norm_in_place_and_with_its_epsilon(kernels):
    x = torch.full((2, 16), 1e-3)
    kernels.run(kernels.normalise(x, torch.ones(16), x, 3e-6))
    assert_near(x, torch.full((2, 16), 0.5))


@pytest.mark.parametrize(("heads", "size", "half"), [(1, 16, 8), (5, 64, 32), (3, 80, 16)])
def test_rotation(kernels, numbers, heads, size, half):
    fused = torch.randn(4, heads * size + 24, generator=numbers)
    before = fused.clone()
    angles = torch.randn(4, half, generator=numbers)
    x = fused[:, : heads * size].view(4, heads, size)
    kernels.run(kernels.rotate(x, angles.cos(), angles.sin()))
    old = before[:, : heads * size].view(4, heads, size)
    low, high = old[..., :half], old[..., half : 2 * half]
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    turned = torch.cat([low * cosine - high * sine, high * cosine + low * sine, old[..., 2 * half :]], dim=2)
    assert_near(x, turned)
    assert torch.equal(fused[:, heads * size :], before[:, heads * size :])


@pytest.mark.parametrize("dtype", DTYPES)
def test_storing_writes_the_slots_and_nothing_else(kernels, numbers, dtype):
    """Rounded as torch rounds; NaN and numbers too great for the cache's type stay visible."""
    storage = torch.zeros(6, 3, 8, 24, dtype=dtype)
    pool = storage[:, :, :, :16].permute(0, 2, 1, 3)  # [blocks, block_tokens, kv_heads, size], as in the pool
    x = torch.randn(5, 3, 16, generator=numbers) * 100
    x[0, 0, :4] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e38])
    x[0, 1, :2] = torch.tensor([1.00390625, 1.01171875])  # halfway between two numbers of bfloat16
    blocks, places = torch.tensor([5, 0, 5, 2, 1]), torch.tensor([0, 7, 3, 2, 4])
    kernels.run(kernels.store(x, pool, blocks, places))
    wanted = torch.zeros_like(storage)
    wanted[:, :, :, :16].permute(0, 2, 1, 3).index_put_((blocks, places), x.to(dtype))
    torch.testing.assert_close(storage, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("activation", "reference"), [("silu", functional.silu), ("gelu_tanh", None)])
def test_gate(kernels, numbers, activation, reference):
    both = torch.randn(3, 80, generator=numbers) * 6
    both[0, :4] = torch.tensor([-200.0, 200.0, 0.0, -87.5])
    gates, ups = both[:, :40], both[:, 40:]
    wanted = (reference(gates) if reference else functional.gelu(gates, approximate="tanh")) * ups
    y = torch.zeros(3, 40)
    kernels.run(kernels.gate(gates, ups, y, activation))
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=2e-5)
    kernels.run(kernels.gate(gates, ups, gates, activation))
    assert torch.equal(gates, y)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates_let_nan_through(kernels, activation):
    gates = torch.zeros(1, 8)
    gates[0, 3] = float("nan")
    kernels.run(kernels.gate(gates, torch.ones(1, 8), gates, activation))
    assert gates.isnan().tolist() == [[False, False, False, True, False, False, False, False]]


def test_norms_let_nan_through(kernels):
    x = torch.ones(2, 8)
    x[0, 5] = float("inf")
    kernels.run(kernels.normalise(x, torch.ones(8), x, 1e-5))
    assert not torch.isfinite(x[0]).all()
    assert torch.isfinite(x[1]).all()


def test_what_does_not_fit_is_refused(kernels):
    x = torch.zeros(2, 3, 16)
    angles = torch.zeros(2, 8)
    index = torch.zeros(2, dtype=torch.int64)
    pool = torch.zeros(4, 8, 3, 16)
    refused = [
        lambda: kernels.normalise(torch.zeros(2, 12), torch.zeros(12), torch.zeros(2, 12), 1e-5),
        lambda: kernels.normalise(torch.zeros(2, 16), torch.zeros(8), torch.zeros(2, 16), 1e-5),
        lambda: kernels.rotate(x.transpose(0, 1), angles, angles),
        lambda: kernels.rotate(x, torch.zeros(2, 16), torch.zeros(2, 16)),
        lambda: kernels.rotate(x, angles[:1], angles),
        lambda: kernels.store(x, pool.double(), index, index),
        lambda: kernels.store(x, pool[:, :, :2], index, index),
        lambda: kernels.store(x, pool, index.int(), index),
        lambda: kernels.gate(torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 4)),
        lambda: kernels.gate(torch.zeros(2, 8), torch.zeros(1, 8), torch.zeros(2, 8)),
    ]
    for attempt in refused:
        with pytest.raises(Unsuitable):
            attempt()
