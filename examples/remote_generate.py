"""transformers programs over a GPU node: `python examples/remote_generate.py HOST[:PORT] [MODEL]`.

`generate` takes ids and gives ids back, with the options that transformers has; the pipeline takes texts and chats,
whose tokens are made on the node, so that not even a tokenizer is needed here.
"""

from __future__ import annotations

import sys

import torch

from potluck import Relay
from potluck.torch import RemoteCausalLM, pipeline


def main(node: str, model: str | None) -> None:
    with Relay(node) as relay:
        remote = RemoteCausalLM(relay, model or relay.stats().models[0].name)

        prompt = torch.tensor([[1, 72, 101, 108, 108, 111]])
        told = remote.generate(prompt, max_new_tokens=12, do_sample=True, num_return_sequences=2, seed=7)
        print("ids:", told[:, prompt.shape[1] :].tolist())

        tell = pipeline("text-generation", model=remote)
        [record] = tell("The capital of France is", max_new_tokens=12)
        print("text:", record["generated_text"])
        [record] = tell([{"role": "user", "content": "What is the capital of France?"}], max_new_tokens=24)
        print("chat:", record["generated_text"][-1]["content"])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
