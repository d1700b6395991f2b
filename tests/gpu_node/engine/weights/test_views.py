"""A view changes what weights look like, never what they are, and tells how far reading is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpu_node.engine.weights.gguf_source import GgufSource
from gpu_node.engine.weights.views import SourceView
from tests.gpu_node.engine.weights.written_gguf import quantising, tiny_model, write_gguf

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def source(tmp_path: Path) -> GgufSource:
    return GgufSource(write_gguf(tiny_model("llama"), "llama", tmp_path / "m.gguf", quantising("Q4_1")))


def test_full_weights_look_like_floats(source: GgufSource) -> None:
    view = SourceView(source, torch.float16)
    assert (view.dtype(NAME), view.stored_dtype, view.is_quantised(NAME)) == ("F16", torch.float16, False)
    assert view.quantised(NAME) is None
    view.close()


def test_stored_weights_keep_their_codes(source: GgufSource) -> None:
    view = SourceView(source, torch.bfloat16, stored=True)
    assert (view.dtype(NAME), view.dtype("model.norm.weight")) == ("Q4_1", "BF16")
    weight, values = view.quantised(NAME), torch.empty(view.shape(NAME))
    view.read_into(NAME, values)
    assert weight is not None and torch.equal(weight.dequantised(), values)
    view.close()


def test_progress_counts_every_weight_once(source: GgufSource) -> None:
    seen: list[tuple[int, int]] = []
    view = SourceView(source, torch.float32, stored=True, progress=lambda *now: seen.append(now))
    for name in [*view.names(), NAME]:
        if view.quantised(name) is None:
            view.read_into(name, torch.empty(view.shape(name)))
    assert len(seen) == len(view.names())
    assert seen[-1][0] == seen[-1][1] == sum(view.file_bytes(name) for name in view.names())
    view.close()
