"""From a request to what the engine's thread can begin at once: tokens, guides, checks that need no model.

Runs in any thread but the engine's, because long texts and large schemas take their time. Errors belong to the one
request: the client's mistakes as `RequestError`, a tokenizer or a guide that breaks as `GenerationFailed`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from gpu_node.engine.answer import GuideState
from gpu_node.engine.generation import PreparedGeneration, answers_to
from gpu_node.engine.prompt import prepare, refuse_absurd
from gpu_node.engine.sequence import Bounds, EmbeddingRequest, GenerationRequest, Guide, InferenceRequest, InputVectors
from gpu_node.engine.step import ModelRunner
from gpu_node.engine.vocabulary import Vocabulary
from gpu_node.errors import ContextExceeded, GenerationFailed, NodeError, RequestError

log = logging.getLogger("gpu_node.engine")

FLOAT_BYTES = 4

# From a guide to the state of one sample; raises `RequestError` for a guide that cannot be followed.
StartGuide = Callable[[Guide], GuideState]


class GuideShelf:
    """What guides need to know of a vocabulary is worked out once a model, by the first request that wants it."""

    def __init__(self, make: Callable[[ModelRunner], StartGuide]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._made: tuple[ModelRunner, StartGuide] | None = None

    def of(self, runner: ModelRunner) -> StartGuide:
        def start(guide: Guide) -> GuideState:
            with self._lock:
                if self._made is None or self._made[0] is not runner:
                    self._made = (runner, self._make(runner))
                started = self._made[1]
            return started(guide)

        return start

    def clear(self) -> None:
        self._made = None


@dataclass(frozen=True, slots=True)
class Bound:
    """What no request may exceed."""

    capacity_tokens: int  # of the cache
    max_samples: int
    max_prompt_characters: int
    max_inference_bytes: int


def prepare_generation(
    request: GenerationRequest, runner: ModelRunner, bound: Bound, start_guide: StartGuide, arrived: float
) -> PreparedGeneration:
    vocabulary = runner.vocabulary
    if not 1 <= request.samples <= bound.max_samples:
        raise RequestError(f"between 1 and {bound.max_samples} samples can be had of one request")
    if any(not 0 <= token < vocabulary.size for token, _ in request.sampling.logit_bias):
        raise RequestError("logit_bias names a number that is no token of this model")
    bounds = within(request.bounds, bound.capacity_tokens)
    with errors_of_its_own("the prompt cannot be read"):
        refuse_absurd(request.prompt, bounds, bound.max_prompt_characters)
        ids = prepare(request.prompt, vocabulary, bounds).token_ids
    guide, guides = request.sampling.guide, list[GuideState | None]([None] * request.samples)
    if guide is not None:
        with errors_of_its_own("the answer cannot be guided"):
            guides = [start_guide(guide) for _ in range(request.samples)]
    ready = PreparedGeneration(replace(request, bounds=bounds), ids, tuple(guides), arrived)
    return resumed(ready, vocabulary) if request.given else ready


def resumed(fresh: PreparedGeneration, vocabulary: Vocabulary) -> PreparedGeneration:
    """Its answers are where they were left elsewhere. Raises `RequestError` when they cannot have come so far."""
    given = fresh.request.given
    if len(given) != fresh.request.samples:
        raise RequestError(f"{len(given)} given answers for {fresh.request.samples} samples", field="given")
    if any(not 0 <= token < vocabulary.size for one in given for token in one.ids):
        raise RequestError("the given answer holds a number that is no token of this model", field="given")
    with errors_of_its_own("the given answer cannot be read"):
        answers = answers_to(fresh, vocabulary)
        for answer, one in zip(answers, given, strict=True):
            answer.resume(one)
    return replace(fresh, begun=answers)


def prepare_texts(request: EmbeddingRequest, runner: ModelRunner, bound: Bound) -> list[tuple[int, ...]]:
    limit = min(request.context_tokens, bound.capacity_tokens)
    texts = []
    for text in request.texts:
        if len(text) > bound.max_prompt_characters:
            raise ContextExceeded()
        with errors_of_its_own("the input cannot be read"):
            ids = runner.vocabulary.encode(text)
        if not ids:
            raise RequestError("the input holds an empty text")
        if len(ids) > limit and not request.truncate:
            raise ContextExceeded()
        texts.append(tuple(ids[:limit]))
    return texts


def prepare_inference(request: InferenceRequest, runner: ModelRunner, bound: Bound) -> Any:
    """The embeddings that were given, as a float32 array [tokens, hidden size]; None where ids were. Raises
    `RequestError`."""
    check_inference(request, runner, bound)
    return None if request.embeddings is None else _array_of(request.embeddings, runner.embedding_length)


def check_inference(request: InferenceRequest, runner: ModelRunner, bound: Bound) -> None:
    """All but what the embeddings hold."""
    if request.ids and request.embeddings is not None:
        raise RequestError("a request holds tokens or embeddings, not both")
    if request.token_count < 1:
        raise RequestError("the request holds no token")
    size = runner.vocabulary.size
    if any(not 0 <= token < size for token in request.ids):
        raise RequestError("the request holds a number that is no token of this model")
    if request.token_count > bound.capacity_tokens:
        raise ContextExceeded()
    width = size if request.output == "logits" else runner.embedding_length
    rows = 1 if request.last_only else request.token_count
    if rows * width * FLOAT_BYTES > bound.max_inference_bytes:
        raise RequestError(f"the answer would be larger than {bound.max_inference_bytes} bytes", status=413)


def _array_of(given: InputVectors, width: int) -> Any:
    import numpy

    if given.shape[1] != width:
        raise RequestError(f"embeddings of this model have {width} numbers, not {given.shape[1]}")
    flat = numpy.frombuffer(given.data, "<f4")
    if flat.size != given.shape[0] * given.shape[1]:
        raise RequestError(f"{flat.size} numbers are no embeddings of shape {given.shape}")
    if not numpy.isfinite(flat).all():
        raise RequestError("the embeddings hold numbers that are not finite")
    return flat.reshape(given.shape)


def within(bounds: Bounds, capacity_tokens: int) -> Bounds:
    """No context is longer than the cache."""
    if bounds.context_tokens <= capacity_tokens:
        return bounds
    return replace(bounds, context_tokens=capacity_tokens)


@contextmanager
def errors_of_its_own(what: str) -> Iterator[None]:
    try:
        yield
    except NodeError:
        raise
    except Exception as error:  # tokenizers and guides are other people's programs
        log.exception("%s", what)
        raise GenerationFailed(f"{what}: {error}") from error
