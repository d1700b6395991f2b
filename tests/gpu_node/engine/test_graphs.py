"""Which steps are replayed, what the captured tensors hold, and what happens when a model cannot be captured."""

import numpy
import torch

from gpu_node.engine.attention import ReferenceAttention
from gpu_node.engine.batch import batch_of
from gpu_node.engine.graphs import SIZES, GraphedStage, fill
from gpu_node.engine.stage import PlainStage
from gpu_node.engine.step import Row
from tests.fakes.tiny_families import tiny_family

CONTEXT, BLOCK = 64, 4


class Recording:
    """What a CUDA graph does, by computing anew: the output tensor is written in place."""

    def __init__(self, forward, output):
        self._forward, self._output = forward, output
        self.replays = 0

    def replay(self):
        self.replays += 1
        self._output.copy_(self._forward())


class Capturing:
    def __init__(self):
        self.graphs = []

    def __call__(self, forward):
        output = forward().clone()
        self.graphs.append(Recording(forward, output))
        return self.graphs[-1], output


def stages(capture):
    model = tiny_family("llama")
    plain = PlainStage(model, ReferenceAttention())
    graphed = GraphedStage(plain, CONTEXT, capture)
    graphed.take_cache(BLOCK, 40)
    return plain, graphed, graphed.pools[0]


def decode(*pasts):
    """One token a row, after so many; each row has blocks of its own."""
    rows, block = [], 0
    for index, past in enumerate(pasts):
        needed = past // BLOCK + 1
        rows.append(Row(index, [7 + index], past, list(range(block, block + needed)), "logits", 1))
        block += needed
    return batch_of(rows, BLOCK)


def prompt(length):
    blocks = list(range(-(-length // BLOCK)))
    return batch_of([Row(0, [index % 50 for index in range(length)], 0, blocks, "logits", 1)], BLOCK)


@torch.inference_mode()
def test_a_replay_gives_what_the_stage_gives():
    capture = Capturing()
    plain, graphed, pool = stages(capture)
    pool.storage.copy_(torch.randn_like(pool.storage))
    for pasts in ((3, 9, 14), (0, 21, 2), (5, 5, 5, 17)):
        batch = decode(*pasts)
        kept = pool.storage.clone()
        found = graphed.forward(batch, "logits").clone()
        pool.storage.copy_(kept)
        torch.testing.assert_close(found, plain.forward(batch, "logits"), rtol=1e-4, atol=1e-4)
    assert graphed.sizes == (4,)
    assert capture.graphs[0].replays == 3


@torch.inference_mode()
def test_prompts_and_mixed_steps_go_to_the_stage():
    capture = Capturing()
    _, graphed, _ = stages(capture)
    graphed.forward(prompt(9), "logits")
    graphed.forward(decode(3), "hidden")
    assert not capture.graphs


@torch.inference_mode()
def test_more_rows_than_the_largest_size_run_without_a_graph():
    capture = Capturing()
    _, graphed, _ = stages(capture)
    graphed.take_cache(BLOCK, SIZES[-1] + 1)
    graphed.forward(decode(*[0] * (SIZES[-1] + 1)), "logits")
    assert not capture.graphs


@torch.inference_mode()
def test_a_past_longer_than_promised_runs_without_a_graph():
    capture = Capturing()
    _, graphed, _ = stages(capture)
    graphed.forward(decode(CONTEXT), "logits")
    assert not capture.graphs


@torch.inference_mode()
def test_a_new_pool_means_new_graphs():
    capture = Capturing()
    _, graphed, _ = stages(capture)
    graphed.forward(decode(3), "logits")
    assert graphed.sizes == (1,)
    graphed.take_cache(BLOCK, 40)
    assert graphed.sizes == ()


@torch.inference_mode()
def test_a_model_that_cannot_be_captured_runs_without():
    attempts = []

    def refuse(forward):
        attempts.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    plain, graphed, _ = stages(refuse)
    batch = decode(3, 5)
    found = graphed.forward(batch, "logits")
    graphed.forward(batch, "logits")
    assert len(attempts) == 1
    torch.testing.assert_close(found, plain.forward(batch, "logits"))


@torch.inference_mode()
def test_graphs_that_have_no_memory_are_done_without():
    capture = Capturing()

    def capturing(forward):
        if capture.graphs:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return capture(forward)

    plain, graphed, _ = stages(capturing)
    graphed.forward(decode(3), "logits")
    batch = decode(3, 5)
    torch.testing.assert_close(graphed.forward(batch, "logits"), plain.forward(batch, "logits"))
    graphed.forward(decode(4), "logits")
    assert graphed.sizes == (1,)
    assert capture.graphs[0].replays == 2


def test_surplus_rows_repeat_the_first():
    static, batch = decode(0, 0, 0, 0), decode(2, 3)
    fill(static, batch)
    assert static.tokens.tolist() == [7, 8, 7, 7]
    assert static.positions.tolist() == [2, 3, 2, 2]
    assert static.slots[0].tolist() == [0, 1, 0, 0]


@torch.inference_mode()
def test_a_token_whose_embedding_is_given_is_not_replayed():
    capture = Capturing()
    plain, graphed, _ = stages(capture)
    vectors = numpy.linspace(-1, 1, plain.hidden_size, dtype=numpy.float32)[None]
    batch = batch_of([Row(0, [7], 0, (0,), "logits", 1, vectors)], BLOCK)
    found = graphed.forward(batch, "logits")
    assert graphed.sizes == ()
    assert not torch.allclose(found, graphed.forward(decode(0), "logits"))
