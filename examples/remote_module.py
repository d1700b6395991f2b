"""A torch module whose forward runs on a GPU node: `python examples/remote_module.py HOST[:PORT] [MODEL]`.

It scores every next token of a text, as perplexity is measured, without a weight on this machine.
"""

from __future__ import annotations

import sys

import torch

from potluck import Relay
from potluck.torch import RemoteModule


def perplexity(module: RemoteModule, ids: torch.Tensor) -> float:
    """How surprised the model is by each token after the first, as one number."""
    logits = module(input_ids=ids).logits
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).exp())


def main(node: str, model: str | None) -> None:
    with Relay(node) as relay:
        name = model or relay.stats().models[0].name
        module = RemoteModule(relay, name)
        written = relay.generate(name, "Count to ten.", temperature=0, max_tokens=24, ignore_end=True).finish()
        mixed = torch.tensor([written.ids])[:, torch.randperm(len(written.ids))]
        print(f"as the model wrote it: {perplexity(module, torch.tensor([written.ids])):.1f}")
        print(f"the same tokens mixed: {perplexity(module, mixed):.1f}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
