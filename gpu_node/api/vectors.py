"""Embeddings of texts and of token ids, for OpenAI's dialect: the mean of the last hidden states, of length one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpu_node.engine.sequence import EmbeddingRequest, Embeddings, Inference, InferenceRequest, RawPrompt, TokenPrompt
from gpu_node.errors import ContextExceeded, RequestError
from gpu_node.host import ModelHost


async def embed(host: ModelHost, inputs: Sequence[RawPrompt | TokenPrompt], dimensions: int) -> Embeddings:
    """One vector an input, in order. Raises `RequestError` for what is empty, too long or no token."""
    texts = tuple(one.text for one in inputs if isinstance(one, RawPrompt))
    if not all(texts):
        raise RequestError("input must not be empty", field="input")
    if texts and len(texts) == len(inputs):
        return await host.engine.embed(
            EmbeddingRequest(texts, host.context_tokens, truncate=False, normalise=True, dimensions=dimensions)
        )
    vectors, tokens = [], 0
    for one in inputs:
        assert isinstance(one, TokenPrompt), "a list holds texts or tokens, not both"
        if len(one.ids) > host.context_tokens:
            raise ContextExceeded()
        vectors.append(mean_of(await host.engine.infer(InferenceRequest(one.ids, "hidden")), dimensions))
        tokens += len(one.ids)
    return Embeddings(tuple(vectors), tokens)


def mean_of(states: Inference, dimensions: int) -> tuple[float, ...]:
    """Of all tokens, then cut to `dimensions` (0: all), then of length one."""
    values = np.frombuffer(states.data, dtype="<f4").reshape(states.shape)
    mean = values.mean(axis=0, dtype=np.float64)
    kept = mean[:dimensions] if dimensions else mean
    length = float(np.linalg.norm(kept)) or 1.0
    return tuple((kept / length).tolist())
