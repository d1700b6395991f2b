"""Embeddings of texts and of token ids, for OpenAI's dialect: the mean of the last hidden states, of length one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpu_node.api.terms import Asker
from gpu_node.engine.sequence import EmbeddingRequest, Embeddings, Inference, InferenceRequest, RawPrompt, TokenPrompt
from gpu_node.errors import ContextExceeded, RequestError
from gpu_node.host import ModelHost


async def embed(
    host: ModelHost, inputs: Sequence[RawPrompt | TokenPrompt], dimensions: int, asker: Asker
) -> Embeddings:
    """One vector an input, in order. Raises `RequestError` for what is empty, too long or no token."""
    texts = tuple(one.text for one in inputs if isinstance(one, RawPrompt))
    if not all(texts):
        raise RequestError("input must not be empty", field="input")
    if texts and len(texts) == len(inputs):
        request = EmbeddingRequest(texts, host.context_tokens, False, True, dimensions, asker.caller, asker.salt)
        return await host.engine.embed(request)
    vectors, tokens = [], 0
    for one in inputs:
        assert isinstance(one, TokenPrompt), "a list holds texts or tokens, not both"
        if len(one.ids) > host.context_tokens:
            raise ContextExceeded()
        tokens_of_one = InferenceRequest(one.ids, "hidden", False, asker.caller, asker.salt)
        vectors.append(mean_of(await host.engine.infer(tokens_of_one), dimensions))
        tokens += len(one.ids)
    return Embeddings(tuple(vectors), tokens)


def mean_of(states: Inference, dimensions: int) -> tuple[float, ...]:
    """Of all tokens, then cut to `dimensions` (0: all), then of length one."""
    values = np.frombuffer(states.data, dtype="<f4").reshape(states.shape)
    mean = values.mean(axis=0, dtype=np.float64)
    kept = mean[:dimensions] if dimensions else mean
    length = float(np.linalg.norm(kept)) or 1.0
    return tuple((kept / length).tolist())
