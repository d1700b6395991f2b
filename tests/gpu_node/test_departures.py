"""Who leaves, in which order and for whom; property: what is planned really fits, and nobody leaves for nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_node.departures import CutSession, Departures, Holder, Need, holdings, plan_room
from gpu_node.errors import NoRoom
from gpu_node.vram import Account, Claim, Holding


def account(budget: int = 100, buffers: dict[str, int] | None = None, **claims: int) -> Account:
    made = Account("cpu", budget)
    for name, size in claims.items():
        made = made.claim(name, Claim(size, 0))
    for owner, size in (buffers or {}).items():
        made = made.lend(owner, size)
    return made


def holders(*names: str, busy: str = "", kept: str = "", held: str = "") -> list[Holder]:
    """The first was used longest ago."""
    return [
        Holder(name, name not in busy, at, name in kept, int(name in busy), name in held)
        for at, name in enumerate(names)
    ]


def model(size: int) -> Need:
    return Need("new", size)


def buffers(size: int, owner: str = "session 9") -> Need:
    return Need(owner, size, "buffers")


def test_nobody_leaves_where_there_is_room() -> None:
    assert plan_room(account(a=30), model(70), holders("a")) == Departures()


def test_the_least_recently_used_idle_one_leaves_and_no_more_than_needed() -> None:
    here = account(a=30, b=30, c=30)
    assert plan_room(here, model(40), holders("b", "a", "c")).names == ("b",)
    assert plan_room(here, model(70), holders("b", "a", "c")).names == ("b", "a")


def test_kept_ones_leave_after_others_and_busy_ones_last() -> None:
    here = account(a=30, b=30, c=30)
    plan = plan_room(here, model(100), holders("a", "b", "c", busy="a", kept="b"))
    assert (plan.names, plan.busy) == (("c", "b", "a"), ("a",))


def test_a_model_that_grows_does_not_count_against_itself() -> None:
    assert plan_room(account(a=60), Need("a", 90), holders("a")).names == ()


def test_for_buffers_only_idle_models_leave_that_nobody_wants_kept() -> None:
    here = account(a=20, b=20, c=20, d=20)
    all_of_them = holders("a", "b", "c", "d", busy="a", kept="b", held="c")
    assert plan_room(here, buffers(40), all_of_them).names == ("d",)
    with pytest.raises(NoRoom) as caught:
        plan_room(here, buffers(41), all_of_them)
    assert (caught.value.free_bytes, caught.value.needed_bytes) == (20, 41)


def test_what_a_connected_session_holds_stays_also_for_a_model() -> None:
    here = account(a=50, buffers={"session 1": 50})
    with pytest.raises(NoRoom, match=r"a holds 0\.00 MB, buffers of clients hold 0\.00 MB"):
        plan_room(here, model(1), holders("a", held="a"))


def test_cut_sessions_leave_first_and_the_longest_cut_one_before_the_others() -> None:
    here = account(a=20, b=20, buffers={"session 1": 20, "session 2": 20, "session 3": 20})
    cut = [CutSession("session 2", 5.0), CutSession("session 1", 7.0), CutSession("session 4", 1.0)]
    for need in (model, buffers):
        assert plan_room(here, need(20), holders("a", "b"), cut) == Departures(sessions=("session 2",))
        assert plan_room(here, need(41), holders("a", "b"), cut) == Departures(
            ("a",), sessions=("session 2", "session 1")
        )
    with pytest.raises(NoRoom):
        plan_room(here, model(81), holders("a", "b"), cut)


def test_a_model_that_only_a_cut_session_holds_leaves_with_it() -> None:
    here = account(a=30, b=30, buffers={"session 2": 40})
    cut = [CutSession("session 1", 1.0, frozenset("b")), CutSession("session 2", 2.0)]
    assert plan_room(here, model(30), holders("a", "b"), cut) == Departures(("b",), sessions=("session 1",))
    assert plan_room(here, model(70), holders("a", "b"), cut) == Departures(("b",), sessions=("session 1", "session 2"))
    with_another = holders("a", "b", held="b")
    assert plan_room(here, model(30), with_another, cut) == Departures(sessions=("session 2",))


def test_a_cut_session_makes_no_room_for_itself() -> None:
    here = account(buffers={"session 1": 60})
    with pytest.raises(NoRoom):
        plan_room(here, buffers(50, "session 1"), (), [CutSession("session 1", 1.0)])


def test_what_can_never_fit_says_what_there_is() -> None:
    with pytest.raises(NoRoom, match=r"new needs 3\.00 GB and cpu has 2\.00 GB to give; a shorter context"):
        plan_room(Account("cpu", 2 * 10**9), model(3 * 10**9), ())


def test_a_refusal_names_who_holds_what() -> None:
    here = account(100 * 10**6, gone=60 * 10**6, b=20 * 10**6)
    with pytest.raises(NoRoom, match=r"gone holds 0\.06 GB, b holds 0\.02 GB and is answering 1"):
        plan_room(here, model(90 * 10**6), holders("b", busy="b"))


def test_the_list_of_who_holds_what() -> None:
    here = account(a=30, b=30, c=10, buffers={"session 1": 5, "session 2": 6})
    found = holdings([here], holders("a", "b", "c", busy="a", held="b"), [CutSession("session 2", 1.0)])
    assert found == [
        Holding("a", "model", "cpu", 30, "live"),
        Holding("b", "model", "cpu", 30, "live"),
        Holding("c", "model", "cpu", 10, "idle"),
        Holding("session 1", "buffers", "cpu", 5, "live"),
        Holding("session 2", "buffers", "cpu", 6, "cut"),
    ]


@given(
    budget=st.integers(1, 200),
    sizes=st.lists(st.tuples(st.integers(0, 50), st.booleans(), st.booleans(), st.booleans()), max_size=6),
    held=st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=4),
    wanted=st.integers(1, 250),
    is_model=st.booleans(),
)
def test_who_leaves_makes_enough_room_and_nobody_leaves_for_nothing(
    budget: int,
    sizes: list[tuple[int, bool, bool, bool]],
    held: list[tuple[int, bool]],
    wanted: int,
    is_model: bool,
) -> None:
    here, there = Account("cpu", budget), []
    for at, (size, idle, kept, by_session) in enumerate(sizes):
        here = here.claim(str(at), Claim(size, 0))
        there.append(Holder(str(at), idle, float(at), kept, held=by_session))
    for at, (size, _) in enumerate(held):
        here = here.lend(f"session {at}", size)
    cut = [CutSession(f"session {at}", -at) for at, (_, is_cut) in enumerate(held) if is_cut]
    may_go = {one.name for one in there if not one.held and (is_model or (one.idle and not one.kept))}
    after = here
    for name in may_go:
        after = after.release(name)
    for one in cut:
        after = after.without_buffers(one.owner)
    try:
        plan = plan_room(here, Need("new", wanted, "model" if is_model else "buffers"), there, cut)
    except NoRoom:
        assert wanted > budget - after.used_bytes
        return
    assert set(plan.names) <= may_go and set(plan.sessions) <= {one.owner for one in cut}
    assert set(plan.busy) == {name for name in plan.names if not sizes[int(name)][1]}
    assert not plan.names or set(plan.sessions) == {one.owner for one in cut if here.buffers.get(one.owner)}
    before_the_last = here
    for owner in plan.sessions:
        before_the_last, here = here, here.without_buffers(owner)
    for name in plan.names:
        before_the_last, here = here, here.release(name)
    assert wanted <= budget - here.used_bytes
    if plan.names or plan.sessions:
        assert wanted > budget - before_the_last.used_bytes, "the last one had to go too"
