"""A part made out of another one's layers: the same numbers, nothing read twice, nothing held twice."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch

from gpu_node.engine.attention import PagedAttention
from gpu_node.engine.batch import batch_of
from gpu_node.engine.layers.part import Assembled, LayeredPart
from gpu_node.engine.layers.recipe import Recipe, recipe_of
from gpu_node.engine.layers.stage import Share, layered_part, part_weights
from gpu_node.engine.products.base import Numerics
from gpu_node.engine.products.quantise import quantised_int4
from tests.gpu_node.engine.layers.chains import LAYERS, TORCH, four_layers
from tests.gpu_node.engine.layers.model_source import ModelSource
from tests.gpu_node.engine.layers.test_stage import BLOCK, prompt, row

SPANS = list(combinations(range(LAYERS + 1), 2))
WHOLE = (0, LAYERS)


def recipe(source: Any) -> Recipe:
    found = recipe_of(source.config)
    assert isinstance(found, Recipe)
    return found


def part(
    source: Any, span: tuple[int, int], earlier: Assembled | None = None, numerics: Numerics = TORCH, **more: Any
) -> LayeredPart:
    return layered_part(source, recipe(source), span, Share(0, numerics, PagedAttention()), earlier, **more)


def held(made: LayeredPart) -> Assembled:
    assert made.assembled is not None
    return made.assembled


@torch.inference_mode()
def numbers(made: LayeredPart, span: tuple[int, int]) -> torch.Tensor:
    """Of a prompt; what comes before is made up."""
    made.take_cache(BLOCK, 64)
    hidden = torch.randn(9, made.hidden_size, generator=torch.Generator().manual_seed(5))
    rows = [row(prompt(9, seed=1), 0, 9)]
    return made.forward(batch_of(rows, BLOCK), None if span[0] == 0 else hidden, "logits").clone()


def table_of(source: Any, span: tuple[int, int], tied: bool) -> set[str]:
    """The embedding, of a tied model at either end."""
    return {"model.embed_tokens.weight"} if tied and (span[0] == 0 or span[1] == LAYERS) else set()


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma3", "qwen2"])
def test_what_an_earlier_part_has_is_not_read_again(family: str) -> None:
    model = four_layers(family)
    tied = bool(model.config.tie_word_embeddings)
    first = {span: part(ModelSource(model), span) for span in SPANS}
    alone = {span: numbers(first[span], span) for span in SPANS}
    for before in SPANS:
        for after in SPANS:
            source = ModelSource(model)
            made = part(source, after, held(first[before]))
            wanted = set(part_weights(source, recipe(source), after))
            had = set(part_weights(source, recipe(source), before)) | table_of(source, before, tied)
            assert sorted(source.reads) == sorted(wanted - had), (before, after)
            assert torch.equal(numbers(made, after), alone[after]), (before, after)
            assert made.holding == first[after].holding
            for layer in range(max(before[0], after[0]), min(before[1], after[1])):
                assert held(made).weights(layer) is held(first[before]).weights(layer)


@pytest.mark.parametrize("held_as", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_quantised_and_compiled_weights_move_with_their_errors(family: str, held_as: Any, kernels: Any) -> None:
    model = four_layers(family, hidden_size=64)
    for numerics in (Numerics(compiled=kernels, held_as=held_as), Numerics(kernels="torch", held_as=held_as)):
        fresh = {span: part(ModelSource(model), span, numerics=numerics) for span in ((0, 2), (2, 4), WHOLE)}
        for before, after in (((0, 2), WHOLE), (WHOLE, (2, 4)), ((2, 4), WHOLE), ((0, 2), (2, 4))):
            source = ModelSource(model)
            made = part(source, after, held(fresh[before]), numerics)
            assert torch.equal(numbers(made, after), numbers(fresh[after], after))
            assert made.holding == fresh[after].holding and made.holding.errors
            if family == "llama-tied" and (before, after) != ((0, 2), (2, 4)):
                assert held(made).ends.pair == held(fresh[before]).ends.pair


def test_a_table_that_is_held_twice_moves_as_two() -> None:
    """torch's packed 4-bit product has a copy of its own, which no lookup reads."""
    model = four_layers("llama-tied", hidden_size=64, intermediate_size=128)
    name = "model.embed_tokens.weight"
    table = {name: quantised_int4(model.state_dict()[name])}
    numerics = Numerics(kernels="torch")
    first = part(ModelSource(model, table), (0, 2), numerics=numerics)
    whole = part(ModelSource(model, table), WHOLE, held(first), numerics)
    fresh = part(ModelSource(model, table), WHOLE, None, numerics)
    assert whole.holding == fresh.holding and held(whole).ends.lookup is held(first).ends.lookup
    assert torch.equal(numbers(whole, WHOLE), numbers(fresh, WHOLE))
    last = part(ModelSource(model, table), (1, 4), held(whole), numerics)
    assert held(last).ends.exit is held(whole).ends.exit and held(last).ends.lookup is None


def test_what_is_let_go_is_not_held_any_more() -> None:
    model = four_layers("llama")
    whole = held(part(ModelSource(model), WHOLE))
    rest = whole.within((1, 3))
    assert [rest.weights(at) is whole.weights(at) for at in range(LAYERS)] == [False, True, True, False]
    assert rest.ends.lookup is None and rest.ends.exit is None and rest.span == (1, 3)
    assert sum(rest.tables.values()) < sum(whole.tables.values())
    source = ModelSource(model)
    part(source, (1, 3), rest)
    assert not source.reads
    assert whole.within((0, 2)).ends.lookup is whole.ends.lookup and whole.within((0, 2)).ends.exit is None
    apart = whole.within((0, 1)).within((2, 3))
    assert apart.layers == () and not apart.tables


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_two_parts_together_count_what_they_share_once(family: str) -> None:
    model = four_layers(family)
    whole = held(part(ModelSource(model), WHOLE))
    for span in SPANS:
        both = whole.tables | held(part(ModelSource(model), span, whole)).tables
        assert sum(both.values()) == whole.holding.bytes
    apart = held(part(ModelSource(model), WHOLE))
    assert sum((whole.tables | apart.tables).values()) == 2 * whole.holding.bytes


def test_weights_in_other_numbers_are_of_no_use() -> None:
    model = four_layers("llama", hidden_size=64)
    first = held(part(ModelSource(model), (0, 2)))
    source = ModelSource(model)
    part(source, (0, 2), first, replace(TORCH, held_as="int8"))
    assert set(source.reads) == set(part_weights(source, recipe(source), (0, 2)))
    other = ModelSource(four_layers("qwen2", hidden_size=64))
    assert set(part(other, (0, 2), first).holding.forms) and other.reads


def test_loading_stops_before_it_is_too_much() -> None:
    model = four_layers("llama")
    source = ModelSource(model)
    layer = held(part(ModelSource(model), (1, 2))).holding.bytes

    class TooMuch(Exception):
        pass

    def allow(size: int) -> None:
        if size > layer:
            raise TooMuch

    with pytest.raises(TooMuch):
        part(source, (1, 3), allow=allow)
    assert {name.split(".")[2] for name in source.reads} == {"1"}, "the second of them is not begun"
    part(source, (1, 3), held(part(ModelSource(model), (1, 2))), allow=allow)
    assert {name.split(".")[2] for name in source.reads} == {"1", "2"}, "what is there takes nothing more"
