import pytest

from gpu_node.engine.layers.recipe import NotCovered, Recipe, recipe_of
from tests.fakes.tiny_families import SLIDING, WINDOW, tiny_family


def config_of(family, **changes):
    return tiny_family(family, **changes).config


def covered(family):
    found = recipe_of(config_of(family))
    assert isinstance(found, Recipe)
    return found


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gpt2", {}, "type gpt2"),
        ("mixtral", {}, "type mixtral"),
        ("phi3-long", {}, "longrope"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
        ("llama", {"hidden_act": "relu"}, "relu"),
    ],
)
def test_what_a_recipe_cannot_say_is_not_covered(family, changes, reason):
    found = recipe_of(config_of(family, **changes))
    assert isinstance(found, NotCovered)
    assert reason in found.reason


def test_other_peoples_quantised_weights_are_not_covered():
    config = config_of("llama")
    config.quantization_config = {"quant_method": "gptq"}
    assert isinstance(recipe_of(config), NotCovered)


def test_windows_by_layer_type():
    recipe = covered("qwen2-sliding")
    assert recipe.windows == tuple(WINDOW if kind == "sliding_attention" else None for kind in SLIDING)


def test_one_window_for_all():
    assert covered("mistral").windows == (WINDOW,) * 3


def test_layers_without_positions():
    assert covered("smollm3").turns == ("", None, "")


def test_tables_by_layer_type():
    assert covered("gemma3").turns == tuple(SLIDING)


def test_multipliers_of_granite():
    recipe = covered("granite")
    assert (recipe.scales.attention, recipe.scales.embedding, recipe.scales.logits) == (0.2, 3.0 / 0.7, 0.5)
    assert recipe.residual_epsilon == recipe.epsilon / 0.7**2


def test_names_of_fused_and_separate_matrices():
    apart, fused = covered("llama"), covered("phi3")
    assert [name.rsplit(".", 1)[1] for name in apart.matrices(1)["qkv"]] == ["q_proj", "k_proj", "v_proj"]
    assert fused.matrices(1)["gate_up"] == ("model.layers.1.mlp.gate_up_proj",)
    assert set(apart.vectors(0)) == {"before_attention", "before_mlp"}
