"""Values that make no sense are a mistake of ours, and are caught where they are made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu_node.engine.planned import Limits, Submission

LIMITS = Limits(block_tokens=16, block_count=4)
SUBMISSION = Submission((1, 2), 8)


def test_the_capacity_is_all_slots() -> None:
    assert LIMITS.capacity_tokens == 64


def test_blocks_that_come_and_go_are_no_capacity() -> None:
    assert replace(LIMITS, promised=3).capacity_tokens == 48


@pytest.mark.parametrize(
    "wrong",
    [
        {"promised": -1},
        {"promised": 5},
        {"block_tokens": 0},
        {"block_count": 0},
        {"max_running": 0},
        {"step_tokens": 0},
        {"mixed_step_tokens": 0},
        {"max_waiting": -1},
        {"max_drafts": -1},
    ],
)
def test_limits_let_something_happen(wrong: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        replace(LIMITS, **wrong)


@pytest.mark.parametrize("wrong", [{"ids": ()}, {"max_context": 1}, {"samples": 0}, {"samples": 2, "output": "logits"}])
def test_a_submission_can_be_answered(wrong: dict) -> None:
    with pytest.raises(AssertionError):
        replace(SUBMISSION, **wrong)


DEEP = replace(LIMITS, step_tokens=512, mixed_step_tokens=64, step_pairs=512 * 2048)


@pytest.mark.parametrize(
    ("decodes", "depth", "tokens"),
    [
        (0, 0, 512),
        (0, 2048, 512),  # so deep a full step is just bearable
        (0, 8192, 128),
        (0, 10**9, 16),  # but a block is always read
        (4, 0, 64),
        (4, 2048, 64),
        (4, 8192, 20),  # four decodes and a block
        (60, 8192, 64),
    ],
)
def test_deep_in_a_book_a_step_reads_less(decodes: int, depth: int, tokens: int) -> None:
    assert DEEP.budget(decodes, depth) == tokens


def test_without_a_bound_depth_does_not_matter() -> None:
    assert LIMITS.budget(0, 10**9) == LIMITS.step_tokens
