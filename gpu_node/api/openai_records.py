"""The JSON objects of OpenAI's dialect: whole answers, the chunks of streams, embeddings, models."""

from __future__ import annotations

import base64
import secrets
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpu_node import __version__
from gpu_node.api.likelihoods import columns, token_records
from gpu_node.engine.sequence import Done, TokenLogprob
from gpu_node.engine.vocabulary import Vocabulary

Record = dict[str, Any]
FINGERPRINT = f"potluck-{__version__}"


@dataclass(slots=True)
class ChoiceText:
    """What one choice has said so far."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: str | None = None


class Shape(Protocol):
    """Where text stands: the difference between chat and completions."""

    def whole(self, choices: Sequence[ChoiceText], usage: Record) -> Record: ...

    def opening(self, index: int) -> Record | None:
        """What a choice's stream begins with, if anything."""
        ...

    def piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob], offset: int) -> Record:
        """`offset` is the number of characters before."""
        ...

    def ending(self, index: int, reason: str) -> Record: ...

    def usage(self, usage: Record) -> Record: ...


class ChatShape:
    def __init__(self, model: str, vocabulary: Vocabulary, wants_logprobs: bool) -> None:
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": "chat.completion.chunk",
                      "created": int(time.time()), "model": model, "system_fingerprint": FINGERPRINT}  # fmt: skip
        self._vocabulary, self._wants = vocabulary, wants_logprobs

    def whole(self, choices: Sequence[ChoiceText], usage: Record) -> Record:
        said = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs(choice.logprobs),
                "finish_reason": choice.reason,
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "object": "chat.completion", "choices": said, "usage": usage}

    def opening(self, index: int) -> Record | None:
        return self._chunk(index, {"role": "assistant", "content": ""}, ())

    def piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob], offset: int) -> Record:
        return self._chunk(index, {"content": text}, logprobs)

    def ending(self, index: int, reason: str) -> Record:
        return self._chunk(index, {}, (), reason)

    def usage(self, usage: Record) -> Record:
        return {**self._head, "choices": [], "usage": usage}

    def _chunk(self, index: int, delta: Record, logprobs: Sequence[TokenLogprob], reason: str | None = None) -> Record:
        likelihoods = self._logprobs(logprobs) if logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": likelihoods, "finish_reason": reason}
        return {**self._head, "choices": [choice]}

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> Record | None:
        return {"content": token_records(entries, self._vocabulary), "refusal": None} if self._wants else None


class CompletionShape:
    def __init__(self, model: str, vocabulary: Vocabulary, wants_logprobs: bool) -> None:
        self._head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion",
                      "created": int(time.time()), "model": model, "system_fingerprint": FINGERPRINT}  # fmt: skip
        self._vocabulary, self._wants = vocabulary, wants_logprobs

    def whole(self, choices: Sequence[ChoiceText], usage: Record) -> Record:
        said = [
            self._choice(index, choice.text, choice.logprobs, 0, choice.reason) for index, choice in enumerate(choices)
        ]
        return {**self._head, "choices": said, "usage": usage}

    def opening(self, index: int) -> Record | None:
        return None

    def piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob], offset: int) -> Record:
        return {**self._head, "choices": [self._choice(index, text, logprobs, offset, None)]}

    def ending(self, index: int, reason: str) -> Record:
        return {**self._head, "choices": [self._choice(index, "", (), 0, reason)]}

    def usage(self, usage: Record) -> Record:
        return {**self._head, "choices": [], "usage": usage}

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob], offset: int, reason: str | None
    ) -> Record:
        wanted = self._wants and (bool(logprobs) or reason is None)
        likelihoods = columns(logprobs, self._vocabulary, offset) if wanted else None
        return {"index": index, "text": text, "logprobs": likelihoods, "finish_reason": reason}


def usage_of(dones: Sequence[Done]) -> Record:
    """Each prompt counts once, however many choices it has."""
    prompt, completion = sum(one.prompt_tokens for one in dones), sum(one.output_tokens for one in dones)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(one.reused_tokens for one in dones)},
    }


def embeddings(model: str, vectors: Sequence[Sequence[float]], tokens: int, as_base64: bool) -> Record:
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if as_base64 else list(vector)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def model_record(name: str, created: float) -> Record:
    return {"id": name, "object": "model", "created": int(created), "owned_by": "potluck"}


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
