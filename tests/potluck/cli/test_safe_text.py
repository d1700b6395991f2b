from hypothesis import given
from hypothesis import strategies as st

from potluck.cli.safe_text import for_terminal, one_line


def test_escape_sequences_lose_their_power():
    assert for_terminal("\x1b[2Jgone\x07\x9b1m\x7f") == "�[2Jgone��1m�"


def test_text_stays_text():
    text = "Zażółć\tgęślą\njaźń 🥘 日本"
    assert for_terminal(text) == text
    assert for_terminal("a\r\nb") == "a\nb"


@given(st.text())
def test_nothing_that_could_steer_a_terminal_is_left(text):
    safe = for_terminal(text)
    assert not any((ord(char) < 32 and char not in "\t\n") or 127 <= ord(char) < 160 for char in safe)
    assert "\n" not in one_line(text)
