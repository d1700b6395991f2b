"""The account adds up, guesses with care, and names who leaves; property: what is planned really fits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_node.errors import NoRoom
from gpu_node.load_wish import LoadWish, parse_bytes
from gpu_node.vram import Account, Claim, Holder, ModelSize, cache_token_bytes, needed, plan_room, weights_bytes

LLAMA = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
SMALL = ModelSize(135_000_000, 98_000_000, LLAMA, "BF16")


def account(budget: int = 100, **claims: int) -> Account:
    made = Account("cpu", budget)
    for name, size in claims.items():
        made = made.claim(name, Claim(size, 0))
    return made


def holders(*names: str, busy: tuple[str, ...] = (), kept: tuple[str, ...] = ()) -> list[Holder]:
    """The first was used longest ago."""
    return [Holder(name, name not in busy, at, name in kept, int(name in busy)) for at, name in enumerate(names)]


def test_claims_are_counted_replaced_and_released() -> None:
    here = account(a=30, b=20)
    assert (here.used_bytes, here.free_bytes) == (50, 50)
    assert here.claim("a", Claim(10, 5)).used_bytes == 35
    assert here.release("a").release("unknown").used_bytes == 20
    assert account(10, a=30).free_bytes == 0, "a model may turn out larger than was thought"


def test_nobody_leaves_where_there_is_room() -> None:
    assert plan_room(account(a=30), "new", 70, holders("a")).names == ()


def test_the_least_recently_used_idle_one_leaves_and_no_more_than_needed() -> None:
    here = account(a=30, b=30, c=30)
    assert plan_room(here, "new", 40, holders("b", "a", "c")).names == ("b",)
    assert plan_room(here, "new", 70, holders("b", "a", "c")).names == ("b", "a")


def test_kept_ones_leave_after_others_and_busy_ones_last() -> None:
    here = account(a=30, b=30, c=30)
    plan = plan_room(here, "new", 100, holders("a", "b", "c", busy=("a",), kept=("b",)))
    assert (plan.names, plan.busy) == (("c", "b", "a"), ("a",))


def test_a_cache_of_less_than_a_block_is_a_block() -> None:
    claim = needed(SMALL, LoadWish(max_running=1), 1, account(10**10))
    assert claim.cache_bytes == 16 * cache_token_bytes(LLAMA, "auto", "BF16")


def test_a_model_that_grows_does_not_count_against_itself() -> None:
    assert plan_room(account(a=60), "a", 90, holders("a")).names == ()


def test_what_can_never_fit_says_what_there_is() -> None:
    with pytest.raises(NoRoom, match=r"new needs 3\.00 GB and cpu has 2\.00 GB to give"):
        plan_room(Account("cpu", 2 * 10**9), "new", 3 * 10**9, ())


def test_a_refusal_names_who_holds_what() -> None:
    here = account(100 * 10**6, gone=60 * 10**6, b=20 * 10**6)
    with pytest.raises(NoRoom, match=r"gone holds 0\.06 GB, b holds 0\.02 GB and is answering 1"):
        plan_room(here, "new", 90 * 10**6, holders("b", busy=("b",)))


@given(
    budget=st.integers(1, 200),
    sizes=st.lists(st.tuples(st.integers(0, 50), st.booleans(), st.booleans()), max_size=6),
    wanted=st.integers(1, 250),
)
def test_who_leaves_makes_enough_room_and_nobody_leaves_for_nothing(
    budget: int, sizes: list[tuple[int, bool, bool]], wanted: int
) -> None:
    here, there = Account("cpu", budget), []
    for at, (size, idle, kept) in enumerate(sizes):
        here = here.claim(str(at), Claim(size, 0))
        there.append(Holder(str(at), idle, float(at), kept))
    try:
        plan = plan_room(here, "new", wanted, there)
    except NoRoom:
        assert wanted > budget or wanted > budget - here.used_bytes
        return
    for name in plan.names:
        here = here.release(name)
    assert wanted <= budget - here.used_bytes
    if plan.names:
        last = here.claim(plan.names[-1], Claim(sizes[int(plan.names[-1])][0], 0))
        assert wanted > budget - last.used_bytes, "the last one had to go too"
    assert set(plan.busy) == {name for name in plan.names if not sizes[int(name)][1]}


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
