"""Whole models on a real device: every family's greedy answers equal `generate`, with and without CUDA graphs."""

import random

import pytest
import torch

from gpu_node.engine.attention_cuda import triton_available
from gpu_node.engine.graphs import GraphedStage
from gpu_node.engine.layers.stage import layered_stage
from gpu_node.engine.loader import attention_for, graphed
from gpu_node.engine.products.base import Numerics
from gpu_node.engine.stage import PlainStage
from tests.fakes.greedy_steps import GreedySteps, generated
from tests.fakes.tiny_families import FAMILIES, tiny_family
from tests.gpu_node.engine.layers.model_source import ModelSource

CONTEXT, COUNT = 128, 24


def prompts(size):
    draw = random.Random(5)
    return [[draw.randrange(size) for _ in range(length)] for length in (3, 17, 40)]


@pytest.fixture(autouse=True)
def exact():
    """Single precision by 32-bit products, as on a CPU: tokens are to be equal."""
    torch.backends.cuda.matmul.allow_tf32 = False


# `generate` changes the factors of LongRoPE in the middle of a text; here they are those of the served context.
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "phi3-long"])
def test_the_plain_path_answers_like_generate(name, device):
    model = tiny_family(name).to(device)
    asked = prompts(model.get_input_embeddings().weight.shape[0])
    expected = [generated(model, prompt, COUNT) for prompt in asked]
    stage = graphed(PlainStage(model, attention_for(torch.device(device), wide=False), CONTEXT), CONTEXT)
    assert GreedySteps(stage).answers(asked, COUNT) == expected


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma2", "granite"])
def test_own_layers_answer_like_generate(name, device):
    model = tiny_family(name)
    asked = prompts(model.get_input_embeddings().weight.shape[0])
    expected = [generated(model, prompt, COUNT) for prompt in asked]
    numerics = Numerics(device=torch.device(device))
    stage = layered_stage(ModelSource(model), numerics, attention_for(numerics.device, wide=False))
    assert GreedySteps(graphed(stage, CONTEXT)).answers(asked, COUNT) == expected


@pytest.mark.skipif(not triton_available(), reason="CUDA graphs want the Triton kernels")
def test_decodes_really_run_as_graphs(device):
    model = tiny_family("llama").to(device)
    stage = GraphedStage(PlainStage(model, attention_for(torch.device(device), wide=False), CONTEXT), CONTEXT)
    GreedySteps(stage).answers(prompts(50), COUNT, late=False)
    assert stage.sizes
