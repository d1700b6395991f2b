"""The account adds up, and guesses with care what a model will need."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_node.load_wish import LoadWish, parse_bytes
from gpu_node.vram import Account, Claim, ModelSize, cache_token_bytes, needed, weights_bytes

LLAMA = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
SMALL = ModelSize(135_000_000, 98_000_000, LLAMA, "BF16")


def account(budget: int = 100, **claims: int) -> Account:
    made = Account("cpu", budget)
    for name, size in claims.items():
        made = made.claim(name, Claim(size, 0))
    return made


def test_claims_are_counted_replaced_and_released() -> None:
    here = account(a=30, b=20)
    assert (here.used_bytes, here.free_bytes) == (50, 50)
    assert here.claim("a", Claim(10, 5)).used_bytes == 35
    assert here.release("a").release("unknown").used_bytes == 20
    assert account(10, a=30).free_bytes == 0, "a model may turn out larger than was thought"


def test_buffers_count_beside_models_and_go_by_session() -> None:
    here = account(a=30).lend("session 1", 20).lend("session 2", 5).lend("session 1", 10)
    assert (here.used_bytes, here.free_bytes, dict(here.buffers)) == (65, 35, {"session 1": 30, "session 2": 5})
    assert dict(here.take_back("session 1", 10).take_back("session 2", 5).buffers) == {"session 1": 20}
    assert dict(here.without_buffers("session 1").buffers) == {"session 2": 5}
    assert here.release("a").used_bytes == 35
    with pytest.raises(AssertionError, match="gives back 6 bytes of 5"):
        here.take_back("session 2", 6)


def test_a_cache_of_less_than_a_block_is_a_block() -> None:
    claim = needed(SMALL, LoadWish(max_running=1), 1, account(10**10))
    assert claim.cache_bytes == 16 * cache_token_bytes(LLAMA, "auto", "BF16")


@pytest.mark.parametrize(
    ("wish", "size"),
    [
        (LoadWish(), 270_000_000),
        (LoadWish(dtype="float32"), 540_000_000),
        (LoadWish(weights="stored"), 98_000_000),
        (LoadWish(weights="full"), 270_000_000),
        (LoadWish(weights="int8"), 143_437_500),
        (LoadWish(weights="int4"), 80_156_250),
    ],
)
def test_weights_are_guessed_by_how_they_are_held(wish: LoadWish, size: int) -> None:
    assert weights_bytes(SMALL, wish) == size


def test_quantised_files_are_held_as_they_are_unless_something_else_is_asked_for() -> None:
    quantised = ModelSize(135_000_000, 98_000_000, LLAMA, "Q4_1")
    assert weights_bytes(quantised, LoadWish()) == 98_000_000
    assert weights_bytes(quantised, LoadWish(weights="full")) == 270_000_000


@pytest.mark.parametrize(
    ("config", "dtype", "size"),
    [
        (LLAMA, "auto", 2 * 30 * 3 * 64 * 2),
        (LLAMA, "float32", 2 * 30 * 3 * 64 * 4),
        ({"n_layer": 12, "n_head": 12, "n_embd": 768}, "auto", 2 * 12 * 768 * 2),
        ({**LLAMA, "head_dim": 128}, "auto", 2 * 30 * 3 * 128 * 2),
        ({}, "auto", 0),
    ],
)
def test_a_tokens_keys_and_values(config: dict[str, Any], dtype: str, size: int) -> None:
    assert cache_token_bytes(config, dtype) == size


def test_the_cache_is_given_or_a_share_of_what_is_left() -> None:
    token = 2 * 30 * 3 * 64 * 2
    big, small = Account("cpu", 10**12), Account("cpu", 270_000_000 + 400_000_000)
    assert needed(SMALL, LoadWish(kv_bytes=7), 8192, big).cache_bytes == 7
    assert needed(SMALL, LoadWish(kv_blocks=4), 8192, big).cache_bytes == 4 * 16 * token
    assert needed(SMALL, LoadWish(), 8192, big).cache_bytes == 8 * 8192 * token
    assert needed(SMALL, LoadWish(max_running=2), 8192, big).cache_bytes == 2 * 8192 * token
    assert needed(SMALL, LoadWish(), 8192, small).cache_bytes == 8192 * token, "one context in any case"
    tight = needed(SMALL, LoadWish(), 8192, Account("cpu", 270_000_000 + 1000))
    assert tight == Claim(270_000_000, 1000)
    gpu = needed(SMALL, LoadWish(), 8192, Account("cuda", 270_000_000 + 2_000_000_000))
    assert gpu.cache_bytes == 1_000_000_000


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("512MiB", 512 << 20), ("1.5k", 1500), ("7", 7), (9, 9), ("3 gib", 3 << 30)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1 elephant", -1])
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)
