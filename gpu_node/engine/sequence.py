"""What goes into the engine and what comes out of it: values only.

Invariants: every generation ends in exactly one `Done` or one raised error; `Token.text` is whole characters;
durations are nanoseconds. Must not know torch, HTTP or any API's field names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]

# Ollama's way to say "for ever" still ends: a model that repeats itself would otherwise hold the slot for good.
ENDLESS_CONTEXTS = 10


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation for the model's own chat template. A last message of role assistant is continued."""

    messages: tuple[Message, ...]
    context: tuple[int, ...] = ()  # token ids of an earlier exchange that come before


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """Text that goes to the model as it is."""

    text: str


Prompt = ChatPrompt | RawPrompt


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    repeat_penalty: float = 1.1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64  # -1: the whole context
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature <= 0

    @property
    def penalises(self) -> bool:
        weights = self.repeat_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        return weights and self.repeat_last_n != 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be read and written."""

    context_tokens: int
    max_tokens: int = -1  # below 1: as long as the model wants; -2: until the context is full
    keep_tokens: int = 4  # these survive at the front when something must be cut
    truncate: bool = True
    shift: bool = True

    @property
    def token_limit(self) -> int:
        endless = ENDLESS_CONTEXTS * self.context_tokens
        return min(self.max_tokens, endless) if self.max_tokens > 0 else endless

    @property
    def may_shift(self) -> bool:
        return self.shift and self.max_tokens != -2


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    prompt: Prompt
    sampling: SamplingOptions
    bounds: Bounds
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """The text that one more step has made certain; may be several tokens' worth."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    reason: FinishReason
    prompt_tokens: int
    output_tokens: int
    prompt_ns: int
    output_ns: int
    context: tuple[int, ...]  # ids of prompt and answer, to be given back in the next request
    reused_tokens: int = 0  # prompt tokens that were still in the cache


Event = Token | Done


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    texts: tuple[str, ...]
    context_tokens: int
    truncate: bool = True
    normalise: bool = True
    dimensions: int = 0  # 0: all of them


@dataclass(frozen=True, slots=True)
class Embeddings:
    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int
