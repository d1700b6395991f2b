"""What a split is decided from and what it looks like: a model's bytes layer by layer, devices, links, and the plan.

Values only. Sizes are bytes, times are seconds, capacities are tokens whose keys and values a stage can hold. Must not
know torch, files or how devices are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from gpu_node.errors import NoRoom
from gpu_node.vram import gigabytes

# Of a device's free memory: other programs, fragments, and what was guessed too small. Mesh-LLM uses as much.
RESERVE_SHARE = 0.1
# What CUDA graphs and the libraries' workspaces take where there are any; parallax ran out of memory without it.
GRAPH_BYTES = 1 << 30
# What a step of that many tokens needs at once: hidden states, their norm, queries, keys, values and the widened MLP.
LIVE_STATES = 12


@dataclass(frozen=True, slots=True)
class LayerSize:
    weights_bytes: int
    cache_token_bytes: int  # keys and values of one token


@dataclass(frozen=True, slots=True)
class ModelShape:
    """`head_bytes` counts the norm before it; with `tied` weights a stage that has the embedding has the head's too."""

    name: str
    layers: tuple[LayerSize, ...]
    embedding_bytes: int
    head_bytes: int
    hidden_size: int
    vocabulary: int
    tied: bool = False
    element_bytes: int = 2  # of what travels between stages
    weight_bits: float = 16  # of one weight of the layers, as it is held

    def __post_init__(self) -> None:
        if not self.layers or min(self.embedding_bytes, self.head_bytes, self.hidden_size, self.vocabulary) < 0:
            raise ValueError("a model has layers, and its sizes are not negative")

    @property
    def weights_bytes(self) -> int:
        """On one device."""
        return sum(layer.weights_bytes for layer in self.layers) + self.ends_bytes(True, True)

    def ends_bytes(self, first: bool, last: bool) -> int:
        """What a stage holds because it is the first or the last."""
        if first and last and self.tied:
            return max(self.embedding_bytes, self.head_bytes)
        return first * self.embedding_bytes + last * self.head_bytes


@dataclass(frozen=True, slots=True)
class Demand:
    """What the plan has to promise: at least one context, better `sequences` of them."""

    context_tokens: int
    sequences: int = 1
    step_tokens: int = 512  # the most that one step computes
    block_tokens: int = 16

    @property
    def least_tokens(self) -> int:
        return -(-self.context_tokens // self.block_tokens) * self.block_tokens

    @property
    def wanted_tokens(self) -> int:
        return self.least_tokens * max(self.sequences, 1)


@dataclass(frozen=True, slots=True)
class Pace:
    """Measured on one device: seconds of one decode step for one layer, and for the head."""

    layer_seconds: float
    head_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PlannedDevice:
    """`stated`: somebody gave it exactly this budget, which counts tensors only, so that no reserve is taken of it."""

    name: str
    free_bytes: int
    kind: str = "cpu"
    pace: Pace | None = None
    stated: bool = False

    @property
    def usable_bytes(self) -> int:
        """For weights, cache and activations."""
        graphs = GRAPH_BYTES if self.kind == "cuda" else 0
        reserve = 0.0 if self.stated else RESERVE_SHARE
        return max(int(self.free_bytes * (1 - reserve)) - graphs, 0)


@dataclass(frozen=True, slots=True)
class LinkPace:
    """One way between two devices."""

    latency_seconds: float = 0.0
    bytes_per_second: float = float("inf")

    def seconds(self, size: int) -> float:
        return self.latency_seconds + size / self.bytes_per_second


Links = Mapping[tuple[str, str], LinkPace]


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Layers `first` to `behind` (excluded) on one device."""

    device: str
    first: int
    behind: int
    weights_bytes: int
    capacity_tokens: int  # what could be held; the plan's own is the least over its stages
    seconds: float | None = None  # of a decode step, without the link behind it

    @property
    def layers(self) -> int:
        return self.behind - self.first


@dataclass(frozen=True, slots=True)
class Plan:
    """Which device holds which layers, and how many tokens all of them can keep. Replaced whole, never edited."""

    stages: tuple[StagePlan, ...]
    capacity_tokens: int  # whole blocks, the same on every stage, no more than is wanted
    strategy: str
    latency_seconds: float | None = None  # of one decode step through all stages and links
    period_seconds: float | None = None  # between two steps when all stages work at once
    reason: str = ""
    epoch: int = 0

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(stage.layers for stage in self.stages)


class DoesNotFit(NoRoom):
    """`short_bytes` are missing in all; `remedies` are sentences, each of which would make it fit."""

    def __init__(self, message: str, short_bytes: int, remedies: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.short_bytes, self.remedies = short_bytes, tuple(remedies)


@dataclass(frozen=True)
class Sizes:
    """Sums over layers that every strategy asks for many times; O(1) each."""

    shape: ModelShape
    demand: Demand
    _weights: tuple[int, ...] = field(init=False)
    _cache: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        weights = accumulate((layer.weights_bytes for layer in self.shape.layers), initial=0)
        cache = accumulate((layer.cache_token_bytes for layer in self.shape.layers), initial=0)
        object.__setattr__(self, "_weights", tuple(weights))
        object.__setattr__(self, "_cache", tuple(cache))

    @property
    def layers(self) -> int:
        return len(self.shape.layers)

    def weights(self, first: int, behind: int) -> int:
        """Of a stage with these layers, with the ends that fall to it."""
        ends = self.shape.ends_bytes(first == 0, behind == self.layers)
        return self._weights[behind] - self._weights[first] + ends

    def cache_token(self, first: int, behind: int) -> int:
        return self._cache[behind] - self._cache[first]

    def activations(self, behind: int) -> int:
        """Of the largest step, in single precision; the last stage also has a row of logits a sequence."""
        live = LIVE_STATES * self.demand.step_tokens * self.shape.hidden_size * 4
        last = behind == self.layers
        return live + last * max(self.demand.sequences, 1) * self.shape.vocabulary * 4

    def capacity(self, device: PlannedDevice, first: int, behind: int) -> int:
        """Tokens that the stage can keep beside its weights; negative where not even those fit."""
        left = device.usable_bytes - self.weights(first, behind) - self.activations(behind)
        token = self.cache_token(first, behind)
        if left < 0:
            return -1
        return left // token if token else self.demand.wanted_tokens

    def missing(self, device: PlannedDevice, first: int, behind: int, tokens: int) -> int:
        """Bytes that the stage lacks for so many tokens; 0 where it fits."""
        need = self.weights(first, behind) + self.activations(behind) + tokens * self.cache_token(first, behind)
        return max(need - device.usable_bytes, 0)

    def step_bytes(self, tokens: int) -> int:
        """What goes over a link for a step of so many tokens."""
        return tokens * self.shape.hidden_size * self.shape.element_bytes

    def stage(self, device: PlannedDevice, first: int, behind: int) -> StagePlan:
        capacity = self.capacity(device, first, behind)
        return StagePlan(
            device.name, first, behind, self.weights(first, behind), capacity, self.seconds(device, first, behind)
        )

    def seconds(self, device: PlannedDevice, first: int, behind: int) -> float | None:
        """Of one decode step; layers weigh as much as their bytes, against the model's mean layer."""
        if device.pace is None:
            return None
        mean = self._weights[-1] / self.layers
        share = (self._weights[behind] - self._weights[first]) / mean if mean else behind - first
        head = device.pace.head_seconds if behind == self.layers else 0.0
        return share * device.pace.layer_seconds + head


def shortage(short_bytes: int) -> str:
    return f"short by {gigabytes(short_bytes)}"
