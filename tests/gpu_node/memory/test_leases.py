"""The book against a plain list of bytes, over any order of calls."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpu_node.memory.errors import LeaseFault
from gpu_node.memory.leases import LeaseBook, Terms


class Books(RuleBasedStateMachine):
    """Beside the book: which bytes lie where, block by block."""

    def __init__(self) -> None:
        super().__init__()
        self.book = LeaseBook()
        self.at: dict[int, tuple[Terms, set[str]]] = {}  # lease -> where a copy of its bytes is counted
        self.now = 0.0

    @rule(
        holder=st.integers(0, 2),
        lender=st.integers(0, 2),
        first=st.integers(-1, 20),
        count=st.integers(0, 6),
        size=st.integers(0, 3),
    )
    def grant(self, holder: int, lender: int, first: int, count: int, size: int) -> None:
        terms = Terms(holder, lender, first, first + count, size)
        taken = {
            block
            for other, _ in self.at.values()
            if other.holder == holder
            for block in range(other.first, other.behind)
        }
        fits = (
            first >= 0 and count > 0 and size > 0 and holder != lender and not taken & set(range(first, first + count))
        )
        self.now += 1
        if fits:
            lease = self.book.grant(terms, self.now)
            assert lease.number not in self.at
            self.at[lease.number] = (terms, {"lender"})
        else:
            with pytest.raises(LeaseFault):
                self.book.grant(terms, self.now)

    @precondition(lambda self: self.at)
    @rule(data=st.data(), state=st.sampled_from(["lent", "moving", "host"]))
    def change(self, data: st.DataObject, state: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.at)))
        before = self.book.get(number).state
        allowed = {("asked", "lent"), ("lent", "moving"), ("moving", "host"), ("moving", "lent")}
        if (before, state) in allowed:
            self.book.become(number, state)
            self.at[number] = (
                self.at[number][0],
                {"lent": {"lender"}, "moving": {"lender", "host"}}.get(state, {"host"}),
            )
        else:
            with pytest.raises(LeaseFault):
                self.book.become(number, state)

    @precondition(lambda self: self.at)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.at)))
        self.book.end(number)
        del self.at[number]
        with pytest.raises(LeaseFault):
            self.book.end(number)

    @rule(highest=st.integers(0, 30))
    def use(self, highest: int) -> None:
        self.now += 1
        self.book.use(highest, self.now)
        for lease in self.book:
            assert (lease.used_at == self.now) == (lease.terms.first <= highest or lease.granted_at == self.now)

    @invariant()
    def every_byte_is_accounted_for(self) -> None:
        assert {lease.number for lease in self.book} == set(self.at)
        for stage in (0, 1, 2, None):
            lent = [t.size_bytes for t, at in self.at.values() if "lender" in at and stage in (t.lender, None)]
            host = [t.size_bytes for t, at in self.at.values() if "host" in at and stage in (t.holder, None)]
            assert self.book.lent_bytes(stage) == sum(lent)
            assert self.book.host_bytes(stage) == sum(host)

    @invariant()
    def a_block_is_covered_once_it_was_granted(self) -> None:
        for holder in range(3):
            known = {
                block
                for number, (terms, _) in self.at.items()
                if terms.holder == holder and self.book.get(number).state != "asked"
                for block in range(terms.first, terms.behind)
            }
            assert {block for block in range(-1, 30) if self.book.covers(holder, block)} == known


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_bundle_is_found_from_any_of_its_leases() -> None:
    book = LeaseBook()
    one = book.grant(Terms(0, 2, 5, 9, 8, bundle=1), 0.0)
    two = book.grant(Terms(1, 2, 5, 9, 4, bundle=1), 0.0)
    other = book.grant(Terms(0, 2, 9, 10, 8, bundle=2), 0.0)
    assert book.bundle(two.number) == (one, two)
    assert book.bundle(other.number) == (other,)
    assert one.terms.size_bytes == 32 and book.lent_bytes(2) == 32 + 16 + 8
