"""The engine on a CUDA device: decoding with random weights in the shape of 1B and 8B models, beside `generate`.

The floor of a decode step is the time in which the device can read the weights once; its bandwidth is measured in the
same run. Ours runs through the engine's own face, with the cache, the sampler and the scheduler that a node has.
`--device cpu --shapes tiny` tries the program itself where there is no GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from bench.rig.report import Report, at_least, median, table
from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.engine import Engine, EngineOptions
from gpu_node.engine.layers.recipe import NotCovered
from gpu_node.engine.layers.stage import layered_stage
from gpu_node.engine.loader import attention_for, graphed
from gpu_node.engine.products.base import Numerics, QuantisedWeight
from gpu_node.engine.runner import Runner
from gpu_node.engine.sampler import Sampler
from gpu_node.engine.sequence import Bounds, Done, GenerationRequest, Message, SamplingOptions, TokenPrompt
from gpu_node.engine.weights.filling import empty_model

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 4096},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
BATCHES = (1, 8, 64)
PROMPT_TOKENS, OUTPUT_TOKENS, CONTEXT = 64, 128, 1024
WANTED_OF_FLOOR = 0.6


class RandomWeights:
    """A source of weights that draws them on the device: no file of this size is needed."""

    label = "random weights"
    stored_dtype = torch.bfloat16

    def __init__(self, config: Any) -> None:
        self.config = config
        model = empty_model(config, torch.bfloat16, torch.device("meta"))
        self._shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}

    def names(self) -> Collection[str]:
        return self._shapes.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        return "BF16"

    def file_bytes(self, name: str) -> int:
        return 2 * torch.Size(self._shapes[name]).numel()

    def is_quantised(self, name: str) -> bool:
        return False

    def read_into(self, name: str, target: Tensor) -> None:
        if "norm" in name:
            target.fill_(1.0)
        else:
            target.normal_(0.0, 0.02)

    def quantised(self, name: str) -> QuantisedWeight | None:
        return None

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class NumberVocabulary:
    """Tokens are numbers; nothing ends an answer."""

    size: int
    end_ids: frozenset[int] = frozenset()
    begins_with_bos: bool = False

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f" {token}" for token in ids)

    def render(self, messages: Sequence[Message]) -> str:
        return " ".join(message.content for message in messages)


def main() -> None:
    arguments = _arguments()
    report = Report("gpu_engine", vars(arguments))
    device = torch.device(arguments.device)
    report.figures["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    report.figures["bandwidth_gb_s"] = bandwidth = read_bandwidth(device)
    print(f"{report.figures['device']}: reads {bandwidth:,.0f} GB/s")
    for shape in arguments.shapes:
        report.figures[shape] = figures = asyncio.run(measure(shape, device, arguments, bandwidth))
        print(table(["batch", "ours tokens/s", "generate tokens/s", "times generate", "share of the floor"],
                    [[batch, *row.values()] for batch, row in figures["batches"].items()]))  # fmt: skip
        if device.type == "cuda":
            share = figures["batches"][1]["share_of_floor"]
            report.targets.append(
                at_least(f"{shape}, one request: share of the bandwidth floor", share, WANTED_OF_FLOOR)
            )
    report.finish(write=not arguments.dry)


async def measure(shape: str, device: torch.device, arguments: argparse.Namespace, bandwidth: float) -> dict[str, Any]:
    config = transformers.LlamaConfig(
        **SHAPES[shape], max_position_embeddings=4096, tie_word_embeddings=False, eos_token_id=None, pad_token_id=0
    )
    engine = Engine(lambda: _runner(config, device), options=EngineOptions(max_running=max(arguments.batches)))
    await engine.load()
    assert engine.runner is not None
    weights, summary = engine.runner.memory_bytes, engine.runner.summary
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    batches = {}
    for batch in arguments.batches:
        ours, theirs = [], []
        for turn in range(arguments.rounds + 1):  # the first warms up: kernels are compiled, graphs captured
            prompts = _prompts(batch, config.vocab_size, turn)
            rates = await _ours(engine, prompts), _theirs(model, prompts, device)
            if turn:
                ours.append(rates[0])
                theirs.append(rates[1])
        floor = bandwidth * 1e9 / weights * batch
        batches[batch] = {
            "ours": median(ours),
            "generate": median(theirs),
            "times_generate": median(ours) / median(theirs),
            "share_of_floor": median(ours) / floor,
        }
    await engine.close()
    return {"weight_bytes": weights, "summary": summary, "batches": batches}


def _runner(config: Any, device: torch.device) -> Runner:
    numerics = Numerics(compute=torch.bfloat16, device=device)
    stage = layered_stage(RandomWeights(config), numerics, attention_for(device, wide=False))
    if isinstance(stage, NotCovered):
        raise SystemExit(stage.reason)
    cache = CacheOptions(context=CONTEXT, max_running=64)
    return Runner(graphed(stage, CONTEXT), NumberVocabulary(config.vocab_size), Sampler(), cache)


async def _ours(engine: Engine, prompts: Sequence[Sequence[int]]) -> float:
    """Tokens a second from the first answer's first token on: reading the prompts is not what is asked."""
    stamps: list[tuple[float, int]] = []
    await asyncio.gather(*(_answer(engine, prompt, stamps) for prompt in prompts))
    return _rate(stamps, len(prompts))


async def _answer(engine: Engine, prompt: Sequence[int], stamps: list[tuple[float, int]]) -> None:
    request = GenerationRequest(
        prompt=TokenPrompt(tuple(prompt)),
        sampling=SamplingOptions(temperature=0.0, repeat_penalty=1.0),
        bounds=Bounds(context_tokens=CONTEXT, max_tokens=OUTPUT_TOKENS, ignore_end=True),
    )
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, Done):
                return
            if event.ids:
                stamps.append((time.perf_counter(), len(event.ids)))


def _rate(stamps: Sequence[tuple[float, int]], requests: int) -> float:
    """Between the moment when every request has its first token, about, and the last token of all."""
    ordered = sorted(stamps)
    begun, after = ordered[requests - 1][0], ordered[requests:]
    return sum(count for _, count in after) / (after[-1][0] - begun)


@torch.inference_mode()
def _theirs(model: Any, prompts: Sequence[Sequence[int]], device: torch.device) -> float:
    ids = torch.tensor(prompts, device=device)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    begun = time.perf_counter()
    model.generate(ids, max_new_tokens=1, min_new_tokens=1, **options)
    _wait(device)
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    model.generate(ids, max_new_tokens=OUTPUT_TOKENS, min_new_tokens=OUTPUT_TOKENS, **options)
    _wait(device)
    return len(prompts) * (OUTPUT_TOKENS - 1) / (time.perf_counter() - begun - first)


def read_bandwidth(device: torch.device) -> float:
    """GB/s of reading, by summing a large tensor: the best of ten."""
    large = torch.ones(1 << 28 if device.type == "cuda" else 1 << 24, dtype=torch.float32, device=device)
    best = 0.0
    for _ in range(10):
        _wait(device)
        begun = time.perf_counter()
        large.sum()
        _wait(device)
        best = max(best, large.numel() * 4 / (time.perf_counter() - begun) / 1e9)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _prompts(count: int, vocabulary: int, turn: int) -> list[list[int]]:
    draw = random.Random(f"{count} {turn}")
    return [[draw.randrange(vocabulary) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=["1b", "8b"])
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="print, but write no result")
    return parser.parse_args()


if __name__ == "__main__":
    main()
