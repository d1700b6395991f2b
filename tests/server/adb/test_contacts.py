"""Connections that break off again and again are waited for, and others are not."""

from __future__ import annotations

import pytest

from server.adb.contacts import BOUNCE_SECONDS, MOST_BREAKS, STEADY_SECONDS, WINDOW_SECONDS, Contacts


def broken(*moments: float, serial: str = "S1") -> Contacts:
    contacts = Contacts()
    for moment in moments:
        contacts.broke(serial, moment)
    return contacts


def test_a_connection_that_broke_off_often_is_loose_until_it_has_held() -> None:
    moments = [10.0 * number for number in range(MOST_BREAKS)]
    last = moments[-1]
    assert not broken(*moments[:-1]).is_loose("S1", last)
    contacts = broken(*moments)
    assert contacts.is_loose("S1", last) and contacts.is_loose("S1", last + STEADY_SECONDS - 0.1)
    assert not contacts.is_loose("S1", last + STEADY_SECONDS) and not contacts.is_loose("S2", last)


def test_it_stays_so_for_as_long_as_it_goes_on_breaking() -> None:
    contacts = Contacts()
    for number in range(100):
        contacts.broke("S1", 12.0 * number)
        assert contacts.is_loose("S1", 12.0 * number + 11.0) == (number >= MOST_BREAKS - 1)


@pytest.mark.parametrize("gap", [WINDOW_SECONDS / (MOST_BREAKS - 1), 100.0])
def test_breaks_now_and_then_are_nothing(gap: float) -> None:
    assert not broken(*(gap * number for number in range(50))).is_loose("S1", gap * 49)


def test_a_plug_that_bounces_has_broken_once() -> None:
    assert not broken(*(0.9 * BOUNCE_SECONDS * number / 50 for number in range(50))).is_loose("S1", 1.0)


def test_who_holds_is_forgotten() -> None:
    contacts = broken(*(2.0 * number for number in range(MOST_BREAKS)))
    contacts.broke("S2", 8.0 + WINDOW_SECONDS)
    assert list(contacts.breaks) == ["S2"]
