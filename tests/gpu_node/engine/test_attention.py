"""The wide attention beside transformers' own, which is the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from gpu_node.engine.attention import NAME, widen_attention

IDS = torch.arange(3, 60)[None]


def model_of(folder: Path, dtype: torch.dtype, **options: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    return model.eval()


@torch.inference_mode()
def logits(model: Any, split: int) -> torch.Tensor:
    """A prompt in two pieces over one cache, so that a mask is needed."""
    cache = DynamicCache(config=model.config)
    model(input_ids=IDS[:, :split], past_key_values=cache, use_cache=True)
    found: torch.Tensor = model(input_ids=IDS[:, split:], past_key_values=cache, use_cache=True).logits
    return found


@pytest.mark.parametrize("split", [20, IDS.shape[1] - 1])
def test_in_single_precision_nothing_changes(tiny_folder: Path, split: int) -> None:
    plain, wide = model_of(tiny_folder, torch.float32), model_of(tiny_folder, torch.float32)
    widen_attention(wide)
    assert wide.config._attn_implementation == NAME
    assert torch.equal(logits(wide, split), logits(plain, split))


def test_in_half_precision_it_is_as_near_to_the_truth(tiny_folder: Path) -> None:
    truth = logits(model_of(tiny_folder, torch.float32), 20)
    plain, wide = model_of(tiny_folder, torch.bfloat16), model_of(tiny_folder, torch.bfloat16)
    widen_attention(wide)
    found = logits(wide, 20)
    assert found.dtype is torch.bfloat16
    assert not torch.equal(found, logits(plain, 20)), "it did nothing"
    assert (found - truth).abs().mean() <= 1.2 * (logits(plain, 20) - truth).abs().mean()


def test_a_model_with_an_attention_of_its_own_keeps_it(tiny_folder: Path) -> None:
    model = model_of(tiny_folder, torch.float32, attn_implementation="eager")
    widen_attention(model)
    assert model.config._attn_implementation == "eager"
