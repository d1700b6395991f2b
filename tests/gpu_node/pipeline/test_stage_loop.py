"""A part that was warmed up has computed something, and knows nothing of it."""

from __future__ import annotations

import pytest
import torch

from gpu_node.pipeline.stage_loop import warm
from tests.gpu_node.engine.layers.chains import LAYERS, chained, four_layers


@pytest.mark.parametrize("counts", [(LAYERS,), (1, 2, 1)])
def test_a_warm_part_has_an_empty_cache(counts: tuple[int, ...]) -> None:
    for part in chained(four_layers("llama"), counts).parts:
        part.take_cache(4, 8)
        assert part.pool is not None
        written = part.pool.storage._version
        warm(part)
        assert part.pool.storage._version > written, "a forward has written its keys and values"
        assert torch.count_nonzero(part.pool.storage) == 0
