"""transformers' continuous batching, with its cache given by hand: its own choice takes gigabytes on a CPU."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from bench.contenders.protocol import Load, Outcome, serve

CACHE = ContinuousBatchingConfig(num_blocks=512, page_size=32, max_batch_tokens=512, max_requests_per_batch=32)


def main(folder: str, dtype: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).eval()
    greedy = GenerationConfig(do_sample=False, max_new_tokens=64, eos_token_id=-1, pad_token_id=0)
    manager = model.init_continuous_batching(greedy, continuous_batching_config=CACHE)
    manager.start()
    try:
        serve({"version": transformers.__version__}, lambda load: run(manager, load))
    finally:
        manager.stop(block=True)


def run(manager: Any, load: Load) -> Outcome:
    begun = time.perf_counter()
    names = [
        manager.add_request(list(prompt), max_new_tokens=wanted, eos_token_id=-1)
        for prompt, wanted in zip(load.prompts, load.outputs, strict=True)
    ]
    found: dict[str, list[int]] = {}
    while len(found) < len(names):
        result = manager.get_result(timeout=1.0)
        if result is not None and result.is_finished():
            if result.error:
                raise RuntimeError(result.error)
            found[result.request_id] = list(result.generated_tokens)
    return Outcome(time.perf_counter() - begun, [found[name] for name in names])


if __name__ == "__main__":
    main(*sys.argv[1:4])
