"""Drafts from the text itself, and when they are made."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_node.engine.speculation import (
    GROWTH,
    INDEXED_TOKENS,
    MARGIN,
    MAX_PAUSE,
    MIN_PAUSE,
    NOTHING,
    PROBE,
    SIZES,
    Drafting,
    DraftRecord,
    NgramIndex,
    Proposal,
    propose,
)


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=40), st.lists(st.integers(0, 40), max_size=6), st.integers(1, 6)
)
def test_the_growing_index_proposes_what_a_search_does(tokens: list[int], looks: list[int], limit: int) -> None:
    index = NgramIndex()
    for length in sorted(looks):
        index.propose(tokens[: max(1, min(length, len(tokens)))], limit)
    assert index.propose(tokens, limit) == propose(tokens, limit)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 6))
def test_a_proposal_is_what_followed_the_last_time(tokens: list[int], limit: int) -> None:
    found = propose(tokens, limit)
    if found == NOTHING:
        tail = tuple(tokens[-2:])
        assert all(tuple(tokens[at - 2 : at]) != tail for at in range(2, len(tokens)))
        return
    assert len(found.drafts) == limit
    text, length = [*tokens, *found.drafts], SIZES[found.size]
    # Some earlier place has the same tail, and what followed there is what is drafted.
    places = [at for at in range(length, len(tokens)) if text[at - length : at] == tokens[-length:]]
    assert text[places[-1] : places[-1] + limit] == list(found.drafts)


def test_a_long_match_counts_more_than_a_late_one() -> None:
    tokens = [1, 2, 3, 4, 9, 7, 3, 4, 8, 1, 2, 3, 4]
    assert propose(tokens, 1) == Proposal((9,), 0)


def test_a_text_that_ends_early_repeats_itself() -> None:
    assert propose([5, 1, 2, 1, 2], 5).drafts == (1, 2, 1, 2, 1)


def test_a_text_too_short_proposes_nothing() -> None:
    assert NgramIndex().propose([1], 4) == NOTHING and NgramIndex().propose([1, 2], 4) == NOTHING


def test_the_index_is_bounded_for_a_long_prompt() -> None:
    index, tokens = NgramIndex(), list(range(3 * INDEXED_TOKENS))
    for _ in range(INDEXED_TOKENS // GROWTH + 2):
        before = len(index.ends)
        index.propose(tokens, 4)
        assert len(index.ends) - before <= len(SIZES) * GROWTH
    assert len(SIZES) * (INDEXED_TOKENS - 1) <= len(index.ends) <= len(SIZES) * INDEXED_TOKENS


def test_the_index_reads_only_what_is_new() -> None:
    class Counted(list):
        read = 0

        def __getitem__(self, key):
            self.read += 1
            return super().__getitem__(key)

    tokens = Counted(range(5_000))
    index = NgramIndex()
    for _ in range(5_000 // GROWTH + 1):
        index.propose(tokens, 4)
    tokens.append(1)
    before = tokens.read
    index.propose(tokens, 4)
    assert tokens.read - before < 20


@given(st.floats(0.01, 0.99), st.floats(0.001, 0.99), st.integers(1, 16))
def test_the_last_draft_pays_and_the_next_would_not(acceptance: float, price: float, limit: int) -> None:
    length = DraftRecord(acceptance, 1.0).length(price, limit, 0)
    assert 0 <= length <= limit
    if length > 1:
        assert acceptance**length >= price * MARGIN * 0.999
    if length < limit:
        assert acceptance ** (length + 1) <= price * MARGIN * 1.001


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), max_size=30))
def test_acceptance_stays_a_chance(verdicts: list[tuple[int, int]]) -> None:
    record = DraftRecord()
    for drafted, accepted in verdicts:
        record = record.after(drafted, min(drafted, accepted), 0.1, 100)
        assert 0.0 <= record.acceptance <= 1.0


def test_drafts_grow_while_they_come_true() -> None:
    record, lengths = DraftRecord(), []
    for written in range(10):
        length = record.length(0.1, 8, written)
        lengths.append(length)
        record = record.after(length, length, 0.1, written)
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1] == 8


def test_drafts_shrink_when_some_fail() -> None:
    record = DraftRecord(9.0, 10.0)
    before = record.length(0.1, 16, 0)
    for _ in range(4):
        record = record.after(4, 1, 0.1, 10)
    assert 0 < record.length(0.1, 16, 10) < before


def test_drafts_stop_when_they_fail_and_are_tried_again_later_and_later() -> None:
    record, pauses, written, price = DraftRecord(), [], 0, 0.2
    while len(pauses) < 10:
        written = next(at for at in range(written, written + 2 * MAX_PAUSE) if record.length(price, 8, at))
        record = record.after(record.length(price, 8, written), 0, price, written)
        if record.pause:
            pauses.append(record.pause)
    assert pauses[0] == MIN_PAUSE and pauses[-1] == MAX_PAUSE and pauses == sorted(pauses)


def test_a_probe_is_short_and_success_ends_the_pause() -> None:
    record = DraftRecord(0.1, 10.0, MIN_PAUSE, 50)
    assert record.length(0.2, 8, 49) == 0 and record.length(0.2, 8, 50) == PROBE
    for _ in range(3):
        record = record.after(PROBE, PROBE, 0.2, 50)
    assert not record.pause and record.length(0.2, 8, 51) > 0


@pytest.mark.parametrize("price", [1.0, 5.0])
def test_nothing_is_drafted_when_a_draft_costs_a_token(price: float) -> None:
    assert DraftRecord(1.0, 1.0).length(price, 8, 0) == 0


def test_drafts_that_cost_nothing_are_always_welcome() -> None:
    assert DraftRecord(1.0, 2.0).length(0.0, 8, 0) == 8


def test_a_crowd_makes_drafts_dear() -> None:
    record = DraftRecord(8.0, 10.0)
    assert [record.length(0.05 * decodes, 8, 0) for decodes in (1, 4, 7, 15)] == [8, 4, 1, 0]


def test_kinds_of_matches_are_judged_apart() -> None:
    drafting = Drafting()
    for _ in range(6):
        drafting.judge(Proposal((1, 2), 1), 0, 0.2, 10)
    assert drafting.propose([1, 2, 3, 4, 5, 1, 2, 3, 4], 0.2, 4).drafts  # a long match is trusted still
    assert drafting.propose([9, 8, 7, 1, 9, 8], 0.2, 4).drafts == ()


def test_a_paused_sequence_costs_no_look() -> None:
    drafting = Drafting(records=[DraftRecord(0.0, 9.0, 8, 1_000) for _ in SIZES])
    assert drafting.propose([1, 2, 1, 2], 0.1, 4) == NOTHING
    assert not drafting.index.ends


def test_random_text_ends_up_almost_without_drafts() -> None:
    random, drafting, tokens, drafted = Random(1), Drafting(), [1], 0
    for _ in range(1_500):
        proposal = drafting.propose(tokens, 0.2, 8)
        tokens.append(random.randrange(20))
        if proposal.drafts:
            drafted += len(proposal.drafts)
            drafting.judge(proposal, int(proposal.drafts[0] == tokens[-1]), 0.2, len(tokens))
    assert drafted < 60
