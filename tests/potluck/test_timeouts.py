import pytest

from potluck import Misuse, Timeouts


def test_defaults_wait_longest_for_what_takes_longest():
    timeouts = Timeouts()
    assert timeouts.connect_seconds < timeouts.lookup_seconds < timeouts.silence_seconds < timeouts.answer_seconds


@pytest.mark.parametrize("name", ["connect_seconds", "answer_seconds", "silence_seconds", "lookup_seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_timeout_that_cannot_be_kept_is_refused_by_name(name, value):
    with pytest.raises(Misuse, match=name):
        Timeouts(**{name: value})


def test_none_waits_without_end():
    assert Timeouts(answer_seconds=None).answer_seconds is None
