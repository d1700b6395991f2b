"""With several steps under way every client hears what it would hear with one."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from gpu_node.engine.core import CAREFUL_STEPS
from gpu_node.engine.sequence import Bounds, Done, SamplingOptions
from gpu_node.errors import DeadlineExceeded, DeviceOutOfMemory, GenerationFailed, NodeStopping
from tests.fakes.pipelined_runner import PipelinedRunner
from tests.fakes.scripted_runner import ByteVocabulary, mixed
from tests.gpu_node.engine.desk import ASK, Client, Desk, greedy

DEPTHS = [1, 2, 3, 4]


def bounded(tokens: int, **changes: object):
    return replace(ASK, bounds=Bounds(context_tokens=1000, max_tokens=tokens, **changes))


def assert_right(client: Client, prompt: str, tokens: int) -> None:
    assert client.ids_of(0) == greedy(mixed, prompt.encode(), tokens)
    assert client.done.output_tokens == tokens


def rows(desk: Desk) -> list[int]:
    return [len(step.rows) for step in desk.runner.steps]


@pytest.mark.parametrize("depth", DEPTHS)
def test_as_many_steps_are_under_way_as_are_worth_it(depth: int) -> None:
    desk = Desk(PipelinedRunner(depth=depth))
    asked = [(desk.ask(f"prompt {number}", bounded(20)), f"prompt {number}") for number in range(8)]
    desk.run()
    for client, prompt in asked:
        assert_right(client, prompt, 20)
    assert max(desk.runner.flights) == depth and not desk.runner.flying and not desk.runner.drops
    desk.assert_empty()


@pytest.mark.parametrize(("depth", "answers"), [(2, 8), (2, 5), (3, 8), (4, 4), (4, 3)])
def test_groups_are_alike_and_take_turns(depth: int, answers: int) -> None:
    desk = Desk(PipelinedRunner(depth=depth))
    clients = [desk.ask(f"p{number}", bounded(60)) for number in range(answers)]
    while not all(client.tokens for client in clients):
        desk.turn()
    before = [len(client.ids_of(0)) for client in clients]
    desk.runner.steps.clear()
    for _ in range(6 * depth):
        desk.turn()
    sizes = rows(desk)[depth:]
    assert all(answers // depth <= size <= -(-answers // depth) for size in sizes), sizes
    gained = [len(client.ids_of(0)) - one for client, one in zip(clients, before, strict=True)]
    assert max(gained) - min(gained) <= 1 and min(gained) >= 5, "each has its turn in every round"
    assert min(desk.runner.flights[-3 * depth :]) == min(depth, answers), "no stage waits"


def test_groups_settle_after_some_have_ended() -> None:
    desk = Desk(PipelinedRunner())
    short = [desk.ask(f"s{number}", bounded(6)) for number in range(3)]
    long = [desk.ask(f"l{number}", bounded(90)) for number in range(5)]
    while not all(client.ends for client in short):
        desk.turn()
    for _ in range(4):
        desk.turn()
    desk.runner.steps.clear()
    late = [desk.ask(f"t{number}", bounded(40)) for number in range(3)]
    for _ in range(40):
        desk.turn()
    assert set(rows(desk)[10:]) == {4}
    assert all(client.tokens for client in (*long, *late))


def test_a_prompt_is_read_in_pieces_that_overlap() -> None:
    desk = Desk(PipelinedRunner(depth=3, blocks=200), step_tokens=200, mixed_step_tokens=8)
    prompt = "a long prompt " * 14
    client = desk.ask(prompt, bounded(3))
    desk.run()
    assert_right(client, prompt, 3)
    assert max(desk.runner.flights) == 3
    sizes = [step.token_count for step in desk.runner.steps]
    assert len(prompt) // 8 < sizes[0] < len(prompt) // 4 and len(sizes) < 20


def test_with_one_step_a_prompt_is_read_as_ever() -> None:
    desk = Desk(PipelinedRunner(depth=1, blocks=200), step_tokens=200, mixed_step_tokens=8)
    prompt = "a long prompt " * 14
    desk.ask(prompt, bounded(3))
    desk.run()
    assert [step.token_count for step in desk.runner.steps] == [len(prompt), 1, 1]


def test_a_piece_of_a_prompt_beside_an_answer_under_way_is_a_small_one() -> None:
    desk = Desk(PipelinedRunner(depth=2, blocks=200), step_tokens=200, mixed_step_tokens=8)
    client = desk.ask("answer", bounded(100))
    while not client.tokens:
        desk.turn()
    desk.runner.steps.clear()
    desk.ask("a long prompt " * 10, bounded(2))
    for _ in range(20):
        desk.turn()
    assert max(step.token_count for step in desk.runner.steps) == 8


class Workload:
    """Requests of all kinds at random times, some of which are given up; the same one for each number."""

    def __init__(self, number: int, desk: Desk) -> None:
        self.random, self.desk = random.Random(number), desk
        self.clients: list[Client] = []
        self.given_up: set[int] = set()

    def run(self, at_each_turn: Callable[[], None] = lambda: None) -> list[object]:
        arrivals = sorted(self.random.choices(range(60), k=24))
        for turn in range(3000):
            while arrivals and arrivals[0] <= turn:
                arrivals.pop(0)
                self.clients.append(self._ask())
            if self.random.random() < 0.03 and self.clients:
                gone = self.random.randrange(len(self.clients))
                self.given_up.add(gone)
                self.desk.core.cancel(self.clients[gone].job)
            at_each_turn()
            if self.desk.turn() != 0.0 and not arrivals:
                break
        self.desk.assert_empty()
        return [None if number in self.given_up else self._heard(one) for number, one in enumerate(self.clients)]

    def _ask(self) -> Client:
        prompt = self.random.choice(["shared beginning, ", "shared beginning, and more of it: ", "", "abcabcabcabc"])
        prompt += self.random.choice(["x", "another end", "the end of it all " * 2])
        kind = self.random.randrange(12)
        if kind == 0:
            return self.desk.embed(prompt, "and a second text")
        if kind == 1:
            return self.desk.infer(prompt)
        if kind == 2:
            return self.desk.infer(prompt, last_only=True)
        request = bounded(self.random.randrange(1, 25))
        seed, samples = self.random.randrange(100), self.random.choice([1, 1, 1, 2, 4])
        if kind > 6:
            request = replace(request, sampling=SamplingOptions(seed=seed), samples=samples)
        if kind == 3:
            short = Bounds(context_tokens=max(len(prompt) + 5, 24), max_tokens=40)
            request = replace(request, bounds=short)
        return self.desk.ask(prompt, request)

    def _heard(self, client: Client) -> object:
        tokens = {sample: client.ids_of(sample) for sample in range(4)}
        end = client.end
        return tokens, (end.reasons, end.output_tokens) if isinstance(end, Done) else end


def looping(history, draw: int) -> int:
    """Answers that repeat themselves, so that drafts come true, and sometimes not."""
    if draw or len(history) % 11 == 0 or len(history) < 3:
        return mixed(history[-6:], draw)
    return history[-3]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(("blocks", "drafts"), [(400, 0), (30, 0), (30, 4)])
def test_whatever_comes_the_answers_are_those_of_one_step_at_a_time(number: int, blocks: int, drafts: int) -> None:
    heard, given_up = [], []
    for depth in DEPTHS:
        desk = Desk(PipelinedRunner(looping, blocks=blocks, depth=depth), max_drafts=drafts)
        load = Workload(number, desk)
        heard.append(load.run())
        given_up.append(load.given_up)
        if drafts:
            assert desk.stats.accepted_drafts > 0
    for others, gone in zip(heard[1:], given_up[1:], strict=True):
        left_out = gone | given_up[0]
        for at, (one, other) in enumerate(zip(heard[0], others, strict=True)):
            assert at in left_out or one == other


def test_preemption_happens_and_nobody_with_rows_under_way_gives_way() -> None:
    desk = Desk(PipelinedRunner(blocks=14, depth=2))
    asked = [(desk.ask(f"number {number}", bounded(30)), f"number {number}") for number in range(4)]
    desk.run()
    for client, prompt in asked:
        assert_right(client, prompt, 30)
    assert desk.stats.preemptions > 0


def test_deadlines_and_cancellation_with_steps_under_way() -> None:
    desk = Desk(PipelinedRunner(depth=3), seconds_a_step=1.0)
    late = desk.ask("late", replace(bounded(50), deadline=desk.now + 5))
    gone, stays = desk.ask("gone", bounded(50)), desk.ask("stays", bounded(12))
    for _ in range(4):
        desk.turn()
    assert desk.runner.flying
    desk.core.cancel(gone.job)
    desk.run()
    assert isinstance(late.end, DeadlineExceeded) and not gone.ends
    assert_right(stays, "stays", 12)
    desk.assert_empty()


def test_the_first_of_several_samples_fails_while_the_others_are_under_way() -> None:
    desk = Desk(PipelinedRunner(depth=2, blocks=200), step_tokens=8, mixed_step_tokens=8)
    client = desk.ask("a prompt of several pieces", replace(bounded(9), samples=3, sampling=SamplingOptions(seed=4)))
    other = desk.ask("another", bounded(9))
    desk.turn()
    desk.core._scheduler.cancel(min(desk.core._jobs.samples))
    desk.core._jobs.samples.pop(min(desk.core._jobs.samples))
    while not other.ends:
        desk.turn()
    desk.run()
    assert_right(other, "another", 9)
    assert len(client.ids_of(1)) == len(client.ids_of(2)) == 9


def test_ending_all_with_steps_under_way() -> None:
    desk = Desk(PipelinedRunner(depth=3))
    clients = [desk.ask(f"p{number}", bounded(50)) for number in range(6)]
    for _ in range(5):
        desk.turn()
    desk.core.fail_all(NodeStopping())
    assert all(isinstance(client.end, NodeStopping) for client in clients) and desk.runner.flying
    desk.run()
    assert not desk.runner.flying
    desk.assert_empty()


# Faults


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_row_that_fails_ends_its_own_request_only(depth: int) -> None:
    desk = Desk(PipelinedRunner(depth=depth))
    desk.runner.poison = {ord("!"): lambda: RuntimeError("the row is odd")}
    good = [(desk.ask(f"good {number}", bounded(60)), f"good {number}") for number in range(5)]
    for _ in range(8):
        desk.turn()
    bad = desk.ask("a prompt!", bounded(12))
    desk.run()
    assert isinstance(bad.end, GenerationFailed) and "the row is odd" in str(bad.end)
    for client, prompt in good:
        assert_right(client, prompt, 60)
    assert (desk.stats.failed, desk.stats.restarts) == (1, 0)
    assert desk.runner.drops == (depth > 1) and max(desk.runner.flights[-25:]) == depth, "it goes on as before"
    desk.assert_empty()


def test_after_a_failure_steps_are_computed_one_at_a_time_for_a_while() -> None:
    desk = Desk(PipelinedRunner(depth=3))
    clients = [desk.ask(f"good {number}", bounded(60)) for number in range(5)]
    for _ in range(8):
        desk.turn()
    desk.runner.failures = [RuntimeError("a moment's trouble")]
    desk.turn()
    desk.runner.flights.clear()
    desk.run()
    assert desk.runner.flights[:CAREFUL_STEPS] == [1] * CAREFUL_STEPS
    assert max(desk.runner.flights[CAREFUL_STEPS : CAREFUL_STEPS + 4]) == 3
    for number, client in enumerate(clients):
        assert_right(client, f"good {number}", 60)


@pytest.mark.parametrize("depth", DEPTHS)
def test_out_of_memory_makes_steps_smaller_and_nobody_fails(depth: int) -> None:
    desk = Desk(PipelinedRunner(depth=depth))
    desk.runner.most_tokens = 3
    asked = [(desk.ask(f"a longer prompt, number {number}", bounded(15)), number) for number in range(6)]
    desk.run()
    for client, number in asked:
        assert_right(client, f"a longer prompt, number {number}", 15)
    assert desk.stats.out_of_memory >= 1 and desk.stats.failed == 0


def test_out_of_memory_with_one_token_makes_the_cache_smaller() -> None:
    desk = Desk(PipelinedRunner(depth=2))
    asked = {prompt: desk.ask(prompt, bounded(30)) for prompt in ("one", "other")}
    for _ in range(6):
        desk.turn()
    desk.runner.failures = [None, DeviceOutOfMemory("full")]
    while not desk.stats.failed:
        desk.turn()
    assert desk.runner.cache.block_count < 64 and not desk.runner.flying
    desk.run()
    failed = [prompt for prompt, client in asked.items() if isinstance(client.end, GenerationFailed)]
    assert len(failed) == 1
    (other,) = asked.keys() - set(failed)
    assert_right(asked[other], other, 30)


def test_a_guide_or_tokenizer_that_fails_harms_only_its_own() -> None:
    class Brittle(ByteVocabulary):
        def decode(self, ids):
            if ord("!") in ids:
                raise UnicodeError("no such text")
            return super().decode(ids)

    desk = Desk(PipelinedRunner(depth=2, vocabulary=Brittle()))
    bad, good = desk.ask("broken!", bounded(5)), desk.ask("whole", bounded(9))
    desk.run()
    assert isinstance(bad.end, GenerationFailed)
    assert_right(good, "whole", 9)


@pytest.mark.parametrize("depth", [2, 4])
def test_the_thread_dies_with_steps_under_way(depth: int) -> None:
    desk = Desk(PipelinedRunner(depth=depth))
    asked = [(desk.ask(f"prompt {number}", bounded(20)), f"prompt {number}") for number in range(6)]
    for _ in range(7):
        desk.turn()
    desk.runner.failures = [SystemExit("gone")]
    desk.turn()
    assert desk.stats.restarts == 1 and not desk.runner.flying
    desk.run()
    for client, prompt in asked:
        assert_right(client, prompt, 20)
    desk.assert_empty()
