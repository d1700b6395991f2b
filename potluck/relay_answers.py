"""What a relay node tells, as values: pieces of answers, whole answers, models, progress, the node itself.

Nothing here talks to anybody. Records of `wire` that say it already (`ModelRecord` and its like) are handed on as they
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from transport.found import Found
from wire.messages_stats import (
    DeviceRecord,
    EventRecord,
    HolderRecord,
    ModelRecord,
    PipelineRecord,
    ResidentRecord,
    StageRecord,
    Stats,
)
from wire.messages_work import Done, Generate, Loaded, Progress, TokenLogprob, Tokens

from .answers import Usage
from .relay_arrays import TensorData

__all__ = [
    "Embeddings",
    "FoundNode",
    "Generation",
    "LoadProgress",
    "LoadedModel",
    "NodeStats",
    "Piece",
    "Telling",
    "TokenChoice",
]


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """A token's natural logarithm of its probability, and those of the likeliest beside it, as (id, text, logprob)."""

    id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """More of an answer: whole characters, perhaps none, and the ids of the tokens, perhaps several or none."""

    text: str
    ids: tuple[int, ...]
    sample: int = 0
    logprobs: tuple[TokenChoice, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """What the node does before it can answer; `done` and `total` are bytes, 0 where they are unknown."""

    phase: str
    done: int = 0
    total: int = 0
    text: str = ""

    @classmethod
    def of(cls, progress: Progress) -> LoadProgress:
        return cls(progress.phase.name.lower(), progress.done, progress.total, progress.text)


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer; of several samples `text` and `ids` are the first one's."""

    model: str
    texts: tuple[str, ...]
    sample_ids: tuple[tuple[int, ...], ...]
    reasons: tuple[str, ...]  # "stop" or "length", one a sample
    usage: Usage
    logprobs: tuple[tuple[TokenChoice, ...], ...] = ()
    reused_tokens: int = 0  # of the prompt, found in the node's cache
    prompt_seconds: float = 0.0
    output_seconds: float = 0.0
    load_seconds: float = 0.0
    context: tuple[int, ...] = ()  # for the option of this name, where the node gives it

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        return self.texts[0]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.sample_ids[0]

    @property
    def done_reason(self) -> str:
        return self.reasons[0]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready. `facts` has what the node knows besides, such as `vocabulary`, `hidden_size`, `dtype`."""

    name: str
    context_tokens: int
    device_bytes: int
    epoch: int
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, loaded: Loaded) -> LoadedModel:
        facts = MappingProxyType(dict(loaded.facts))
        return cls(loaded.model, loaded.context_tokens, loaded.device_bytes, loaded.epoch, facts)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector a text, in their order: `vectors` is float32 of shape (texts, dimensions)."""

    vectors: TensorData
    prompt_tokens: int

    def __len__(self) -> int:
        return self.vectors.shape[0]

    def __getitem__(self, index: int) -> list[float]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} vectors")
        width = self.vectors.shape[1] * 4
        start = index % len(self) * width
        return list(self.vectors.data[start : start + width].cast("f"))


@dataclass(frozen=True, slots=True)
class NodeStats:
    """A node's figures; `values` has its scalars by name."""

    values: Mapping[str, Any]
    models: tuple[ModelRecord, ...]
    residents: tuple[ResidentRecord, ...]
    devices: tuple[DeviceRecord, ...]
    holders: tuple[HolderRecord, ...]
    pipelines: tuple[PipelineRecord, ...] = ()
    events: tuple[EventRecord, ...] = ()
    stages: tuple[StageRecord, ...] = ()

    @classmethod
    def of(cls, stats: Stats) -> NodeStats:
        values = MappingProxyType(dict(stats.values))
        return cls(
            values, stats.models, stats.residents, stats.devices, stats.holders,
            stats.pipelines, stats.events, stats.stages,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class FoundNode:
    """A node that answered a probe. `addresses`: where to connect, (host, port), the best first."""

    node_id: str
    name: str
    addresses: tuple[tuple[str, int], ...]
    models: tuple[str, ...]
    free_bytes: int
    total_bytes: int
    load: float  # requests under way and waiting, by slots: 1 is full
    token_wanted: bool
    signed: bool  # by our token
    seconds: float | None  # the answer took

    @classmethod
    def of(cls, found: Found) -> FoundNode:
        told = found.announcement
        addresses = tuple((address.host, address.port) for address in found.addresses)
        return cls(
            found.node_id, found.name, addresses, told.models, told.free_bytes, told.total_bytes, told.load,
            told.token_wanted, found.signed, found.seconds,
        )  # fmt: skip


class Telling:
    """Takes an answer's pieces and makes the whole of them."""

    def __init__(self, request: Generate) -> None:
        self._request = request
        self._texts: list[list[str]] = [[] for _ in range(request.samples)]
        self._ids: list[list[int]] = [[] for _ in range(request.samples)]
        self._logprobs: list[list[TokenChoice]] = [[] for _ in range(request.samples)]
        self.generation: Generation | None = None

    @property
    def text(self) -> str:
        """Of the first sample, so far."""
        return "".join(self._texts[0])

    def take(self, tokens: Tokens) -> Piece:
        piece = Piece(tokens.text, tokens.ids, tokens.sample, tuple(map(_choice, tokens.logprobs)))
        self._texts[piece.sample].append(piece.text)
        self._ids[piece.sample].extend(piece.ids)
        self._logprobs[piece.sample].extend(piece.logprobs)
        return piece

    def end(self, done: Done) -> Generation:
        reasons = done.reasons or (done.reason,) * self._request.samples
        asked = self._request.sampling.logprobs is not None
        self.generation = Generation(
            self._request.model,
            tuple("".join(texts) for texts in self._texts),
            tuple(map(tuple, self._ids)),
            tuple(reason.name.lower() for reason in reasons),
            Usage(done.prompt_tokens, done.output_tokens),
            tuple(map(tuple, self._logprobs)) if asked else (),
            done.reused_tokens,
            done.prompt_ns / 1e9,
            done.output_ns / 1e9,
            done.load_ns / 1e9,
            done.context,
        )
        return self.generation


def _choice(logprob: TokenLogprob) -> TokenChoice:
    chosen = logprob.chosen
    top = tuple((each.id, each.text, each.logprob) for each in logprob.top)
    return TokenChoice(chosen.id, chosen.text, chosen.logprob, top)
