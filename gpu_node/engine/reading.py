"""Requests that only read: hidden states averaged to embeddings, logits or hidden states as bytes.

Invariants: each token's row comes once and in order, whatever pieces the prompt was cut into; averages are taken in 64
bits and given in 32. Rows are numpy arrays that are handed in; nothing here imports numpy. Must not know the scheduler.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from gpu_node.engine.mailbox import Call
from gpu_node.engine.planned import Submission
from gpu_node.engine.sequence import EmbeddingRequest, Embeddings, Inference, InferenceRequest
from gpu_node.errors import GenerationFailed

# So many texts of one request wait or are read at once; more would only fill the queue.
TEXTS_AT_ONCE = 8
# Below this a vector counts as all zeros and stays as it is.
SMALLEST_NORM = 1e-12
# The token that stands in every place whose embedding is given; nothing looks at it.
STAND_IN = 0
FLOAT_BYTES = 4


class EmbeddingJob:
    """The texts of one request, a few sequences at a time."""

    at_once = TEXTS_AT_ONCE

    def __init__(self, request: EmbeddingRequest, texts: Sequence[tuple[int, ...]], call: Call) -> None:
        self.call = call
        self.pending = deque(enumerate(_submission(ids, request) for ids in texts))
        self._request = request
        self._tokens = sum(map(len, texts))
        self._lengths = [len(ids) for ids in texts]
        self._sums: list[Any] = [None] * len(texts)
        self._read = [0] * len(texts)  # rows so far
        self._vectors: list[tuple[float, ...] | None] = [None] * len(texts)

    def take(self, number: int, rows: Any, last: bool) -> None:
        """Raises `GenerationFailed` for numbers that are none."""
        part = rows.sum(axis=0, dtype="float64")
        self._read[number] += int(rows.shape[0])
        self._sums[number] = part if self._sums[number] is None else self._sums[number] + part
        if last:
            _check(self._read[number], self._lengths[number])
            self._vectors[number] = self._finished(self._sums[number] / self._lengths[number])
            self._sums[number] = None

    def result(self) -> Embeddings:
        vectors = tuple(vector for vector in self._vectors if vector is not None)
        assert len(vectors) == len(self._vectors), "a text is missing"
        return Embeddings(vectors, self._tokens)

    def _finished(self, mean: Any) -> tuple[float, ...]:
        if self._request.dimensions:
            mean = mean[: self._request.dimensions]
        norm = math.sqrt(float((mean * mean).sum()))
        if not math.isfinite(norm):
            raise GenerationFailed("the model's hidden states are not finite")
        if self._request.normalise:
            mean = mean / max(norm, SMALLEST_NORM)
        return tuple(mean.astype("float32").tolist())


class InferenceJob:
    at_once = 1

    def __init__(self, request: InferenceRequest, call: Call, vectors: Any = None) -> None:
        """`vectors`: those of `request.embeddings`, float32 [tokens, hidden size]."""
        self.call = call
        count = request.token_count
        submission = Submission(
            request.ids or (STAND_IN,) * count,
            max_context=count,
            caller=request.caller,
            salt=request.cache_salt,
            output=request.output,
            last_only=request.last_only,
            vectors=vectors,
        )
        self.pending = deque([(0, submission)])
        self._wanted = 1 if request.last_only else count
        self._data = memoryview(b"")
        self._shape = (0, 0)
        self._complete = False

    def take(self, number: int, rows: Any, last: bool) -> None:
        """Raises `GenerationFailed` for rows that came twice or never."""
        before, count, width = self._shape[0], int(rows.shape[0]), int(rows.shape[1])
        if last or before + count > self._wanted:
            _check(before + count, self._wanted)
        piece = memoryview(rows.astype("<f4", order="C", copy=False)).cast("B")
        if not before:  # what comes in one piece is handed on as it is
            self._data = piece if count == self._wanted else memoryview(bytearray(self._wanted * width * FLOAT_BYTES))
        if count != self._wanted:
            start = before * width * FLOAT_BYTES
            self._data[start : start + len(piece)] = piece
        self._shape = (before + count, width)
        self._complete = last

    def result(self) -> Inference:
        assert self._complete, "rows are missing"
        return Inference(self._data, self._shape)


ReadingJob = EmbeddingJob | InferenceJob


def _check(rows: int, wanted: int) -> None:
    """A row that came twice or never would be wrong numbers without any sign of it."""
    if rows != wanted:
        raise GenerationFailed(f"{rows} rows were computed of {wanted}")


def _submission(ids: tuple[int, ...], request: EmbeddingRequest) -> Submission:
    return Submission(ids, len(ids), caller=request.caller, salt=request.cache_salt, output="hidden")
