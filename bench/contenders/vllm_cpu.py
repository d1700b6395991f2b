"""The CPU build of vLLM, in process. Its variables must be set before it is imported."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from bench.contenders.protocol import Load, Outcome, serve


def main(folder: str, dtype: str, threads: str) -> None:
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_LOGGING_LEVEL="ERROR",
        OMP_NUM_THREADS=threads,
    )
    import torch
    import vllm

    torch.set_num_threads(int(threads))
    model = vllm.LLM(
        model=folder, dtype=dtype, enforce_eager=True, skip_tokenizer_init=True, max_model_len=1024, max_num_seqs=32
    )
    serve({"version": vllm.__version__}, lambda load: run(vllm, model.llm_engine, load))


def run(vllm: Any, engine: Any, load: Load) -> Outcome:
    begun = time.perf_counter()
    tokens: list[list[int]] = [[] for _ in load.prompts]
    stamps: list[list[float]] = [[] for _ in load.prompts]
    waiting = sorted(range(len(load.prompts)), key=load.delay, reverse=True)
    while waiting or engine.has_unfinished_requests():
        while waiting and load.delay(waiting[-1]) <= time.perf_counter() - begun:
            at = waiting.pop()
            options = vllm.SamplingParams(temperature=0, max_tokens=load.outputs[at], ignore_eos=True, detokenize=False)
            engine.add_request(str(at), {"prompt_token_ids": list(load.prompts[at])}, options)
        for output in engine.step():
            at = int(output.request_id.split("-")[0])
            tokens[at] = list(output.outputs[0].token_ids)
            stamps[at].append(time.perf_counter() - begun)
    return Outcome(time.perf_counter() - begun, tokens, stamps)


if __name__ == "__main__":
    main(*sys.argv[1:4])
