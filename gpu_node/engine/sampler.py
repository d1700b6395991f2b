"""From logits to the next token: penalties, top-k, temperature, top-p, min-p, one draw. In Ollama's order.

Draws happen on the CPU with a generator of the request's own, so a seed gives the same tokens on every device and
whatever ran before. Temperature 0 is the plain argmax.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import torch

from gpu_node.engine.sequence import SamplingOptions
from gpu_node.errors import GenerationFailed

# torch takes seeds of 64 bits; clients send whatever an integer can be.
SEED_MASK = (1 << 63) - 1


class Sampler:
    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        self._generator = torch.Generator(device="cpu")
        seed = random.getrandbits(63) if options.seed is None else options.seed & SEED_MASK
        self._generator.manual_seed(seed)

    def choose(self, logits: torch.Tensor, history: Sequence[int]) -> int:
        """`logits` is one row; `history` the prompt and everything chosen so far."""
        options = self._options
        row = logits.to(device="cpu", dtype=torch.float32)
        if options.penalises:
            row = penalised(row, history, options)
        chosen = int(row.argmax()) if options.greedy else self._draw(row)
        if not bool(torch.isfinite(row[chosen])):
            raise GenerationFailed("the model produced numbers that are not finite")
        return chosen

    def _draw(self, row: torch.Tensor) -> int:
        options = self._options
        count = options.top_k if 0 < options.top_k < row.numel() else row.numel()
        values, ids = torch.topk(row, count)
        if not bool(torch.isfinite(values[0])):
            return int(ids[0])  # the caller names the failure
        probabilities = torch.softmax(values / options.temperature, dim=-1)
        keep = kept(probabilities, options)
        probabilities = probabilities[:keep]
        at = torch.multinomial(probabilities, 1, generator=self._generator)
        return int(ids[at])


def kept(probabilities: torch.Tensor, options: SamplingOptions) -> int:
    """How many of the sorted probabilities top-p and min-p leave; never none."""
    keep = probabilities.numel()
    if options.top_p < 1.0:
        before = torch.cumsum(probabilities, dim=-1) - probabilities
        keep = int((before < options.top_p).sum())
    if options.min_p > 0.0:
        keep = min(keep, int((probabilities >= options.min_p * probabilities[0]).sum()))
    return max(keep, 1)


def penalised(row: torch.Tensor, history: Sequence[int], options: SamplingOptions) -> torch.Tensor:
    """Tokens of the recent past become less likely; the row given stays as it was."""
    recent = history if options.repeat_last_n < 0 else history[-options.repeat_last_n :]
    counts = Counter(recent)
    if not counts:
        return row
    ids = torch.tensor(list(counts))
    times = torch.tensor(list(counts.values()), dtype=torch.float32)
    values = row[ids]
    penalty = options.repeat_penalty
    values = torch.where(values > 0, values / penalty, values * penalty)
    values = values - times * options.frequency_penalty - options.presence_penalty
    changed = row.clone()
    changed[ids] = values
    return changed
