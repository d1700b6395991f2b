import weakref

import torch

from gpu_node.engine.layers.operations import turned
from gpu_node.engine.layers.rotary import FIRST_POSITIONS, RotaryTables
from tests.fakes.tiny_families import tiny_family


def tables_of(family, class_name, names):
    model = tiny_family(family)
    return model, RotaryTables(model.config, class_name, names, torch.float32).to(torch.device("cpu"))


def test_turns_as_transformers_does():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model, tables = tables_of("llama", "llama.Llama", [""])
    positions = torch.tensor([0, 5, 77, 3])
    x = torch.randn(4, 3, 8)
    cosine, sine = model.model.rotary_emb(x, positions[None])
    wanted, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cosine, sine)
    found = turned(x, tables.reaching(78)[""].at(positions))
    torch.testing.assert_close(found, wanted[0].transpose(0, 1))


def test_tables_grow_to_what_is_asked_for():
    _, tables = tables_of("llama", "llama.Llama", [""])
    before = tables.reaching(10)[""]
    place = weakref.ref(before.cosine)
    assert before.cosine.shape[0] == FIRST_POSITIONS
    after = tables.reaching(FIRST_POSITIONS + 1)[""]
    assert after.cosine.shape[0] == 2 * FIRST_POSITIONS
    assert torch.equal(after.cosine[:FIRST_POSITIONS], before.cosine)
    assert tables.bytes == 2 * after.cosine.nbytes
    del before
    assert place() is not None  # a CUDA graph may still read it


def test_every_layer_type_has_its_own():
    _, tables = tables_of("gemma3", "gemma3.Gemma3", ["full_attention", "sliding_attention"])
    found = tables.reaching(10)
    assert not torch.equal(found["full_attention"].cosine, found["sliding_attention"].cosine)
