"""Sampling on a real device comes to the tokens that it comes to in main memory."""

import pytest
import torch

from gpu_node.engine.sampler import Sampler
from gpu_node.engine.sequence import SamplingOptions
from gpu_node.engine.step import Pick

OPTIONS = [
    SamplingOptions(temperature=0, repeat_penalty=1.0),
    SamplingOptions(temperature=0, logprobs=3, logit_bias=((7, 30.0),)),
    SamplingOptions(),
    SamplingOptions(top_k=0, top_p=1.0, frequency_penalty=0.3),
    SamplingOptions(top_k=0, top_p=0.95, temperature=1.0),
    SamplingOptions(typical_p=0.8, min_p=0.02),
    SamplingOptions(top_k=0, typical_p=0.8),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_same_tokens_as_on_the_host(dtype):
    logits = (torch.randn(64, 49_152, generator=torch.Generator().manual_seed(5)) * 3).to(dtype)
    logits[-1] = float("nan")
    mask = bytes([0b10101010]) * (49_152 // 8)
    picks = [
        Pick(
            row,
            OPTIONS[row % len(OPTIONS)],
            key=row,
            written=3,
            history=list(range(row, row + 200)),
            banned=frozenset({1, 2}),
            allowed=mask if row % 5 == 0 else None,
        )
        for row in range(64)
    ]
    sampler, rows = Sampler(), list(range(64))
    here = sampler.sample(logits, picks, rows)
    there = sampler.sample(logits.to("cuda"), picks, rows)
    assert [choice.tokens for choice in there] == [choice.tokens for choice in here]
    assert [choice.error for choice in there] == [choice.error for choice in here]
    assert here[-1].error and all(choice.tokens for choice in here[:-1])
    for one, two in zip(here, there, strict=True):
        for left, right in zip(one.logprobs, two.logprobs, strict=True):
            assert left.chosen.logprob == pytest.approx(right.chosen.logprob, abs=1e-3)
