"""The small operations between a layer's products: norms, rotation, gates, caps. Plain torch, for any device.

Invariants: arguments stay as they are unless a name says so; norms compute in single precision whatever they are given.
Must not know recipes, weights or the cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from gpu_node.engine.layers.recipe import Activation
from gpu_node.engine.layers.rotary import Angles


def normalised(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root mean square norm over the last dimension (Zhang and Sennrich 2019)."""
    if x.dtype is not torch.float32 or x.device.type != "cpu":
        return functional.rms_norm(x, weight.shape, weight, epsilon)
    # The same in fewer calls: torch's own is made of eight on CPUs.
    mean = x.square().mean(dim=-1, keepdim=True)
    return x.mul(mean.add_(epsilon).rsqrt_()).mul_(weight)


def normalised_heads(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Each head by itself: `x` [tokens, heads, dim], `weight` [heads, dim]."""
    if x.dtype is torch.float32:
        return normalised(x, weight, epsilon)
    return functional.rms_norm(x, weight.shape[-1:], None, epsilon).mul_(weight)


def turned(x: Tensor, angles: Angles) -> Tensor:
    """Rotary position embedding (Su et al. 2021) in the half-split layout: `x` [tokens, heads, dim]; dimensions beyond
    those that the angles have stay."""
    size = angles.cosine.shape[-1]
    if size < x.shape[-1]:
        return torch.cat((turned(x[..., :size], angles), x[..., size:]), dim=-1)
    half = size // 2
    swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
    return (x * angles.cosine).addcmul_(swapped, angles.sine)


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up, the two lying beside each other: [tokens, 2 n] -> [tokens, n]."""
    gate, up = gate_up.chunk(2, dim=1)
    opened = functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
    return opened.mul_(up)


def capped_in_place(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else x.div_(cap).tanh_().mul_(cap)
