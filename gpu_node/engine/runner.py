"""One loaded model: reads prompts, writes tokens, keeps the key-value cache of the last conversation.

Runs in the engine's worker thread only. Invariant: `_cached` lists exactly the tokens whose keys and values lie in
`_cache`; after anything unforeseen both are dropped. A prompt that begins like the last sequence is read from where it
differs. Knows no HTTP, no event loop and no queue.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from gpu_node.engine.prompt import PreparedPrompt, kept_in_front, prepare
from gpu_node.engine.sampler import Sampler
from gpu_node.engine.sequence import (
    Bounds,
    Done,
    EmbeddingRequest,
    Embeddings,
    FinishReason,
    GenerationRequest,
    Token,
)
from gpu_node.engine.text_stream import StopWatch, TokenText
from gpu_node.engine.vocabulary import TokenizerVocabulary
from gpu_node.errors import ContextExceeded, GenerationFailed, RequestError

# A cancelled request is noticed between pieces of its prompt, and attention over a piece stays small in memory.
PREFILL_TOKENS = 512


class Cancelled(Exception):
    """The client went away; nobody hears of it."""


class Runner:
    def __init__(self, model: Any, vocabulary: TokenizerVocabulary) -> None:
        self._model = model
        self._device = model.device
        self._cached: list[int] = []
        self._cache: Any = None
        self.vocabulary = vocabulary

    @property
    def device(self) -> str:
        return str(self._device)

    @property
    def dtype(self) -> str:
        return str(self._model.dtype).removeprefix("torch.")

    @property
    def memory_bytes(self) -> int:
        return int(self._model.get_memory_footprint())

    @torch.inference_mode()
    def generate(self, request: GenerationRequest, emit: Callable[[Token], None], cancelled: threading.Event) -> Done:
        """Raises `Cancelled` within one token after `cancelled` is set."""
        prompt = prepare(request.prompt, self.vocabulary, request.bounds)
        try:
            return _Generation(self, request, prompt, emit, cancelled).run()
        except Cancelled:
            raise
        except torch.OutOfMemoryError as error:
            self.forget()
            raise GenerationFailed("the device ran out of memory") from error
        except BaseException:
            self.forget()  # a forward that broke off leaves some layers longer than others
            raise

    @torch.inference_mode()
    def embed(self, request: EmbeddingRequest, cancelled: threading.Event) -> Embeddings:
        """Mean of the last hidden states over the tokens, one vector a text."""
        vectors, total = [], 0
        for text in request.texts:
            if cancelled.is_set():
                raise Cancelled()
            ids = self.vocabulary.encode(text)
            if len(ids) > request.context_tokens and not request.truncate:
                raise ContextExceeded()
            ids = ids[: request.context_tokens]
            total += len(ids)
            vectors.append(self._embedding(ids, request))
        return Embeddings(tuple(vectors), total)

    def _embedding(self, ids: list[int], request: EmbeddingRequest) -> tuple[float, ...]:
        if not ids:
            raise RequestError("the input holds an empty text")
        states = self._model.base_model(input_ids=self._tensor(ids), use_cache=False).last_hidden_state
        mean = states[0].to(torch.float32).mean(dim=0)
        if request.dimensions:
            mean = mean[: request.dimensions]
        if request.normalise:
            mean = torch.nn.functional.normalize(mean, dim=0)
        return tuple(mean.tolist())

    def forget(self) -> None:
        self._cached, self._cache = [], None

    def close(self) -> None:
        """Give the memory back; the runner is of no use afterwards."""
        self.forget()
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _trim_heap()

    def rewind(self, ids: Sequence[int]) -> int:
        """Keep the part of the cache that `ids` begins with; at least one token is left to read."""
        common = common_prefix(self._cached, ids[:-1])
        surplus = len(self._cached) - common
        if self._cache is None or common == 0 or not croppable(self._cache, surplus):
            self.forget()
            self._cache = DynamicCache(config=self._model.config)
            return 0
        self._cache.crop(-surplus)
        del self._cached[common:]
        return common

    def read(self, ids: Sequence[int], cancelled: threading.Event) -> torch.Tensor:
        """Append `ids` to the cache and return the logits after the last one."""
        logits: torch.Tensor | None = None
        for start in range(0, len(ids), PREFILL_TOKENS):
            if cancelled.is_set():
                raise Cancelled()
            piece = list(ids[start : start + PREFILL_TOKENS])
            output = self._model(
                input_ids=self._tensor(piece), past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
            self._cached.extend(piece)
            logits = output.logits[0, -1]
        assert logits is not None, "there is always a token to read"
        return logits

    @property
    def cached_tokens(self) -> list[int]:
        return self._cached

    def _tensor(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], dtype=torch.long, device=self._device)


class _Generation:
    """One request from prompt to `Done`."""

    def __init__(
        self,
        runner: Runner,
        request: GenerationRequest,
        prompt: PreparedPrompt,
        emit: Callable[[Token], None],
        cancelled: threading.Event,
    ) -> None:
        self._runner, self._request, self._prompt = runner, request, prompt
        self._emit, self._cancelled = emit, cancelled
        self._sampler = Sampler(request.sampling)
        self._text = TokenText(runner.vocabulary.decode, prompt.token_ids)
        self._stop = StopWatch(request.stop)
        self._written: list[int] = []
        self._steps = 0

    def run(self) -> Done:
        begun = time.perf_counter_ns()
        ids = self._prompt.token_ids
        reused = self._runner.rewind(ids)
        logits = self._runner.read(ids[reused:], self._cancelled)
        read = time.perf_counter_ns()
        reason = self._write(logits)
        self._tell(self._stop.feed(self._text.flush()) + self._stop.flush())
        return Done(
            reason="stop" if self._stop.hit else reason,
            prompt_tokens=len(ids),
            output_tokens=self._steps,
            prompt_ns=read - begun,
            output_ns=time.perf_counter_ns() - read,
            context=(*ids, *self._written),
            reused_tokens=reused,
        )

    def _write(self, logits: torch.Tensor) -> FinishReason:
        bounds, history = self._request.bounds, list(self._prompt.token_ids)
        while True:
            token = self._sampler.choose(logits, history)
            self._steps += 1
            if token in self._runner.vocabulary.end_ids:
                return "stop"
            history.append(token)
            self._written.append(token)
            self._tell(self._stop.feed(self._text.feed(token)))
            if self._stop.hit:
                return "stop"
            if self._steps >= bounds.token_limit:
                return "length"
            if len(self._runner.cached_tokens) >= bounds.context_tokens:
                if not bounds.may_shift:
                    return "length"
                self._shift(bounds)
            logits = self._runner.read([token], self._cancelled)

    def _shift(self, bounds: Bounds) -> None:
        """Make room: the front stays, half of the rest goes, what remains is read anew at its new place."""
        keep = kept_in_front(bounds)
        tokens = list(self._runner.cached_tokens)
        dropped = max((len(tokens) - keep) // 2, 1)
        left = tokens[:keep] + tokens[keep + dropped :]
        if left:
            self._runner.read(left[self._runner.rewind(left) :], self._cancelled)

    def _tell(self, text: str) -> None:
        if self._cancelled.is_set():
            raise Cancelled()
        if text:
            self._emit(Token(text))


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences share from their beginning on."""
    for at, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return at
    return min(len(left), len(right))


def croppable(cache: Any, surplus: int) -> bool:
    """Whether the last `surplus` tokens can be taken back: a sliding window that was passed has lost its past."""
    if surplus == 0:
        return True
    if not cache.is_croppable:
        return False
    windows = [layer for layer in cache.layers if getattr(layer, "is_sliding", False)]
    return all(layer.get_seq_length() < layer.sliding_window for layer in windows)


def _trim_heap() -> None:
    """glibc keeps freed weights for itself unless asked; other C libraries have no such call."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)
