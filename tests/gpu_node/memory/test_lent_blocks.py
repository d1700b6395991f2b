"""Questions and answers stay together, also after a forward that failed between the two."""

from __future__ import annotations

import torch

from gpu_node.engine.attention import AttentionTerms
from gpu_node.memory.lender import Lender
from tests.gpu_node.memory.lending_pair import HOLDER, served
from tests.gpu_node.memory.test_arena import FORM, scene_of


def test_an_answer_that_nobody_wanted_any_more_is_not_taken_for_another() -> None:
    lender, content = Lender("cpu", most_blocks=8), torch.randn(4, FORM.block_elements)
    lender.lend(HOLDER, 1, (4, 8), FORM)
    query, new = torch.randn(1, 4, 8), torch.randn(1, 2, 8)
    with served(lender, 1, FORM) as (blocks, _):
        blocks.put([4, 5, 6, 7], content)
        blocks.stage(scene_of([4, 5]))
        blocks.ask(0, query, new, new, AttentionTerms(0.3))
        torch.testing.assert_close(blocks.read([7, 4]), content[[3, 0]])
        blocks.stage(scene_of([4, 6]))
        blocks.ask(0, query, new, new, AttentionTerms(0.3))
        blocks.stage(scene_of([4, 5]))
        blocks.ask(0, query, new, new, AttentionTerms(0.3))
        again = blocks.answer()
        expected, lse = again.output.clone(), again.lse.clone()
        blocks.stage(scene_of([4, 5]))
        blocks.ask(0, query, new, new, AttentionTerms(0.3))
        found = blocks.answer()
        torch.testing.assert_close(found.output, expected)
        torch.testing.assert_close(found.lse, lse)
