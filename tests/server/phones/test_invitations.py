"""Invitations: each good for one phone and for a while, known by their hash only."""

from __future__ import annotations

import pytest

from server.errors import CallerRefused, InvitationUnknown, TooManyTries
from server.phones.invitations import CLOCK_BACK_SECONDS, MOST_OPEN, SETUP_SECONDS, Invitations


def test_an_invitation_is_good_once() -> None:
    invitations = Invitations()
    invitations.invite("secret", 15, "smollm2:135m", 0.0)
    assert invitations.begin("secret", 1.0).model == "smollm2:135m"
    claimed = invitations.claim("secret", 2.0)
    with pytest.raises(CallerRefused, match="another phone is joining"):
        invitations.claim("secret", 2.0)
    invitations.use(claimed)
    for way in (invitations.claim, invitations.begin):
        with pytest.raises(CallerRefused, match="has been used"):
            way("secret", 3.0)


def test_a_phone_that_was_not_let_in_may_try_again() -> None:
    invitations = Invitations()
    invitations.invite("secret", 15, None, 0.0)
    invitations.release(invitations.claim("secret", 1.0))
    invitations.use(invitations.claim("secret", 2.0))


def test_a_script_that_is_fetched_while_a_phone_is_looked_at_counts() -> None:
    invitations = Invitations()
    invitations.invite("secret", 15, None, 0.0)
    claimed = invitations.claim("secret", 1.0)
    invitations.begin("secret", 2.0)
    invitations.release(claimed)
    invitations.claim("secret", SETUP_SECONDS)


@pytest.mark.parametrize("token", ["", "Secret", "secret ", "secre", "\udcff"])
def test_others_are_not_known(token: str) -> None:
    invitations = Invitations()
    invitations.invite("secret", 15, None, 0.0)
    for way in (invitations.claim, invitations.begin):
        with pytest.raises(CallerRefused, match="not known"):
            way(token, 1.0)


def test_it_expires() -> None:
    invitations = Invitations()
    invitations.invite("secret", 15, None, 0.0)
    invitations.release(invitations.claim("secret", 899.0))
    for way in (invitations.claim, invitations.begin):
        with pytest.raises(CallerRefused, match="expired"):
            way("secret", 900.0)


def test_a_phone_that_began_in_time_may_finish_a_long_download() -> None:
    invitations = Invitations()
    invitations.invite("secret", 15, None, 0.0)
    invitations.begin("secret", 800.0)
    invitations.begin("secret", 890.0)  # again: no more time than the first one gave
    with pytest.raises(CallerRefused, match="expired"):
        invitations.begin("secret", 900.0)
    invitations.release(invitations.claim("secret", 800.0 + SETUP_SECONDS - 1))
    with pytest.raises(CallerRefused, match="expired"):
        invitations.claim("secret", 800.0 + SETUP_SECONDS)


def test_who_only_looks_begins_nothing() -> None:
    invitations = Invitations()
    made = invitations.invite("secret", 15, None, 0.0)
    assert invitations.see("secret", 800.0) == made
    with pytest.raises(CallerRefused, match="expired"):
        invitations.claim("secret", 900.0)
    with pytest.raises(CallerRefused, match="expired"):
        invitations.see("secret", 900.0)


def test_its_owner_may_withdraw_it() -> None:
    invitations = Invitations()
    made = invitations.invite("secret", 15, None, 0.0)
    other = invitations.invite("other", 15, None, 1.0)
    assert invitations.waiting(2.0) == [made, other]
    invitations.withdraw(made.id, 2.0)
    assert invitations.waiting(2.0) == [other]
    for way in (invitations.see, invitations.begin, invitations.claim):
        with pytest.raises(CallerRefused, match="was withdrawn"):
            way("secret", 3.0)
    with pytest.raises(InvitationUnknown):
        invitations.withdraw(made.id, 3.0)
    with pytest.raises(InvitationUnknown):
        invitations.withdraw(other.id, 901.0)


def test_one_that_is_withdrawn_while_a_phone_is_looked_at_stays_so() -> None:
    invitations = Invitations()
    made = invitations.invite("secret", 15, None, 0.0)
    claimed = invitations.claim("secret", 1.0)
    invitations.withdraw(made.id, 2.0)
    with pytest.raises(CallerRefused, match="was withdrawn"):
        invitations.known(claimed).refuse_withdrawn()
    invitations.release(claimed)
    with pytest.raises(CallerRefused, match="was withdrawn"):
        invitations.claim("secret", 3.0)


def test_a_name_is_known_by_its_token() -> None:
    invitations = Invitations()
    invitations.invite("secret", 15, None, 0.0)
    assert invitations.names("secret") and not invitations.names("other")


def test_a_clock_that_is_set_back_makes_no_invitation_good_for_years() -> None:
    invitations, made_at = Invitations(), 1e9
    invitations.invite("secret", 15, None, made_at)
    invitations.see("secret", made_at - CLOCK_BACK_SECONDS)  # a board that starts with an older time
    for way in (invitations.see, invitations.claim):
        with pytest.raises(CallerRefused, match="expired"):
            way("secret", 0.0)
    assert invitations.waiting(0.0) == []


def test_no_token_is_kept() -> None:
    invitations = Invitations()
    made = invitations.invite("secret-token", 15, None, 0.0)
    assert "secret-token" not in repr(made) + repr(vars(invitations))


def test_there_are_only_so_many_open_ones() -> None:
    invitations = Invitations()
    for number in range(MOST_OPEN):
        invitations.invite(f"token-{number}", 1, None, 0.0)
    with pytest.raises(TooManyTries) as refused:
        invitations.invite("one-more", 1, None, 10.0)
    assert refused.value.retry_after == 50.0
    invitations.invite("one-more", 1, None, 60.0)


def test_what_ended_is_forgotten_in_the_end() -> None:
    invitations = Invitations()
    for round_ in range(20):
        for number in range(MOST_OPEN):
            invitations.invite(f"{round_}-{number}", 1, None, 61.0 * round_)
    assert len(vars(invitations)["_all"]) <= 1024
    invitations.invite("late", 1, None, 10 * 86_400.0)
    assert len(vars(invitations)["_all"]) == 1
    invitations.invite("early", 1, None, 0.0)
    assert len(vars(invitations)["_all"]) == 1


def test_those_that_are_open_are_remembered_longest() -> None:
    invitations = Invitations()
    invitations.invite("open", 15, None, 0.0)
    for number in range(2000):
        made = invitations.invite(f"token-{number}", 1000, None, 1.0)
        invitations.withdraw(made.id, 1.0)
    invitations.claim("open", 2.0)
