"""Characters come whole, stop strings are found wherever token borders fall."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_node.engine.text_stream import StopWatch, TokenText


def of_bytes(ids: Sequence[int]) -> str:
    """A byte-level vocabulary: one token a byte."""
    return bytes(ids).decode(errors="replace")


def of_words(ids: Sequence[int]) -> str:
    """Like SentencePiece: the space before the first word is dropped."""
    return " ".join(f"w{number}" for number in ids)


@given(st.text(min_size=1), st.binary(max_size=12))
def test_every_character_comes_once_and_whole(text: str, before: bytes) -> None:
    stream = TokenText(of_bytes, list(before.decode(errors="ignore").encode()))
    pieces = [stream.feed(byte) for byte in text.encode()]
    assert "".join(pieces) + stream.flush() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_broken_bytes_are_told_in_the_end() -> None:
    stream = TokenText(of_bytes)
    first = "😀".encode()[:3]
    assert [stream.feed(byte) for byte in first] == ["", "", ""]
    assert stream.flush() == "\ufffd"


def test_bytes_that_never_become_a_character_do_not_hold_the_rest_back() -> None:
    stream = TokenText(of_bytes)
    text = "".join(stream.feed(byte) for byte in b"\xff\xff\xff\xff\xff\xff" + b"abc")
    assert text.endswith("abc")


def test_a_character_after_bytes_that_are_none_is_not_lost() -> None:
    stream = TokenText(of_bytes)
    text = "".join(stream.feed(byte) for byte in b"\xff\xff" + "😀".encode()) + stream.flush()
    assert text == "\ufffd\ufffd😀"


def of_fallback(ids: Sequence[int]) -> str:
    """Like SentencePiece with byte tokens: a run of them that is no text becomes one replacement a byte."""
    text, run = "", b""
    for number in [*ids, -1]:
        if 0 <= number < 256:
            run += bytes([number])
            continue
        try:
            text += run.decode()
        except UnicodeDecodeError:
            text += "\ufffd" * len(run)
        text, run = text + (f"w{number}" if number >= 0 else ""), b""
    return text


@pytest.mark.parametrize("decode", [of_bytes, of_fallback])
@pytest.mark.parametrize("before", [1, 2, 3])
def test_a_character_that_the_prompt_left_open_is_the_answers(
    decode: Callable[[Sequence[int]], str], before: int
) -> None:
    smile, word = "😀".encode(), [ord("w")] if decode is of_bytes else [300]
    stream = TokenText(decode, [*word, *smile[:before]])
    text = "".join(stream.feed(number) for number in [*smile[before:], *word, *word, *word]) + stream.flush()
    assert text == "😀" + decode([*word, *word, *word])


@pytest.mark.parametrize("decode", [of_bytes, of_fallback])
def test_bytes_that_the_prompt_left_broken_are_not_told(decode: Callable[[Sequence[int]], str]) -> None:
    word = [ord("w")] if decode is of_bytes else [300]
    stream = TokenText(decode, [*word, *"😀".encode()[:2]])
    assert "".join(stream.feed(number) for number in [*word, *word]) + stream.flush() == decode([*word, *word])


@given(st.lists(st.one_of(st.integers(300, 310), st.sampled_from([*"é😀".encode()]))))
def test_byte_tokens_are_told_as_the_whole_would_be(ids: list[int]) -> None:
    stream = TokenText(of_fallback)
    told = "".join(stream.feed(number) for number in ids) + stream.flush()
    words = [character for character in told if character.isascii()]
    assert "".join(words) == "".join(f"w{number}" for number in ids if number >= 300)


def test_a_character_of_byte_tokens_comes_whole_in_the_middle_of_words() -> None:
    ids = [300, *"é".encode(), 301, *"😀".encode(), 302]
    stream = TokenText(of_fallback)
    assert "".join(stream.feed(number) for number in ids) == of_fallback(ids) == "w300éw301😀w302"


@pytest.mark.parametrize("ids", [list(b"word " * 200), [0xFF] * 1000, list("😀".encode() * 250)])
def test_a_token_costs_the_same_however_long_the_answer_is(ids: list[int]) -> None:
    decoded: list[int] = []

    def counting(window: Sequence[int]) -> str:
        decoded.append(len(window))
        return of_bytes(window)

    stream = TokenText(counting)
    text = "".join(map(stream.feed, ids)) + stream.flush()
    assert text == of_bytes(ids)
    assert max(decoded) <= 32
    assert len(decoded) <= 1.1 * len(ids)


def test_the_space_before_the_first_word_depends_on_what_stood_before() -> None:
    assert TokenText(of_words).feed(1) == "w1"
    assert TokenText(of_words, [7]).feed(1) == " w1"


def feed_all(watch: StopWatch, pieces: Sequence[str]) -> str:
    told = ""
    for piece in pieces:
        told += watch.feed(piece)
        if watch.hit:
            return told
    return told + watch.flush()


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_cut_the_same_wherever_the_borders_fall(text: str, stop: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[one:other] for one, other in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    told = feed_all(StopWatch(stop), pieces)
    # The reference: the first moment at which some prefix of the text holds a stop string.
    expected = text
    for end in range(len(text) + 1):
        found = [text[:end].find(word) for word in stop if word in text[:end]]
        if found:
            expected = text[: min(found)]
            break
    whole = [text[: text.find(word)] for word in stop if word in text]
    assert told == expected or told in whole
    assert not any(word in told for word in stop)


@pytest.mark.parametrize("pieces", [["ab</", "s>cd"], ["ab<", "/", "s", ">cd"], ["ab</s>cd"]])
def test_a_stop_string_over_a_border_never_shows_in_part(pieces: list[str]) -> None:
    watch = StopWatch(["</s>"])
    assert "".join(watch.feed(piece) for piece in pieces) == "ab"
    assert watch.hit


def test_what_only_began_like_a_stop_string_is_told_later() -> None:
    watch = StopWatch(["END"])
    assert [watch.feed(piece) for piece in ("say E", "N", "ough")] == ["say ", "", "ENough"]
    assert not watch.hit


def test_text_held_back_comes_out_at_the_end() -> None:
    watch = StopWatch(["END"])
    assert watch.feed("the E") == "the "
    assert watch.flush() == "E"
