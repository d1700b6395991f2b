"""Attention in single precision over a 16-bit cache, for CPUs whose 16-bit products are slow.

The same numbers as transformers' own `sdpa`, but for rounding; the cache stays as small as it was.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "potluck_wide_sdpa"


def wide_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    if attention_mask is not None and attention_mask.dtype is not torch.bool:
        attention_mask = attention_mask.float()
    found, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
    return found.to(query.dtype), None


def widen_attention(model: Any) -> None:
    """Models that insist on another attention than `sdpa` keep it."""
    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, wide_sdpa)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
