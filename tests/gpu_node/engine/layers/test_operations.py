import pytest
import torch
import torch.nn.functional as functional

from gpu_node.engine.layers.operations import capped_in_place, gated, normalised, normalised_heads, turned
from gpu_node.engine.layers.rotary import Angles


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_is_root_mean_square(dtype):
    x, weight = torch.randn(5, 16).to(dtype), torch.rand(16).to(dtype)
    wanted = (x.float() / (x.float().square().mean(1, keepdim=True) + 1e-3).sqrt() * weight.float()).to(dtype)
    kept = x.clone()
    torch.testing.assert_close(normalised(x, weight, 1e-3), wanted)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_head_has_its_own_norm_and_weight(dtype):
    x, weight = torch.randn(5, 3, 8).to(dtype), torch.rand(3, 8).to(dtype)
    wanted = torch.stack([normalised(x[:, head], weight[head], 1e-5) for head in range(3)], dim=1)
    torch.testing.assert_close(normalised_heads(x, weight, 1e-5), wanted)


def test_dimensions_beyond_the_angles_stay():
    x = torch.randn(2, 3, 8)
    angles = Angles(torch.zeros(2, 1, 4), torch.ones(2, 1, 4))
    found = turned(x, angles)
    assert torch.equal(found[..., 4:], x[..., 4:])
    assert torch.equal(found[..., :4], torch.cat((x[..., 2:4], x[..., :2]), -1))


def test_gates():
    x = torch.randn(3, 10)
    assert torch.equal(gated(x, "silu"), functional.silu(x[:, :5]) * x[:, 5:])
    assert torch.equal(gated(x, "gelu_tanh"), functional.gelu(x[:, :5], approximate="tanh") * x[:, 5:])


def test_caps():
    x = torch.tensor([0.0, 1000.0, -5.0])
    torch.testing.assert_close(capped_in_place(x.clone(), 30.0), 30 * torch.tanh(x / 30))
    assert capped_in_place(x, None) is x
