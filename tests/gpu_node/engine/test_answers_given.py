"""An answer that was begun elsewhere goes on as the uninterrupted one would have: text, tokens, draws, end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.engine.answer import Answer
from gpu_node.engine.generation import Generation
from gpu_node.engine.preparation import Bound, prepare_generation
from gpu_node.engine.sequence import Bounds, GenerationRequest, Given, SamplingOptions, TokenPrompt
from gpu_node.errors import GenerationFailed, RequestError
from tests.fakes.scripted_runner import END, ByteVocabulary, ScriptedRunner, mixed, written_out
from tests.gpu_node.engine.desk import GREEDY, Client, Desk

VOCABULARY = ByteVocabulary()
PROMPT = (1, 2, 3)
RANDOM = SamplingOptions(temperature=1.0, seed=7, repeat_penalty=1.3)


class Spelling:
    """A guide that allows one text."""

    def __init__(self, text: bytes) -> None:
        self.left = list(text)

    @property
    def finished(self) -> bool:
        return not self.left

    def mask(self) -> bytes:
        allowed = self.left[0]
        return bytes(1 << (allowed % 8) if place == allowed // 8 else 0 for place in range(33))

    def accept(self, token_id: int) -> None:
        if token_id != self.left.pop(0):
            raise GenerationFailed("another letter")


def answer_of(bounds: Bounds, stop: Sequence[str] = (), guide: Spelling | None = None) -> Answer:
    return Answer(VOCABULARY, PROMPT, bounds, stop, guide)


def go_on(answer: Answer, tokens: Sequence[int]) -> str:
    text = answer.unsaid
    for token in tokens:
        if answer.reason is not None:
            break
        event = answer.take([token])
        text += event.text if event is not None else ""
        if answer.must_shift:
            answer.shift()
    return text


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([*"aé€x".encode(), 0xF0, 0x9F, END]), min_size=1, max_size=24),
    st.data(),
    st.lists(st.sampled_from(["xa", "aé", "€x€"]), max_size=2),
    st.integers(0, 6),
    st.integers(4, 12),
)
def test_wherever_it_is_cut_what_follows_is_the_same(
    tokens: list[int], data: st.DataObject, stop: list[str], min_tokens: int, context: int
) -> None:
    bounds = Bounds(context, max_tokens=20, min_tokens=min_tokens)
    whole = answer_of(bounds, stop)
    texts, written = [""], [0]  # after each token
    for token in tokens:
        if whole.reason is not None:
            break
        event = whole.take([token])
        texts.append(texts[-1] + (event.text if event is not None else ""))
        written.append(len(whole.written))
        if whole.must_shift:
            whole.shift()
    at = data.draw(st.integers(0, len(texts) - 1))
    said = data.draw(st.integers(0, len(texts[at])))  # the text may have been handed on later than the ids
    part = answer_of(bounds, stop)
    part.resume(Given(tuple(whole.written[: written[at]]), len(texts[at][:said].encode())))
    rest = go_on(part, tokens[written[at] :])
    assert texts[at][:said] + rest == texts[-1]
    assert (part.reason, part.written, part.tokens) == (whole.reason, whole.written, whole.tokens)


def test_what_was_flushed_at_an_end_elsewhere_is_not_told_twice() -> None:
    whole = answer_of(Bounds(100), ["xyz"])
    assert go_on(whole, [*b"abxy", END]) == "abxy"
    again = answer_of(Bounds(100), ["xyz"])
    again.resume(Given(tuple(b"abxy"), 4))
    assert (again.unsaid, go_on(again, [END]), again.reason) == ("", "", "stop")


def test_a_given_end_is_an_end() -> None:
    ended = answer_of(Bounds(100))
    ended.resume(Given((*b"hi", END), 0))
    assert (ended.reason, ended.unsaid, ended.written) == ("stop", "hi", [*b"hi"])


def test_a_guide_goes_on_behind_the_seam() -> None:
    answer = answer_of(Bounds(100), guide=Spelling(b"yes"))
    answer.resume(Given(tuple(b"ye"), 2))
    assert answer.guide is not None and answer.guide.mask()[ord("s") // 8] == 1 << ord("s") % 8
    assert (go_on(answer, b"s"), answer.reason) == ("s", "stop")


@pytest.mark.parametrize(
    ("ids", "said", "told"),
    [
        (b"abcde", 0, "behind its end"),
        (b"ab", 3, "more text"),
        ("aé".encode(), 2, "within a character"),
        ((97, END, 98), 0, "behind its end"),
    ],
)
def test_what_no_answer_can_be_is_refused(ids: Sequence[int], said: int, told: str) -> None:
    with pytest.raises(RequestError, match=told) as caught:
        answer_of(Bounds(100, max_tokens=4)).resume(Given(tuple(ids), said))
    assert caught.value.field == "given"


def test_a_given_answer_that_its_guide_forbids_is_the_clients_mistake() -> None:
    with pytest.raises(RequestError, match="guide"):
        answer_of(Bounds(100), guide=Spelling(b"yes")).resume(Given(tuple(b"no")))


# In the core


def ask(desk: Desk, request: GenerationRequest) -> Client:
    cache = desk.runner.cache
    bound = Bound(cache.block_count * cache.block_tokens, 8, 1000, 1000)
    prepared = prepare_generation(request, desk.runner, bound, lambda guide: Spelling(b"yes"), desk.now)
    client = Client(desk.outlet)
    return desk.hand_in(client, Generation(prepared, client, desk.runner.vocabulary))


def answered(runner: ScriptedRunner, request: GenerationRequest) -> Client:
    desk = Desk(runner)
    client = ask(desk, request)
    desk.run()
    desk.assert_empty()
    return client


def cut(client: Client, sample: int, tokens: int) -> Given:
    """What somebody had heard of a sample when so many of its events had come."""
    events = [token for token in client.tokens if token.sample == sample][:tokens]
    ids = tuple(number for event in events for number in event.ids)
    return Given(ids, len("".join(event.text for event in events).encode()))


@pytest.mark.parametrize("sampling", [GREEDY, RANDOM])
@pytest.mark.parametrize("at", [0, 1, 7, 30, 59, 60])
def test_the_core_goes_on_exactly_also_over_shifts_of_the_context(sampling: SamplingOptions, at: int) -> None:
    request = GenerationRequest(TokenPrompt(tuple(b"prompt")), sampling, Bounds(24, max_tokens=60))
    whole = answered(ScriptedRunner(mixed), request)
    given_part = cut(whole, 0, at)
    rest = answered(ScriptedRunner(mixed), replace(request, given=(given_part,)))
    assert given_part.ids + tuple(rest.ids_of(0)) == tuple(whole.ids_of(0))
    assert whole.text[: len(whole.text) - len(rest.text)] + rest.text == whole.text
    assert len(rest.text) == len(whole.text) - given_part.text_bytes
    assert (rest.done.reason, rest.done.context) == (whole.done.reason, whole.done.context)
    assert rest.done.output_tokens == whole.done.output_tokens - len(given_part.ids)
    assert rest.done.prompt_tokens == 6


def test_each_sample_goes_on_from_its_own_place() -> None:
    request = GenerationRequest(TokenPrompt(tuple(b"ask")), RANDOM, Bounds(200, max_tokens=12), samples=3)
    whole = answered(ScriptedRunner(mixed), request)
    parts = tuple(cut(whole, sample, tokens) for sample, tokens in enumerate((12, 0, 5)))
    rest = answered(ScriptedRunner(mixed), replace(request, given=parts))
    for sample, part in enumerate(parts):
        assert [*part.ids, *rest.ids_of(sample)] == whole.ids_of(sample)
    assert rest.done.reasons == whole.done.reasons


def test_an_answer_that_had_ended_is_done_at_once_and_computes_nothing() -> None:
    runner = ScriptedRunner(written_out("two words"))
    request = GenerationRequest(TokenPrompt(tuple(b"say")), GREEDY, Bounds(200, max_tokens=4))
    rest = answered(runner, replace(request, given=(Given(tuple(b"two "), 3),)))
    assert (rest.text, rest.ids_of(0), rest.done.reason, rest.done.output_tokens) == (" ", [], "length", 0)
    assert not runner.steps


def test_what_is_given_must_fit_the_request() -> None:
    request = GenerationRequest(TokenPrompt(tuple(b"say")), GREEDY, Bounds(200), samples=2)
    with pytest.raises(RequestError, match="1 given answers for 2"):
        answered(ScriptedRunner(mixed), replace(request, given=(Given(),)))
    with pytest.raises(RequestError, match="no token"):
        answered(ScriptedRunner(mixed), replace(request, given=(Given(), Given((10**6,)))))


def test_a_full_line_refuses_all_samples_together() -> None:
    desk = Desk(ScriptedRunner(mixed), max_running=1, max_waiting=1)
    request = GenerationRequest(TokenPrompt(tuple(b"say")), GREEDY, Bounds(200, max_tokens=3), samples=3)
    client = ask(desk, replace(request, given=(Given(), Given(), Given())))
    desk.run()
    assert "busy" in str(client.end)
    desk.assert_empty()
