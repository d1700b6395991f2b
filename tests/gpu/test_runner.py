"""The runner on a real device: the size of its cache, full memory, and that draws are those of the CPU."""

import pytest
import torch

from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.loader import attention_for, graphed
from gpu_node.engine.runner import Runner
from gpu_node.engine.sampler import Sampler
from gpu_node.engine.sequence import SamplingOptions
from gpu_node.engine.stage import PlainStage
from gpu_node.engine.step import Pick, Row, Step
from gpu_node.errors import DeviceOutOfMemory
from tests.fakes.tiny_families import tiny_family

CONTEXT = 128


def stage_on(device):
    model = tiny_family("llama").to(device)
    return graphed(PlainStage(model, attention_for(torch.device(device), wide=False), CONTEXT), CONTEXT)


def runner_on(device, **options):
    return Runner(stage_on(device), None, Sampler(), CacheOptions(context=CONTEXT, **options))


def test_the_cache_leaves_a_reserve_and_takes_no_more_than_is_of_use(device):
    cache = runner_on(device, max_running=4).cache
    assert cache.block_count == 4 * CONTEXT // cache.block_tokens


def test_a_cache_that_cannot_fit_is_told_as_such(device):
    with pytest.raises(DeviceOutOfMemory):
        runner_on(device, block_count=1 << 34)


def test_a_seed_draws_the_same_tokens_on_every_device(device):
    answers = []
    for where in (device, "cpu"):
        runner, tokens = runner_on(where, block_count=16), [3, 1, 4, 1, 5]
        for at in range(20):
            row = Row(0, tokens if not at else tokens[-1:], 0 if not at else len(tokens) - 1, range(8), "logits", 1)
            pick = Pick(0, SamplingOptions(temperature=0.7, top_k=10), key=7, written=at, history=list(tokens))
            tokens.append(runner.run(Step((row,)), [pick]).choices[0].tokens[0])
        answers.append(tokens)
        runner.close()
    assert answers[0] == answers[1]
