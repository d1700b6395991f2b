"""Greedy answers from a loaded runner, without engine and scheduler: one prompt, one step a token."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_node.engine.sequence import SamplingOptions
from gpu_node.engine.step import ModelRunner, Pick, Row, Step

GREEDY = SamplingOptions(temperature=0, repeat_penalty=1.0)


def greedy(runner: ModelRunner, prompt: Sequence[int], count: int) -> list[int]:
    """`count` tokens, or fewer where an end token comes first (it is the last one then)."""
    tokens, computed = list(prompt), 0
    size = runner.cache.block_tokens
    while len(tokens) < len(prompt) + count:
        new = tokens[computed:]
        row = Row(0, new, computed, range(-(-len(tokens) // size)), "logits", 1)
        pick = Pick(0, GREEDY, key=1, written=len(tokens) - len(prompt), history=tokens)
        (choice,) = runner.run(Step((row,)), [pick]).choices
        computed = len(tokens)
        tokens.append(choice.tokens[0])
        if tokens[-1] in runner.vocabulary.end_ids:
            break
    return tokens[len(prompt) :]
