"""The account of a device's memory: which model and which client's session holds how much, and what a model will need.

Pure: values in, values out, no device is asked. Invariants: every byte has one owner; what is claimed never exceeds the
budget, unless a model turned out larger than was thought. Must not know torch, HTTP, or who leaves for whom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gpu_node.load_wish import LoadWish

# Of the memory that is free at the start; the rest is for activations, other programs and what was guessed too small.
USABLE_SHARE = 0.9
# Nobody wants more than this many full contexts by default.
CONTEXTS_WANTED = 8
# Of what is left beside the weights: a CPU's memory is everybody's, a GPU's is there for this.
CACHE_SHARE = {"cpu": 0.25, "cuda": 0.5}
# What the account of all devices together is called, where models are split over them.
POOL = "devices"
# Everything else that a description calls its quantisation is one, and computes as it is stored.
PLAIN_DTYPES = frozenset({"", "UNKNOWN", "F64", "F32", "F16", "BF16", "FLOAT32", "FLOAT16", "BFLOAT16"})
# Bytes that a weight takes of a GGUF file's types that products hold in wider codes or with wider scales than the file.
WIDENED_BYTES = {"Q2_K": 1.07, "Q3_K": 1.07, "Q4_K": 0.75, "Q5_0": 1.07, "Q5_1": 1.13, "Q5_K": 1.25, "Q6_K": 1.07}
BITS_OF_WEIGHTS = {"int8": 8.5, "int4": 4.75}  # with their scales


@dataclass(frozen=True, slots=True)
class Claim:
    """What one model holds."""

    weights_bytes: int
    cache_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes


@dataclass(frozen=True, slots=True)
class Account:
    device: str
    budget_bytes: int
    claims: Mapping[str, Claim] = field(default_factory=dict)  # by model
    buffers: Mapping[str, int] = field(default_factory=dict)  # bytes by session; nobody with none
    gpus: int = 0  # of a pool: so many of its devices are GPUs

    @property
    def is_pool(self) -> bool:
        """Of several devices, which models are split over; nothing else lies there."""
        return self.device == POOL

    @property
    def has(self) -> str:
        """For sentences."""
        return "the devices have" if self.is_pool else f"{self.device} has"

    @property
    def has_gpu(self) -> bool:
        return self.gpus > 0 or self.device.startswith("cuda")

    @property
    def used_bytes(self) -> int:
        return sum(claim.total_bytes for claim in self.claims.values()) + sum(self.buffers.values())

    @property
    def free_bytes(self) -> int:
        return max(self.budget_bytes - self.used_bytes, 0)

    def claim(self, name: str, claim: Claim) -> Account:
        """Also replaces what was claimed under that name before."""
        return replace(self, claims={**self.claims, name: claim})

    def release(self, name: str) -> Account:
        return replace(self, claims={other: claim for other, claim in self.claims.items() if other != name})

    def lend(self, owner: str, size_bytes: int) -> Account:
        """So much more for buffers of this session; whether there is room is the caller's to know."""
        return self._with_buffers(owner, self.buffers.get(owner, 0) + size_bytes)

    def take_back(self, owner: str, size_bytes: int) -> Account:
        held = self.buffers.get(owner, 0)
        assert 0 <= size_bytes <= held, f"{owner} gives back {size_bytes} bytes of {held}"
        return self._with_buffers(owner, held - size_bytes)

    def without_buffers(self, owner: str) -> Account:
        return self._with_buffers(owner, 0)

    def _with_buffers(self, owner: str, size_bytes: int) -> Account:
        others = {other: held for other, held in self.buffers.items() if other != owner}
        return replace(self, buffers={**others, owner: size_bytes} if size_bytes else others)


@dataclass(frozen=True, slots=True)
class Holding:
    """A line of the list of who holds what."""

    owner: str  # a model's name, or a session's
    what: Literal["model", "buffers"]
    device: str
    size_bytes: int
    state: Literal["live", "cut", "idle"]  # of a model: live while it is used, or held by a connected session


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10_000_000 else f"{size / 1e6:.2f} MB"


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What decides how much memory a model takes."""

    parameters: int
    stored_bytes: int
    config: Mapping[str, Any]
    stored_dtype: str = ""


def needed(size: ModelSize, wish: LoadWish, context_tokens: int, account: Account) -> Claim:
    """Before loading: a careful guess. The cache is given, or sized from what is left beside the weights."""
    weights = weights_bytes(size, wish)
    token = cache_token_bytes(size.config, wish.dtype, size.stored_dtype)
    if wish.kv_bytes:
        return Claim(weights, wish.kv_bytes)
    if wish.kv_blocks:
        return Claim(weights, wish.kv_blocks * wish.block_tokens * token)
    context = -(-context_tokens // wish.block_tokens) * wish.block_tokens * token
    wanted = min(CONTEXTS_WANTED, wish.max_running) * context
    kind = "cuda" if account.device.startswith("cuda") else "cpu"
    left = max(account.budget_bytes - weights, 0)
    return Claim(weights, max(min(wanted, int(left * CACHE_SHARE[kind])), min(context, left)))


def weights_bytes(size: ModelSize, wish: LoadWish) -> int:
    quantised = size.stored_dtype.upper() not in PLAIN_DTYPES
    if (wish.weights == "stored" or (wish.weights == "auto" and quantised)) and size.stored_bytes:
        return size.stored_bytes
    if wish.weights in BITS_OF_WEIGHTS:
        return int(size.parameters * BITS_OF_WEIGHTS[wish.weights] / 8)
    return size.parameters * _dtype_bytes(wish.dtype, size.stored_dtype) or size.stored_bytes


def cache_token_bytes(config: Mapping[str, Any], dtype: str, stored_dtype: str = "") -> int:
    """Keys and values of one token over all layers; 0 where the config does not say."""
    layers = _number(config, "num_hidden_layers", "n_layer", "num_layers")
    heads = _number(config, "num_attention_heads", "n_head", "num_heads")
    kv_heads = _number(config, "num_key_value_heads", "multi_query_group_num") or heads
    hidden = _number(config, "hidden_size", "n_embd", "d_model")
    head_size = _number(config, "head_dim") or (hidden // heads if heads else 0)
    return 2 * layers * kv_heads * head_size * _dtype_bytes(dtype, stored_dtype)


def _dtype_bytes(dtype: str, stored_dtype: str) -> int:
    single = dtype == "float32" or (dtype == "auto" and stored_dtype.upper() in ("F32", "FLOAT32"))
    return 4 if single else 2


def _number(config: Mapping[str, Any], *names: str) -> int:
    return next((value for name in names if isinstance(value := config.get(name), int)), 0)
