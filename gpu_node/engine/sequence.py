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


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids that go to the model as they are; nothing is put in front of them, nothing is cut."""

    ids: tuple[int, ...]


Prompt = ChatPrompt | RawPrompt | TokenPrompt


@dataclass(frozen=True, slots=True)
class JsonGuide:
    """The answer is one JSON value that this JSON schema allows."""

    schema: str = '{"type": "object"}'  # JSON text


@dataclass(frozen=True, slots=True)
class RegexGuide:
    """The whole answer matches this regular expression."""

    pattern: str


Guide = JsonGuide | RegexGuide


# Below this the likeliest token is taken: single precision has no room for logits divided by less.
COLDEST = 1e-5


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
    typical_p: float = 1.0  # locally typical sampling (Meister et al. 2022); 1: off
    logit_bias: tuple[tuple[int, float], ...] = ()  # added to the logits of these tokens
    logprobs: int | None = None  # None: not asked; k: the chosen token's and those of the k likeliest
    guide: Guide | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature < COLDEST

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
    min_tokens: int = 0  # until then no token ends the answer
    ignore_end: bool = False  # tokens that end an answer are written like any other

    @property
    def token_limit(self) -> int:
        endless = ENDLESS_CONTEXTS * self.context_tokens
        return min(self.max_tokens, endless) if self.max_tokens > 0 else endless

    @property
    def may_shift(self) -> bool:
        return self.shift and self.max_tokens != -2


@dataclass(frozen=True, slots=True)
class Given:
    """One answer as far as it has come elsewhere."""

    ids: tuple[int, ...] = ()
    text_bytes: int = 0  # UTF-8 bytes of its text that were handed on: the ids may be ahead of their text


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    prompt: Prompt
    sampling: SamplingOptions
    bounds: Bounds
    stop: tuple[str, ...] = ()
    samples: int = 1  # answers to the one prompt, each with its own draws
    priority: int = 0  # higher goes first
    deadline: float | None = None  # on the engine's clock, seconds; after it the request fails
    caller: str = ""  # callers get equal turns
    cache_salt: str = ""  # only requests of one salt share cached prompts
    given: tuple[Given, ...] = ()  # one a sample: only what follows is told, and is what would have followed there


@dataclass(frozen=True, slots=True)
class Logprob:
    id: int
    logprob: float  # natural logarithm, of the model's own distribution before any sampling option


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    chosen: Logprob
    top: tuple[Logprob, ...] = ()  # likeliest first


@dataclass(frozen=True, slots=True)
class Token:
    """The text that one more step has made certain; may be several tokens' worth, or none while characters are open."""

    text: str
    sample: int = 0
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # one an id, when asked for


@dataclass(frozen=True, slots=True)
class Done:
    reason: FinishReason
    prompt_tokens: int  # of the prompt alone, whatever was given of the answer
    output_tokens: int  # written here
    prompt_ns: int
    output_ns: int
    context: tuple[int, ...]  # ids of prompt and answer, to be given back in the next request
    reused_tokens: int = 0  # prompt tokens that were still in the cache
    reasons: tuple[FinishReason, ...] = ()  # one a sample; empty: `reason` is the only one


Event = Token | Done


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    texts: tuple[str, ...]
    context_tokens: int
    truncate: bool = True
    normalise: bool = True
    dimensions: int = 0  # 0: all of them
    caller: str = ""
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Embeddings:
    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class InputVectors:
    """What a model reads in place of its tokens' embeddings: what transformers calls `inputs_embeds`."""

    data: bytes | bytearray | memoryview  # float32, little-endian, C order; unchanged until the answer is there
    shape: tuple[int, int]  # (tokens, hidden size)


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """Token ids or embeddings in, numbers out: nothing is sampled."""

    ids: tuple[int, ...]  # empty when `embeddings` are given
    output: Literal["logits", "hidden"] = "logits"
    last_only: bool = False
    caller: str = ""
    cache_salt: str = ""
    embeddings: InputVectors | None = None

    @property
    def token_count(self) -> int:
        return len(self.ids) if self.embeddings is None else self.embeddings.shape[0]


@dataclass(frozen=True, slots=True)
class Inference:
    data: bytes | memoryview  # float32, little-endian, C order
    shape: tuple[int, int]  # (tokens, vocabulary or hidden size)
