"""The framing of streams: right at every cut, honest about every end."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck import (
    AnswerCutShort,
    AnswerTimeout,
    GatewayUnreachable,
    ModelUnknown,
    PotluckError,
    Queued,
    QueueFull,
    Thinking,
    Token,
    UnexpectedAnswer,
)
from potluck.records import AnswerReading, BatchReading, LineDecoder
from tests.potluck.loopback import ANSWER, DONE


def lines(*records):
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


STREAM = lines({"queued": 2}, {"token": "Za"}, {"token": "żółć 🥘"}, {"token": "\n\n"}, {"token": " end"}, DONE)
RESET = GatewayUnreachable("the connection broke", "http://x")
TOLD = "Zażółć 🥘\n\n end"


def read_in_pieces(reading, data, cuts):
    events, start = [], 0
    for cut in [*sorted(cuts), len(data)]:
        events += reading.receive_data(data[start:cut])
        start = cut
    return events


@given(st.sets(st.integers(0, len(STREAM)), max_size=40))
def test_the_same_events_at_every_cut(cuts):
    reading = AnswerReading()
    events = read_in_pieces(reading, STREAM, cuts)
    reading.end()
    assert events == [Queued(2), Token("Za"), Token("żółć 🥘"), Token("\n\n"), Token(" end")]
    assert reading.answer.text == TOLD


def test_the_same_events_one_byte_at_a_time():
    reading = AnswerReading()
    events = read_in_pieces(reading, STREAM, range(len(STREAM)))
    reading.end()
    assert "".join(event for event in events if isinstance(event, Token)) == TOLD


@given(st.integers(0, len(STREAM.rstrip()) - 1))
def test_a_stream_cut_anywhere_is_never_taken_for_a_whole_one(cut):
    reading = AnswerReading()
    told = "".join(event for event in reading.receive_data(STREAM[:cut]) if isinstance(event, Token))
    with pytest.raises(AnswerCutShort) as caught:
        reading.end()
    assert TOLD.startswith(caught.value.text)
    assert caught.value.text.startswith(told)
    assert not reading.answer


def test_the_last_newline_may_be_missing():
    reading = AnswerReading()
    reading.receive_data(STREAM.rstrip())
    reading.end()
    assert reading.answer.text == TOLD


def test_empty_lines_and_carriage_returns_do_not_matter():
    reading = AnswerReading()
    reading.receive_data(b"\r\n\n" + STREAM.replace(b"\n", b"\r\n\r\n"))
    reading.end()
    assert reading.answer.text == TOLD


def test_thoughts_are_no_part_of_the_text():
    reading = AnswerReading()
    assert reading.receive_data(lines({"thinking": "hm"}, {"thinking": "m"}, {"token": "a"}, DONE)) == [
        Thinking("hm"),
        Thinking("m"),
        Token("a"),
    ]
    reading.end()
    assert (reading.answer.text, reading.answer.thinking) == ("a", "hmm")


def test_records_of_a_newer_gateway_are_passed_over():
    reading = AnswerReading()
    assert reading.receive_data(lines({"note": 1}, {"token": "a", "more": 2}, {"token": 5})) == ["a"]


def test_an_error_before_the_first_token_is_a_refusal():
    reading = AnswerReading()
    reading.receive_data(lines({"queued": 1}, {"error": {"code": "queue_full", "message": "full"}}))
    assert reading.failed
    with pytest.raises(QueueFull, match="full"):
        reading.end()


def test_an_error_after_it_keeps_what_was_told():
    reading = AnswerReading()
    error = {"code": "nodes_failed", "message": "pixel-3 broke", "node": "pixel-3", "hint": "Ask again."}
    assert reading.receive_data(lines({"token": "Par"}, {"error": error})) == ["Par"]
    with pytest.raises(AnswerCutShort, match="pixel-3 broke") as caught:
        reading.end()
    assert (caught.value.text, caught.value.nodes, caught.value.code) == ("Par", ("pixel-3",), "nodes_failed")
    assert caught.value.hint == "Ask again."


@pytest.mark.parametrize("junk", [b"nonsense\n", b"[1]\n", b"\xff\xfe\n", b"null\n", b"[" * 100_000 + b"\n"])
def test_junk_after_tokens_ends_the_answer_and_keeps_them(junk):
    reading = AnswerReading()
    assert reading.receive_data(lines({"token": "Par"}) + junk + lines(DONE)) == ["Par"]
    with pytest.raises(AnswerCutShort) as caught:
        reading.end()
    assert caught.value.text == "Par"


def test_junk_alone_is_no_gateway():
    reading = AnswerReading()
    assert reading.receive_data(b"<html>\n") == []
    with pytest.raises(UnexpectedAnswer):
        reading.end()


def test_nothing_may_follow_the_last_record():
    reading = AnswerReading()
    reading.receive_data(STREAM + lines({"token": "more"}))
    with pytest.raises(UnexpectedAnswer, match="after its last record"):
        reading.end()


def test_a_connection_that_breaks_after_the_end_does_no_harm():
    reading = AnswerReading()
    reading.receive_data(STREAM)
    assert reading.broken(RESET) is None
    assert isinstance(AnswerReading().broken(RESET), AnswerCutShort)


def test_silence_is_told_apart_from_a_cut():
    silence = AnswerTimeout("silent")
    for reading in (AnswerReading(), BatchReading(1)):
        assert reading.broken(silence) is silence


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_random_bytes_give_only_our_own_errors(pieces):
    for reading in (AnswerReading(), BatchReading(3)):
        for piece in pieces:
            reading.receive_data(piece)
        with pytest.raises(PotluckError):
            reading.end()


def test_a_line_without_end_is_refused_before_it_is_kept():
    decoder = LineDecoder(longest_line_bytes=10)
    assert decoder.receive_data(b"0123456789\n0123456789") == [b"0123456789"]
    with pytest.raises(UnexpectedAnswer, match="longer than 10 bytes"):
        decoder.receive_data(b"0")


def item(index):
    return {"index": index, **ANSWER}


def test_a_batch_tells_results_as_they_finish():
    reading = BatchReading(3)
    failed = {"index": 0, "error": {"code": "model_not_found", "message": "no such model"}}
    items = reading.receive_data(lines(item(2), failed, item(1), {"done": True}))
    reading.end()
    assert [entry.index for entry in items] == [2, 0, 1]
    assert isinstance(items[1].error, ModelUnknown)
    assert items[2].text == "Paris is nice"


@pytest.mark.parametrize(
    "records",
    [
        [item(0)],
        [item(0), item(1)],
        [item(0), {"done": True}],
        [{"done": True}],
        [item(0), item(0), {"done": True}],
        [item(0), item(2), {"done": True}],
        [item(0), {"error": {"code": "draining", "message": "stopping"}}],
        [item(0), item(1), {"done": True}, item(1)],
    ],
)
def test_a_batch_that_is_not_whole_raises(records):
    reading = BatchReading(2)
    reading.receive_data(lines(*records))
    with pytest.raises(PotluckError):
        reading.end()


def test_a_batch_cut_in_a_record_names_what_is_missing():
    reading = BatchReading(3)
    reading.receive_data(lines(item(1)) + lines(item(0))[:40])
    with pytest.raises(AnswerCutShort, match="0, 2"):
        reading.end()
    failure = reading.broken(RESET)
    assert isinstance(failure, AnswerCutShort)
    assert failure is reading.broken(RESET)
