"""A runner that needs no torch: it answers from a script, character by character, and can be held at any token.

It obeys the same contract as the real one: `Done` at the end, nothing after it was cancelled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from gpu_node.engine.prompt import prepare
from gpu_node.engine.sequence import Done, EmbeddingRequest, Embeddings, GenerationRequest, Message, Token
from gpu_node.errors import ContextExceeded


class CharVocabulary:
    """One token a character; the template of the tiny model."""

    size = 0x110000
    end_ids = frozenset({0})
    begins_with_bos = False

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def render(self, messages: Sequence[Message]) -> str:
        turns = "".join(f"<{message.role}>{message.content}\n" for message in messages)
        return f"{turns}<assistant>"


class ScriptedRunner:
    device = "cpu"
    dtype = "float32"
    memory_bytes = 1000

    def __init__(self, words: Sequence[str] = ("one ", "two ", "three"), hold_at: int | None = None) -> None:
        self.vocabulary = CharVocabulary()
        self.words = list(words)
        self.hold_at = hold_at
        self.held = threading.Event()  # set while the script waits
        self.go_on = threading.Event()
        self.ended = threading.Event()  # set when a generation is over, whatever the way
        self.told = 0
        self.requests: list[GenerationRequest] = []
        self.fail_at: int | None = None
        self.closed = 0

    def generate(self, request: GenerationRequest, emit: Callable[[Token], None], cancelled: threading.Event) -> Done:
        self.requests.append(request)
        self.ended.clear()
        try:
            return self._generate(request, emit, cancelled)
        finally:
            self.ended.set()

    def _generate(self, request: GenerationRequest, emit: Callable[[Token], None], cancelled: threading.Event) -> Done:
        prompt = prepare(request.prompt, self.vocabulary, request.bounds)
        words = self.words[: request.bounds.token_limit]
        for at, word in enumerate(words):
            if at == self.hold_at:
                self.held.set()
                while not (self.go_on.wait(0.002) or cancelled.is_set()):
                    pass
            if at == self.fail_at:
                raise RuntimeError("the script says so")
            if cancelled.is_set():
                raise InterruptedError
            self.told += 1
            emit(Token(word))
        reason = "length" if len(words) < len(self.words) else "stop"
        ids = prompt.token_ids
        return Done(reason, len(ids), len(words), 5_000, 7_000, (*ids, *map(ord, "".join(words))))

    def embed(self, request: EmbeddingRequest, cancelled: threading.Event) -> Embeddings:
        if not request.truncate and any(len(text) > request.context_tokens for text in request.texts):
            raise ContextExceeded()
        vectors = tuple((float(len(text)), 1.0 if request.normalise else 2.0) for text in request.texts)
        return Embeddings(vectors, sum(map(len, request.texts)))

    def close(self) -> None:
        self.closed += 1
