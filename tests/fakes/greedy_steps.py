"""Drives a stage by hand, the way a scheduler might on a bad day: odd pieces, odd moments, blocks in no order.

Every answer is greedy. The pool is full of NaN at first, so that a slot read without having been written shows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_node.engine.batch import batch_of
from gpu_node.engine.step import Row

BLOCK_TOKENS = 4


@dataclass
class Course:
    """One sequence on its way."""

    tokens: list[int]
    limit: int  # tokens in the end
    begins: int = 0  # the step in which it joins
    blocks: list[int] = field(default_factory=list)
    computed: int = 0


class GreedySteps:
    def __init__(self, stage: Any, seed: int = 0, block_count: int = 400, longest_piece: int = 11) -> None:
        self._stage, self._random, self._longest = stage, random.Random(seed), longest_piece
        stage.take_cache(BLOCK_TOKENS, block_count)
        self.poison()
        self._free = list(range(block_count))
        self._random.shuffle(self._free)

    def poison(self) -> None:
        for pool in self._stage.pools:
            pool.storage.fill_(float("nan"))

    def answers(self, prompts: Sequence[Sequence[int]], count: int, late: bool = True) -> list[list[int]]:
        """`count` greedy tokens for each prompt, all of them together; with `late` they join one after the other."""
        courses = [
            Course(list(prompt), len(prompt) + count, self._random.randrange(5) if late else 0) for prompt in prompts
        ]
        self.run(courses)
        return [course.tokens[-count:] for course in courses]

    def run(self, courses: Sequence[Course]) -> None:
        import torch

        step = 0
        while any(len(course.tokens) < course.limit for course in courses):
            ready = [course for course in courses if course.begins <= step and len(course.tokens) < course.limit]
            self._random.shuffle(ready)
            if ready:
                with torch.inference_mode():
                    self._step(ready)
            step += 1

    def _step(self, courses: Sequence[Course]) -> None:
        rows = [self._row(course) for course in courses]
        logits = self._stage.forward(batch_of(rows, BLOCK_TOKENS, self._stage.device), "logits")
        chosen = iter(logits.argmax(-1).tolist())
        for course, row in zip(courses, rows, strict=True):
            course.computed += len(row.tokens)
            if row.output_tokens:
                course.tokens.append(next(chosen))

    def _row(self, course: Course) -> Row:
        left = len(course.tokens) - course.computed
        piece = min(left, self._random.randint(1, self._longest))
        end = course.computed + piece
        while len(course.blocks) * BLOCK_TOKENS < end:
            course.blocks.append(self._free.pop())
        new = course.tokens[course.computed : end]
        return Row(id(course), new, course.computed, course.blocks, "logits", 1 if piece == left else 0)


def generated(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """What `generate` of transformers answers, greedily and without an end token."""
    import torch

    ids = torch.tensor([list(prompt)], device=model.device)
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    answer: list[int] = found[0, len(prompt) :].tolist()
    return answer


def some_prompts(vocabulary: int, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    choose = random.Random(seed)
    return [[choose.randrange(vocabulary) for _ in range(length)] for length in lengths]
