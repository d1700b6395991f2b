"""Messages about models and what they are asked: load, generate, embed, run, push.

Invariants: sampling options and bounds are the engine's, field by field, with its defaults; text and ids of TOKENS are
numbered so that an answer can be taken up again without a gap or a repeat; times are relative, for clocks differ. Must
not know the engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from wire.errors import OutOfBounds
from wire.kinds import (
    TOKEN_ID_MOST,
    Blob,
    Choice,
    Flag,
    Listing,
    Nested,
    Octets,
    OneOf,
    Perhaps,
    Real,
    Signed,
    Text,
    TokenIds,
    Unsigned,
)
from wire.limits import LARGEST_PAYLOAD
from wire.names import StoreName, fault_of_files
from wire.scalars import NamedValues, Table

__all__ = [
    "DIGEST_BYTES",
    "FILES",
    "INT32",
    "INT64",
    "JOB_BYTES",
    "LOGPROBS",
    "MESSAGES",
    "MODEL_BYTES",
    "OPTIONS",
    "ROLE_BYTES",
    "SAMPLES",
    "STOPS",
    "STOP_BYTES",
    "TEXT_BYTES",
    "TOKENS",
    "TOKEN_TEXT_BYTES",
    "UINT32",
    "Bounds",
    "Caller",
    "ChatMessage",
    "ChatPrompt",
    "Chunk",
    "Count",
    "Digest",
    "Done",
    "Embed",
    "FinishReason",
    "Generate",
    "Given",
    "Ids",
    "JsonGuide",
    "KeepAlive",
    "Load",
    "Loaded",
    "LogitBias",
    "Logprob",
    "Model",
    "Number",
    "Phase",
    "Progress",
    "Push",
    "PushFile",
    "RegexGuide",
    "Sampling",
    "Size",
    "TextPrompt",
    "TokenLogprob",
    "TokenPrompt",
    "Tokens",
    "Unload",
    "Vectors",
]

MODEL_BYTES = 512
TEXT_BYTES = LARGEST_PAYLOAD - (1 << 12)  # leaves room for every short field beside it
TOKENS = 1 << 18  # what a frame holds: 4 bytes each
MESSAGES = 1 << 14
ROLE_BYTES = 64
STOPS = 64
STOP_BYTES = 1024
SAMPLES = 128
LOGPROBS = 1 << 10
TOKEN_TEXT_BYTES = 1 << 10  # of one token: vocabularies have runs of spaces and dashes, none near this
OPTIONS = 128
FILES = 4096  # a model in shards with its tokenizer has some hundred
DIGEST_BYTES = 32  # SHA-256
JOB_BYTES = 16
INT32 = (1 << 31) - 1
UINT32 = (1 << 32) - 1
INT64 = (1 << 63) - 1  # sizes and offsets of files are signed numbers to most systems

Model = Annotated[str, Text(MODEL_BYTES, least=1)]
Caller = Annotated[str, Text(256)]
Ids = Annotated[tuple[int, ...], TokenIds(TOKENS)]
Count = Annotated[int, Unsigned(INT32)]
Size = Annotated[int, Unsigned()]
Number = Annotated[float, Real()]
# How long a model stays after it: 0, it leaves; infinite, for ever; None, as the node is set.
KeepAlive = Annotated[float | None, Perhaps(Real(least=0.0, finite=False))]
Digest = Annotated[bytes, Octets(DIGEST_BYTES, least=DIGEST_BYTES)]


class Phase(IntEnum):
    """What a load is doing."""

    WAITING = 1
    FETCHING = 2
    READING = 3
    PLACING = 4
    PREPARING = 5


class FinishReason(IntEnum):
    STOP = 1
    LENGTH = 2


@dataclass(frozen=True, slots=True)
class Load:
    """Makes a model ready for this session; answered by PROGRESS, then LOADED."""

    model: Model
    options: Annotated[Table, NamedValues(OPTIONS)] = ()
    priority: Annotated[int, Signed(-INT32, INT32)] = 0


@dataclass(frozen=True, slots=True)
class Progress:
    phase: Annotated[Phase, Choice(Phase, otherwise=Phase.WAITING)]
    done: Size = 0
    total: Size = 0
    text: Annotated[str, Text(1024)] = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    model: Model
    context_tokens: Count = 0
    device_bytes: Size = 0
    epoch: Annotated[int, Unsigned(UINT32)] = 0
    facts: Annotated[Table, NamedValues(OPTIONS)] = ()


@dataclass(frozen=True, slots=True)
class Unload:
    """Gives the session's hold on a model back; answered by ACK with the bytes that are free for it."""

    model: Model


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: Annotated[str, Text(ROLE_BYTES, least=1)]
    content: Annotated[str, Text(TEXT_BYTES)]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation for the model's own chat template; a last message of role assistant is continued."""

    messages: Annotated[tuple[ChatMessage, ...], Listing(Nested(ChatMessage), MESSAGES)]
    context: Ids = ()


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: Annotated[str, Text(TEXT_BYTES)]


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    ids: Ids


@dataclass(frozen=True, slots=True)
class JsonGuide:
    schema: Annotated[str, Text(1 << 18)] = '{"type": "object"}'


@dataclass(frozen=True, slots=True)
class RegexGuide:
    pattern: Annotated[str, Text(1 << 16)]


@dataclass(frozen=True, slots=True)
class LogitBias:
    id: Annotated[int, Unsigned(TOKEN_ID_MOST)]
    bias: Number


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: Annotated[float, Real(least=0.0)] = 0.8
    top_k: Annotated[int, Signed(-INT32, INT32)] = 40
    top_p: Number = 0.9
    min_p: Number = 0.0
    repeat_penalty: Number = 1.1
    presence_penalty: Number = 0.0
    frequency_penalty: Number = 0.0
    repeat_last_n: Annotated[int, Signed(-1, INT32)] = 64
    seed: Annotated[int | None, Perhaps(Signed())] = None
    typical_p: Number = 1.0
    logit_bias: Annotated[tuple[LogitBias, ...], Listing(Nested(LogitBias), 1 << 14)] = ()
    logprobs: Annotated[int | None, Perhaps(Unsigned(LOGPROBS))] = None
    guide: Annotated[JsonGuide | RegexGuide | None, Perhaps(OneOf((JsonGuide, RegexGuide)))] = None


@dataclass(frozen=True, slots=True)
class Bounds:
    context_tokens: Count = 0
    max_tokens: Annotated[int, Signed(-2, INT32)] = -1
    keep_tokens: Annotated[int, Signed(-1, INT32)] = 4
    truncate: Annotated[bool, Flag()] = True
    shift: Annotated[bool, Flag()] = True
    min_tokens: Count = 0
    ignore_end: Annotated[bool, Flag()] = False


@dataclass(frozen=True, slots=True)
class Given:
    """One answer as far as it has come elsewhere: its ids, and how many UTF-8 bytes of its text were handed on."""

    ids: Ids = ()
    text_bytes: Count = 0


@dataclass(frozen=True, slots=True)
class Generate:
    """Asks for text. The same `job` again in one session goes on with what runs, from TOKENS number `next_index`.

    `render_only`: TOKENS with the prompt as the model's template makes it, then DONE; nothing is generated.
    """

    model: Model
    prompt: Annotated[ChatPrompt | TextPrompt | TokenPrompt, OneOf((ChatPrompt, TextPrompt, TokenPrompt))]
    sampling: Annotated[Sampling, Nested(Sampling)] = Sampling()
    bounds: Annotated[Bounds, Nested(Bounds)] = Bounds()
    stop: Annotated[tuple[str, ...], Listing(Text(STOP_BYTES, least=1), STOPS)] = ()
    samples: Annotated[int, Unsigned(SAMPLES, least=1)] = 1
    priority: Annotated[int, Signed(-INT32, INT32)] = 0
    deadline_ms: Annotated[int | None, Perhaps(Unsigned(UINT32))] = None
    caller: Caller = ""
    cache_salt: Caller = ""
    given: Annotated[tuple[Given, ...], Listing(Nested(Given), SAMPLES)] = ()
    job: Annotated[bytes, Octets(JOB_BYTES)] = b""
    next_index: Size = 0
    keep_alive_seconds: KeepAlive = None
    render_only: Annotated[bool, Flag()] = False

    def __post_init__(self) -> None:
        if self.given and len(self.given) != self.samples:
            raise OutOfBounds(f"{len(self.given)} given answers for {self.samples} samples")


@dataclass(frozen=True, slots=True)
class Logprob:
    """`text` is the token's alone, with U+FFFD where it is a part of a character."""

    id: Annotated[int, Unsigned(TOKEN_ID_MOST)]
    logprob: Annotated[float, Real(finite=False)] = -math.inf
    text: Annotated[str, Text(TOKEN_TEXT_BYTES)] = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    chosen: Annotated[Logprob, Nested(Logprob)]
    top: Annotated[tuple[Logprob, ...], Listing(Nested(Logprob), LOGPROBS)] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """More of an answer. `index` counts the TOKENS of the stream, `position` the ids of this sample, before this."""

    index: Size
    position: Count
    text: Annotated[str, Text(TEXT_BYTES)] = ""
    ids: Ids = ()
    sample: Annotated[int, Unsigned(SAMPLES - 1)] = 0
    logprobs: Annotated[tuple[TokenLogprob, ...], Listing(Nested(TokenLogprob), TOKENS)] = ()

    def __post_init__(self) -> None:
        if self.logprobs and len(self.logprobs) != len(self.ids):
            raise OutOfBounds(f"{len(self.logprobs)} logprobs for {len(self.ids)} ids")


@dataclass(frozen=True, slots=True)
class Done:
    """The one end of a GENERATE that went well. `index` is the number of TOKENS that came before."""

    index: Size
    reason: Annotated[FinishReason, Choice(FinishReason)]
    prompt_tokens: Count = 0
    output_tokens: Count = 0
    prompt_ns: Size = 0
    output_ns: Size = 0
    reused_tokens: Count = 0
    reasons: Annotated[tuple[FinishReason, ...], Listing(Choice(FinishReason), SAMPLES)] = ()
    context: Ids = ()
    load_ns: Size = 0


@dataclass(frozen=True, slots=True)
class Embed:
    model: Model
    texts: Annotated[tuple[str, ...], Listing(Text(TEXT_BYTES), 1 << 14, least=1)]
    context_tokens: Count = 0
    truncate: Annotated[bool, Flag()] = True
    normalise: Annotated[bool, Flag()] = True
    dimensions: Count = 0
    caller: Caller = ""
    cache_salt: Caller = ""
    keep_alive_seconds: KeepAlive = None


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of the texts from number `first` on: float32, little-endian, one after the other."""

    first: Count
    total: Count
    dimensions: Annotated[int, Unsigned(1 << 16, least=1)]
    data: Annotated[bytes | memoryview, Blob(LARGEST_PAYLOAD)]
    prompt_tokens: Count = 0

    def __post_init__(self) -> None:
        size = self.data.nbytes if isinstance(self.data, memoryview) else len(self.data)
        if size % (4 * self.dimensions) or self.first + size // (4 * self.dimensions) > self.total:
            raise OutOfBounds(f"{size} bytes are no vectors {self.first} to {self.total} of {self.dimensions} numbers")


@dataclass(frozen=True, slots=True)
class PushFile:
    name: Annotated[str, StoreName()]
    size: Annotated[int, Unsigned(INT64)]
    digest: Digest


@dataclass(frozen=True, slots=True)
class Push:
    """Offers a model's files; answered by ACK with the bytes that the node holds of each already."""

    model: Annotated[str, StoreName()]
    files: Annotated[tuple[PushFile, ...], Listing(Nested(PushFile), FILES, least=1)]

    def __post_init__(self) -> None:
        fault = fault_of_files(file.name for file in self.files)
        if fault:
            raise OutOfBounds(fault)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some bytes of the offer's file number `file`, with their SHA-256; what a DATA frame of a PUSH carries."""

    file: Annotated[int, Unsigned(FILES - 1)]
    offset: Annotated[int, Unsigned(INT64)]
    digest: Digest
    data: Annotated[bytes | memoryview, Blob(LARGEST_PAYLOAD)]
