"""From messages to the engine's words and back; nothing is lost, whatever a frame can hold."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from gpu_node.engine import sequence as engine
from gpu_node.relay.translation import (
    CONTEXT_MOST,
    LOGPROBS_MOST,
    Asker,
    Numbering,
    bounds_of,
    context_of,
    generation_of,
    sampling_of,
    text_payloads,
)
from tests.fakes.scripted_runner import ByteVocabulary
from wire import messages_work as wire
from wire.frames import FrameType
from wire.limits import LARGEST_PAYLOAD
from wire.messages import decode_message

ASKED = wire.Generate("model", wire.TextPrompt("hi"))
ASKER = Asker("session 1", "ann")


def test_defaults_are_the_engines() -> None:
    request = generation_of(ASKED, ASKER, 100, 0.0)
    assert request.sampling == engine.SamplingOptions()
    assert request.bounds == engine.Bounds(100)
    assert (request.deadline, request.samples, request.given, request.stop) == (None, 1, (), ())


def test_every_option_of_the_engine_is_written_by_name() -> None:
    """A new option of the engine must not be forgotten here."""
    sampling = wire.Sampling(**{field.name: field.default for field in dataclasses.fields(wire.Sampling)})
    assert {field.name for field in dataclasses.fields(sampling_of(sampling))} == {
        field.name for field in dataclasses.fields(wire.Sampling)
    }


def test_shares_are_kept_within_their_bounds() -> None:
    told = sampling_of(wire.Sampling(top_p=1.5, min_p=-1.0, typical_p=0.0))
    assert (told.top_p, told.min_p, told.typical_p) == (1.0, 0.0, 1.0)


def test_the_context_is_the_models_unless_less_is_asked() -> None:
    assert [context_of(asked, 100) for asked in (0, 50, 1000, 1)] == [100, 50, 100, 4]
    assert bounds_of(wire.Bounds(max_tokens=-2), 100).may_shift is False


def test_a_deadline_counts_from_arrival() -> None:
    asked = dataclasses.replace(ASKED, deadline_ms=1500)
    assert generation_of(asked, ASKER, 100, 10.0).deadline == 11.5


def test_salts_and_callers_of_sessions_never_meet_by_accident() -> None:
    askers = [
        Asker("session 1"), Asker("session 2"), Asker("session 1", cache_salt="session 1"),
        Asker("session 1", cache_salt="session 2"), Asker("session 2", cache_salt="relay"),
    ]  # fmt: skip
    assert len({asker.salt for asker in askers}) == len(askers)
    assert Asker("session 1", cache_salt="team").salt == Asker("session 2", cache_salt="team").salt
    assert Asker("session 1", "2/x").turns != Asker("session 1/2", "x").turns


def read(payloads: list[bytes]) -> list[wire.Tokens]:
    found = [decode_message(FrameType.TOKENS, payload) for payload in payloads]
    assert all(len(payload) <= LARGEST_PAYLOAD for payload in payloads)
    return [one for one in found if isinstance(one, wire.Tokens)]


@given(
    st.lists(
        st.builds(
            engine.Token, st.text(max_size=40), st.integers(0, 2), st.lists(st.integers(0, 255), max_size=12).map(tuple)
        ),
        max_size=12,
    )
)
def test_what_the_engine_tells_arrives_as_it_was(events: list[engine.Token]) -> None:
    numbering = Numbering(dataclasses.replace(ASKED, samples=3), ByteVocabulary())
    told = [one for event in events for one in read(numbering.payloads(event))]
    assert [one.index for one in told] == list(range(len(events)))
    assert [(one.text, one.sample, one.ids) for one in told] == [(one.text, one.sample, one.ids) for one in events]
    for sample in range(3):
        at = 0
        for one in told:
            if one.sample == sample:
                assert one.position == at
                at += len(one.ids)


def test_numbers_go_on_behind_what_was_given() -> None:
    asked = dataclasses.replace(ASKED, given=(wire.Given((1, 2, 3), 3),), next_index=7)
    (told,) = read(Numbering(asked, ByteVocabulary()).payloads(engine.Token("a", 0, (97,))))
    assert (told.index, told.position) == (7, 3)


def test_what_no_frame_holds_comes_in_several() -> None:
    top = tuple(engine.Logprob(97, -float(number)) for number in range(300))
    likely = tuple(engine.TokenLogprob(engine.Logprob(97, -0.5), top) for _ in range(9))
    numbering = Numbering(ASKED, ByteVocabulary())
    told = read(numbering.payloads(engine.Token("a" * 9, 0, (97,) * 9, likely)))
    assert len(told) > 1 and sum(len(one.ids) for one in told) == 9
    assert "".join(one.text for one in told) == "a" * 9 and told[-1].text
    assert all(len(one.logprobs) == len(one.ids) <= LOGPROBS_MOST for one in told)
    text = "é😀" * 400_000
    told = read(numbering.payloads(engine.Token(text, 0, ())))
    assert "".join(one.text for one in told) == text
    assert [one.index for one in read(text_payloads(text))] == list(range(len(text_payloads(text))))


def test_done_says_how_it_went() -> None:
    numbering = Numbering(ASKED, ByteVocabulary())
    done = engine.Done("length", 3, 4, 5, 6, (1, 2), 7, ("length",))
    told = decode_message(FrameType.DONE, numbering.done(done, 8))
    assert told == wire.Done(0, wire.FinishReason.LENGTH, 3, 4, 5, 6, 7, (), (1, 2), 8)
    long = dataclasses.replace(done, context=(1,) * (CONTEXT_MOST + 1))
    assert decode_message(FrameType.DONE, numbering.done(long, 0)).context == ()  # type: ignore[union-attr]
