"""llama.cpp through its Python binding: one request after the other, with its own reuse of a common beginning."""

from __future__ import annotations

import sys
import time
from typing import Any

from bench.contenders.protocol import Load, Outcome, serve


def main(path: str, threads: str) -> None:
    import llama_cpp

    model = llama_cpp.Llama(
        path, n_ctx=1024, n_threads=int(threads), n_threads_batch=int(threads), verbose=False, logits_all=False
    )
    serve({"version": llama_cpp.__version__}, lambda load: run(model, load))


def run(model: Any, load: Load) -> Outcome:
    begun = time.perf_counter()
    answers = [_answer(model, prompt, wanted, begun) for prompt, wanted in zip(load.prompts, load.outputs, strict=True)]
    return Outcome(time.perf_counter() - begun, [ids for ids, _ in answers], [stamps for _, stamps in answers])


def _answer(model: Any, prompt: Any, wanted: int, begun: float) -> tuple[list[int], list[float]]:
    found: list[int] = []
    stamps: list[float] = []
    for token in model.generate(list(prompt), temp=0.0, repeat_penalty=1.0):
        found.append(token)
        stamps.append(time.perf_counter() - begun)
        if len(found) == wanted:
            break
    return found, stamps


if __name__ == "__main__":
    main(*sys.argv[1:3])
