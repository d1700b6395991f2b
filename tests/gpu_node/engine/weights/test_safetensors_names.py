"""Stacks are whole or not offered."""

from __future__ import annotations

from gpu_node.engine.weights.safetensors_names import renamed, stacks_of


def experts(count: int, form: str, parts: tuple[str, ...]) -> list[str]:
    return [form.format(expert, part) for expert in range(count) for part in parts]


def test_experts_of_both_namings_are_stacked_in_order() -> None:
    for form, parts in (
        ("model.layers.1.mlp.experts.{}.{}_proj.weight", ("down", "gate", "up")),
        ("model.layers.1.block_sparse_moe.experts.{}.{}.weight", ("w2", "w1", "w3")),
    ):
        found = stacks_of(experts(11, form, parts))
        both, down = (found[f"model.layers.1.mlp.experts.{name}"] for name in ("gate_up_proj", "down_proj"))
        assert both.experts[10] == (form.format(10, parts[1]), form.format(10, parts[2]))
        assert [expert[0] for expert in down.experts] == [form.format(n, parts[0]) for n in range(11)]


def test_a_stack_that_lacks_a_part_or_an_expert_is_none() -> None:
    names = experts(3, "a.mlp.experts.{}.{}_proj.weight", ("gate", "up", "down"))
    assert len(stacks_of(names)) == 2
    assert stacks_of(names[:-1]) == {}
    assert stacks_of(names[3:]) == {}
    assert stacks_of(["a.mlp.gate_proj.weight"]) == {}


def test_older_names_of_modules() -> None:
    names = ["embed_out.weight", "model.layers.0.block_sparse_moe.gate.weight", "model.norm.weight"]
    assert renamed(names) == {
        "lm_head.weight": "embed_out.weight",
        "model.layers.0.mlp.gate.weight": "model.layers.0.block_sparse_moe.gate.weight",
    }
