"""transformers' own `generate`: batches of eight with padding in front, the way people use it without a server."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
import transformers

from bench.contenders.protocol import Load, Outcome, serve

BATCH = 8


def main(folder: str, dtype: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    serve({"version": transformers.__version__}, lambda load: run(model, load))


@torch.inference_mode()
def run(model: Any, load: Load) -> Outcome:
    begun = time.perf_counter()
    tokens: list[list[int]] = []
    for at in range(0, len(load.prompts), BATCH):
        tokens += _batch(model, load.prompts[at : at + BATCH], load.outputs[at : at + BATCH])
    return Outcome(time.perf_counter() - begun, tokens)


def _batch(model: Any, prompts: Any, outputs: Any) -> list[list[int]]:
    """The whole batch goes on until its longest answer is there; what goes beyond an answer's length is waste."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    count = max(outputs)
    found = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, min_new_tokens=count, max_new_tokens=count, pad_token_id=0
    )
    return [row[longest : longest + wanted].tolist() for row, wanted in zip(found, outputs, strict=True)]


if __name__ == "__main__":
    main(*sys.argv[1:4])
