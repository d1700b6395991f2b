"""The account of a device's memory: who holds how much, what a model will need, and who must leave to make room.

Pure: values in, values out, no device is asked. Invariant: what is claimed never exceeds the budget, unless a model
turned out larger than was thought. Must not know torch, HTTP or time beyond the numbers it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpu_node.errors import NoRoom
from gpu_node.load_wish import LoadWish

# Of the memory that is free at the start; the rest is for activations, other programs and what was guessed too small.
USABLE_SHARE = 0.9
# Nobody wants more than this many full contexts by default.
CONTEXTS_WANTED = 8
# Of what is left beside the weights: a CPU's memory is everybody's, a GPU's is there for this.
CACHE_SHARE = {"cpu": 0.25, "cuda": 0.5}
# Everything else that a description calls its quantisation is one, and computes as it is stored.
PLAIN_DTYPES = frozenset({"", "UNKNOWN", "F64", "F32", "F16", "BF16", "FLOAT32", "FLOAT16", "BFLOAT16"})
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
    claims: Mapping[str, Claim] = field(default_factory=dict)

    @property
    def used_bytes(self) -> int:
        return sum(claim.total_bytes for claim in self.claims.values())

    @property
    def free_bytes(self) -> int:
        return max(self.budget_bytes - self.used_bytes, 0)

    def claim(self, name: str, claim: Claim) -> Account:
        """Also replaces what was claimed under that name before."""
        return replace(self, claims={**self.claims, name: claim})

    def release(self, name: str) -> Account:
        return replace(self, claims={other: claim for other, claim in self.claims.items() if other != name})


@dataclass(frozen=True, slots=True)
class Holder:
    """A loaded model as the choice of who leaves sees it."""

    name: str
    idle: bool
    last_used: float
    kept: bool = False  # for ever, unless nobody else can make room
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Departures:
    """Who leaves, in this order; those that are busy only when they have become idle."""

    names: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()


def plan_room(account: Account, name: str, needed_bytes: int, holders: Sequence[Holder]) -> Departures:
    """Idle models leave first, least recently used first, kept ones after the others; then busy ones.

    Raises `NoRoom` when even an empty device has no room.
    """
    if needed_bytes > account.budget_bytes:
        raise NoRoom(
            f"{name} needs {gigabytes(needed_bytes)} and {account.device} has {gigabytes(account.budget_bytes)} "
            "to give; a shorter context, a smaller cache or quantised weights need less"
        )
    missing = needed_bytes - (account.budget_bytes - account.release(name).used_bytes)
    leaving: list[Holder] = []
    order = sorted(holders, key=lambda holder: (not holder.idle, holder.kept, holder.last_used))
    for holder in order:
        if missing <= 0:
            break
        if holder.name in account.claims and holder.name != name:
            leaving.append(holder)
            missing -= account.claims[holder.name].total_bytes
    if missing > 0:
        raise NoRoom(f"{name} needs {gigabytes(needed_bytes)}, and {who_holds_what(account, holders)}")
    return Departures(tuple(one.name for one in leaving), tuple(one.name for one in leaving if not one.idle))


def who_holds_what(account: Account, holders: Sequence[Holder]) -> str:
    if not account.claims:
        return f"{account.device} has {gigabytes(account.free_bytes)} free"
    requests = {holder.name: holder.requests for holder in holders}
    parts = [
        f"{name} holds {gigabytes(claim.total_bytes)}"
        + (f" and is answering {requests[name]}" if requests.get(name) else "")
        for name, claim in account.claims.items()
    ]
    return f"of {gigabytes(account.budget_bytes)} on {account.device} " + ", ".join(parts)


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
