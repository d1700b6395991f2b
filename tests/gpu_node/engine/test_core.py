"""Every request gets its own answer, whatever else is in the batch, joins, leaves or is asked for again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.engine.sequence import Bounds, Embeddings, Inference, SamplingOptions
from gpu_node.errors import DeadlineExceeded, GenerationFailed, NodeBusy, NodeStopping
from tests.fakes.scripted_runner import END, ScriptedRunner, mixed, written_out
from tests.gpu_node.engine.desk import ASK, GREEDY, Client, Desk, greedy

RANDOM = SamplingOptions(temperature=1.0)


def bounded(tokens: int, **changes: object):
    return replace(ASK, bounds=Bounds(context_tokens=1000, max_tokens=tokens, **changes))


def assert_right(client: Client, prompt: str, tokens: int) -> None:
    assert client.ids_of(0) == greedy(mixed, prompt.encode(), tokens)
    assert client.done.output_tokens == tokens


def test_an_answer_and_what_is_said_of_it() -> None:
    desk = Desk(ScriptedRunner(written_out("two words")), seconds_a_step=0.5)
    client = desk.ask("say")
    assert desk.turn() == 0.0
    desk.run()
    done = client.done
    assert client.text == "two words"
    assert (done.reason, done.reasons, done.prompt_tokens, done.output_tokens) == ("stop", ("stop",), 3, 10)
    assert done.context == tuple(b"saytwo words")
    assert done.output_ns == 9 * 500_000_000
    desk.assert_empty()


def test_requests_of_all_lengths_run_together_and_join_at_any_step() -> None:
    desk = Desk()
    asked = []
    for number in range(12):
        prompt, tokens = "x" * (number * 7 % 40 + 1) + str(number), number % 5 * 6 + 1
        asked.append((desk.ask(prompt, bounded(tokens)), prompt, tokens))
        desk.turn()
        desk.turn()
    assert any(len(step.rows) > 4 for step in desk.runner.steps)
    desk.run()
    for client, prompt, tokens in asked:
        assert_right(client, prompt, tokens)
    desk.assert_empty()


def test_who_finishes_leaves_at_once_and_makes_room_for_who_waits() -> None:
    desk = Desk(max_running=2)
    clients = [desk.ask(f"q{number}", bounded(number + 1)) for number in range(4)]
    desk.turn()
    assert (desk.stats.running, desk.stats.waiting) == (1, 2)
    desk.run()
    assert [client.done.output_tokens for client in clients] == [1, 2, 3, 4]
    assert desk.stats.steps <= 7


def test_who_is_cancelled_leaves_at_once_whenever_that_is() -> None:
    for turns in range(8):
        desk = Desk(ScriptedRunner(blocks=8), max_running=2)
        gone = desk.ask("some longer prompt", bounded(10))
        stays = desk.ask("other", bounded(10))
        for _ in range(turns):
            desk.turn()
        heard = len(gone.heard)
        desk.core.cancel(gone.job)
        desk.core.cancel(gone.job)
        desk.run()
        assert len(gone.heard) == heard and not gone.ends
        assert_right(stays, "other", 10)
        assert desk.stats.cancelled == 1
        desk.assert_empty()


def test_under_pressure_answers_are_computed_again_and_nothing_is_told_twice() -> None:
    desk = Desk(ScriptedRunner(blocks=12))
    clients = [(desk.ask(f"prompt {number}", bounded(30)), f"prompt {number}") for number in range(5)]
    desk.run()
    assert desk.stats.preemptions > 0
    for client, prompt in clients:
        assert_right(client, prompt, 30)
    desk.assert_empty()


def test_a_prompt_that_was_read_before_is_not_read_again() -> None:
    desk = Desk()
    first = desk.ask("a long shared beginning, then this", bounded(4))
    desk.run()
    second = desk.ask("a long shared beginning, then that", bounded(4))
    other = desk.ask("a long shared beginning, then that", replace(bounded(4), cache_salt="mine"))
    desk.run()
    assert (first.done.reused_tokens, second.done.reused_tokens, other.done.reused_tokens) == (0, 32, 0)
    assert desk.stats.cached_prompt_tokens == 32 and desk.stats.prompt_tokens == 34 * 3
    assert_right(second, "a long shared beginning, then that", 4)


def test_samples_share_the_prompt_and_are_reproducible_by_seed_whatever_the_batch() -> None:
    request = replace(bounded(12), samples=3, sampling=replace(RANDOM, seed=7))
    alone = Desk()
    first = alone.ask("the question", request)
    alone.run()
    crowded = Desk(ScriptedRunner(blocks=20), max_running=4)
    others = [crowded.ask(f"noise {number}", bounded(20)) for number in range(4)]
    crowded.turn()
    second = crowded.ask("the question", request)
    crowded.run()
    for sample in range(3):
        assert first.ids_of(sample) == second.ids_of(sample) and len(first.ids_of(sample)) == 12
    assert len({tuple(first.ids_of(sample)) for sample in range(3)}) == 3
    assert (first.done.output_tokens, first.done.reasons) == (36, ("length",) * 3)
    assert first.done.context == (*b"the question", *first.ids_of(0))
    single = Desk().ask("the question", replace(request, samples=1))
    assert all(other.done for other in others)
    assert single.heard == []
    crowded.assert_empty()


def test_the_first_sample_does_not_depend_on_how_many_there_are_and_no_seed_means_chance() -> None:
    texts = []
    for samples, seed in ((1, 7), (2, 7), (1, None), (1, None)):
        desk = Desk()
        client = desk.ask("q", replace(bounded(12), samples=samples, sampling=replace(RANDOM, seed=seed)))
        desk.run()
        texts.append(client.text)
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_samples_that_end_at_different_times_make_one_done() -> None:
    def ends_by_chance(history: list[int], draw: int) -> int:
        return END if draw % 20 == 0 else 97 + draw % 26

    desk = Desk(ScriptedRunner(ends_by_chance))
    client = desk.ask("q", replace(bounded(8), samples=6, sampling=replace(RANDOM, seed=3)))
    desk.run()
    done = client.done
    assert set(done.reasons) == {"stop", "length"} and done.reason == done.reasons[0]
    ended = sum(reason == "stop" for reason in done.reasons)
    assert done.output_tokens == sum(len(client.ids_of(sample)) for sample in range(6)) + ended
    desk.assert_empty()


def test_samples_that_end_with_their_first_token_leave_nothing_behind() -> None:
    desk = Desk()
    client = desk.ask("q", replace(bounded(1), samples=4))
    desk.run()
    assert client.done.reasons == ("length",) * 4
    desk.assert_empty()


def test_a_full_context_shifts_as_ollama_does() -> None:
    request = replace(ASK, bounds=Bounds(context_tokens=16, max_tokens=60, keep_tokens=3))
    desk = Desk()
    client, beside = desk.ask("abcdefgh", request), desk.ask("beside", bounded(40))
    desk.run()
    tokens, written = list(b"abcdefgh"), []
    while len(written) < 60:
        if len(tokens) > 16:
            filled = tokens[:-1]
            dropped = (len(filled) - 3) // 2
            tokens = filled[:3] + filled[3 + dropped :] + tokens[-1:]
        written.append(mixed(tokens))
        tokens.append(written[-1])
    assert client.ids_of(0) == written
    assert client.done.context == (*b"abcdefgh", *written)
    assert_right(beside, "beside", 40)


def test_without_shifting_a_full_context_ends_the_answer() -> None:
    desk = Desk()
    client = desk.ask("abcdefgh", replace(ASK, bounds=Bounds(context_tokens=16, max_tokens=60, shift=False)))
    desk.run()
    assert (client.done.reason, client.done.output_tokens) == ("length", 9)


def test_drafts_change_no_answer() -> None:
    def circling(history: list[int], draw: int) -> int:
        return b"abcabdabcabe"[len(history) % 12]

    heard = []
    for drafts in (0, 8):
        desk = Desk(ScriptedRunner(circling), max_drafts=drafts, mixed_step_tokens=64, seconds_a_step=0.01)
        clients = [desk.ask("q" * (number + 1), bounded(120, min_tokens=5)) for number in range(3)]
        clients.append(desk.ask("s", replace(bounded(120), stop=("eabcabdabc",), samples=2)))
        clients.append(desk.ask("c", replace(ASK, bounds=Bounds(context_tokens=20, max_tokens=90))))
        desk.run()
        heard.append([(client.text_of(0), client.text_of(1), client.done.reasons) for client in clients])
        accepted = desk.stats.accepted_drafts
    assert heard[0] == heard[1]
    assert accepted > 0


def test_a_deadline_ends_waiting_and_running_requests_with_their_own_error() -> None:
    desk = Desk(max_running=1, seconds_a_step=1.0)
    running = desk.ask("a", replace(bounded(50), deadline=110.0))
    waiting = desk.ask("b", replace(bounded(50), deadline=105.0))
    free = desk.ask("c", bounded(5))
    desk.run()
    assert isinstance(running.end, DeadlineExceeded) and isinstance(waiting.end, DeadlineExceeded)
    assert 5 < len(running.tokens) < 12 and not waiting.tokens
    assert_right(free, "c", 5)
    late = desk.ask("d", replace(bounded(5), deadline=desk.now))
    desk.run()
    assert isinstance(late.end, DeadlineExceeded)


def test_who_finds_the_line_full_is_told_so() -> None:
    desk = Desk(max_running=1, max_waiting=2)
    clients = [desk.ask(f"q{number}", bounded(2)) for number in range(6)]
    desk.run()
    refused = [client for client in clients if client.ends and isinstance(client.end, NodeBusy)]
    assert len(refused) >= 3 and all(client.done for client in clients if client not in refused)
    assert desk.stats.failed == len(refused)
    desk.assert_empty()


def test_logprobs_min_tokens_and_ignored_ends_reach_the_runner() -> None:
    desk = Desk(ScriptedRunner(written_out("abc")))
    client = desk.ask("q", replace(ASK, sampling=replace(GREEDY, logprobs=2)))
    desk.run()
    assert [[logprob.chosen.id for logprob in token.logprobs] for token in client.tokens] == [[97], [98], [99]]
    assert all(len(token.logprobs[0].top) == 2 for token in client.tokens)

    def at_once(history: list[int], draw: int) -> int:
        return END

    desk = Desk(ScriptedRunner(at_once))
    longer, ignoring = desk.ask("q", bounded(9, min_tokens=3)), desk.ask("q", bounded(4, ignore_end=True))
    desk.run()
    assert (longer.done.output_tokens, longer.done.reason, len(longer.ids_of(0))) == (4, "stop", 3)
    assert (ignoring.ids_of(0), ignoring.done.reason) == ([END] * 4, "length")


class Only:
    """A guide: these bytes in order."""

    def __init__(self, ids: bytes) -> None:
        self.left = list(ids)

    @property
    def finished(self) -> bool:
        return not self.left

    def mask(self) -> bytes:
        if self.left[0] == ord("!"):
            raise ValueError("the guide breaks")
        return (1 << self.left[0]).to_bytes(33, "little")

    def accept(self, token_id: int) -> None:
        assert token_id == self.left.pop(0)


def test_guided_samples_go_where_their_guide_leads_and_a_broken_guide_harms_nobody_else() -> None:
    desk = Desk(max_drafts=8, mixed_step_tokens=64)
    guided = desk.ask("q", replace(bounded(30), samples=2), guides=[Only(b"hello"), Only(b"me too")])
    broken = desk.ask("q", bounded(30), guides=[Only(b"yes!")])
    free = desk.ask("free", bounded(20))
    desk.run()
    assert [guided.text_of(sample) for sample in range(2)] == ["hello", "me too"]
    assert guided.done.reasons == ("stop", "stop")
    assert isinstance(broken.end, GenerationFailed) and broken.text == "yes"
    assert_right(free, "free", 20)


def test_embeddings_are_means_whatever_the_pieces() -> None:
    desk = Desk(step_tokens=5)
    client = desk.embed(*(chr(97 + number) * (number + 1) for number in range(20)), normalise=False)
    beside = desk.ask("beside", bounded(10))
    desk.run()
    assert isinstance(client.end, Embeddings)
    assert client.end.vectors == tuple((97.0 + number, number / 2, 1.0, 0.0) for number in range(20))
    assert client.end.prompt_tokens == sum(range(21))
    assert_right(beside, "beside", 10)
    unit = desk.embed("ab", dimensions=3)
    desk.run()
    assert isinstance(unit.end, Embeddings)
    assert len(unit.end.vectors[0]) == 3 and sum(x * x for x in unit.end.vectors[0]) == pytest.approx(1.0)
    desk.assert_empty()


def test_inference_gives_every_row_once_or_the_last_alone() -> None:
    import numpy as np

    desk = Desk(step_tokens=6)
    whole, last = desk.infer("the whole text", output="hidden"), desk.infer("the whole text", last_only=True)
    again = desk.infer("the whole text", output="hidden")
    desk.run()
    assert isinstance(whole.end, Inference) and isinstance(last.end, Inference)
    rows = np.frombuffer(whole.end.data, dtype="<f4").reshape(whole.end.shape)
    assert rows[:, 0].tolist() == list(b"the whole text") and rows[:, 1].tolist() == list(range(14))
    assert last.end.shape == (1, 257)
    assert np.frombuffer(last.end.data, dtype="<f4")[1] == 13.0
    assert again.end == whole.end
    desk.assert_empty()


def test_the_last_row_of_a_prompt_read_in_pieces() -> None:
    desk = Desk(step_tokens=6)
    last = desk.infer("nobody shares this text", last_only=True)
    desk.run()
    assert isinstance(last.end, Inference) and last.end.shape == (1, 257)
    desk.assert_empty()


def test_an_embedding_that_is_not_finite_fails_alone() -> None:
    desk = Desk()
    desk.runner.not_finite = {ord("!")}
    bad, good = desk.embed("no!", "yes"), desk.embed("yes")
    desk.run()
    assert isinstance(bad.end, GenerationFailed) and isinstance(good.end, Embeddings)
    desk.assert_empty()


def test_stopping_ends_everybody_once() -> None:
    desk = Desk(max_running=2)
    clients = [desk.ask("q", bounded(50)), desk.embed("text" * 20), *(desk.ask(f"w{n}") for n in range(3))]
    desk.turn()
    desk.core.fail_all(NodeStopping())
    desk.run()
    assert all(isinstance(client.end, NodeStopping) for client in clients)
    desk.assert_empty()


def test_a_step_wakes_a_loop_once_and_a_closed_loop_loses_its_requests_only() -> None:
    desk = Desk()
    clients = [desk.ask(f"q{number}", bounded(10)) for number in range(6)]
    desk.run()
    assert desk.loop.wakeups <= desk.stats.steps
    assert all(client.done for client in clients)
    gone = desk.ask("gone", bounded(500))
    desk.turn()
    desk.loop.closed = True
    desk.run(3)
    assert not gone.ends
    desk.assert_empty()


def test_counts_say_what_has_happened() -> None:
    desk = Desk(seconds_a_step=0.01)
    desk.ask("abcd", bounded(5))
    desk.ask("efgh", bounded(5))
    desk.run()
    stats = desk.stats
    assert (stats.output_tokens, stats.done, stats.prompt_tokens) == (10, 2, 8)
    assert stats.first_token.count == 2 and stats.between_tokens.count == 8
    assert stats.between_tokens.total == pytest.approx(8 * 0.01)
    assert stats.batch_size.total == sum(len(step.rows) for step in desk.runner.steps)
    assert stats.step_tokens == sum(step.token_count for step in desk.runner.steps)
    assert stats.tokens_per_second > 0 and stats.block_tokens == 4 and stats.max_running == 8


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_happens_everybody_gets_one_end_and_the_right_text(data: st.DataObject) -> None:
    desk = Desk(ScriptedRunner(blocks=data.draw(st.integers(10, 30))), max_running=4, seconds_a_step=0.01)
    asked: list[tuple[Client, str, int]] = []
    cancelled: list[Client] = []
    for number in range(data.draw(st.integers(5, 40))):
        act = data.draw(st.sampled_from(["ask", "turn", "turn", "turn", "cancel", "die", "memory", "embed"]))
        if act == "ask":
            prompt = "ab" * data.draw(st.integers(1, 8)) + str(number % 3)
            tokens = data.draw(st.integers(1, 16))
            asked.append((desk.ask(prompt, bounded(tokens)), prompt, tokens))
        elif act == "cancel" and asked:
            client = data.draw(st.sampled_from(asked))[0]
            if not client.ends:
                cancelled.append(client)
            desk.core.cancel(client.job)
        elif act == "die":
            desk.runner.failures = [SystemExit()]
        elif act == "memory":
            desk.runner.most_tokens = data.draw(st.sampled_from([None, 3, 7]))
        elif act == "embed":
            desk.embed("text", "more text")
        else:
            desk.turn()
    desk.run()
    for client, prompt, tokens in asked:
        expected = greedy(mixed, prompt.encode(), tokens)
        if client in cancelled:
            assert not client.ends and client.ids_of(0) == expected[: len(client.ids_of(0))]
        elif isinstance(client.end, GenerationFailed):
            assert "died" in str(client.end) and desk.stats.restarts >= 3
        else:
            assert client.ids_of(0) == expected and client.done.output_tokens == tokens
    desk.assert_empty()
