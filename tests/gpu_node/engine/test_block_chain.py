"""Keys of blocks: equal exactly when salt and all tokens up to the block's end are equal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_node.engine.block_chain import BlockChain, digest_of

TOKENS = st.lists(st.integers(0, 3), max_size=12)


def digests(tokens: list[int], salt: str = "", size: int = 2) -> list[bytes]:
    chain = BlockChain(salt, size)
    chain.extend(tokens, len(tokens) // size)
    return [key.digest for key in chain.keys]


@given(TOKENS, TOKENS, st.sampled_from(["", "a"]), st.sampled_from(["", "a"]))
def test_digests_are_equal_exactly_as_long_as_salt_and_tokens_are(first, second, salt, other) -> None:
    pairs = list(zip(digests(first, salt), digests(second, other), strict=False))
    for index, (one, two) in enumerate(pairs, 1):
        assert (one == two) == (salt == other and first[: 2 * index] == second[: 2 * index])


@given(TOKENS, st.integers(0, 6))
def test_growing_in_pieces_names_the_same_blocks(tokens: list[int], at: int) -> None:
    chain = BlockChain("s", 2)
    chain.extend(tokens, min(at, len(tokens) // 2))
    chain.extend(tokens, len(tokens) // 2)
    assert [key.digest for key in chain.keys] == digests(tokens, "s")
    assert [token for key in chain.keys for token in key.tokens] == tokens[: len(tokens) // 2 * 2]
    assert all(key.salt == "s" for key in chain.keys)


def test_each_block_is_digested_once() -> None:
    seen: list[bytes] = []

    def digest(data: bytes) -> bytes:
        seen.append(data)
        return digest_of(data)

    chain = BlockChain("", 2, digest)
    chain.extend([1, 2, 3, 4], 2)
    count = len(seen)
    chain.extend([1, 2, 3, 4], 2)
    assert len(seen) == count


def test_a_block_that_is_not_full_has_no_name() -> None:
    with pytest.raises(AssertionError):
        BlockChain("", 4).extend([1, 2, 3], 1)


def test_digests_are_long_enough_to_be_shared() -> None:
    assert len(digest_of(b"")) >= 16


def test_a_salt_may_be_any_text() -> None:
    assert len({digests([1, 2], salt)[0] for salt in ("", "\udc80", "ä", "\0")}) == 4


def test_tokens_do_not_run_into_each_other() -> None:
    assert digests([1, 23], size=2) != digests([12, 3], size=2)
