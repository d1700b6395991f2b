"""What goes wrong harms only whom it concerns, and the engine goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu_node.engine.core import BARREN_STEPS, DEATHS_OF_ONE
from gpu_node.engine.room import GOOD_STEPS
from gpu_node.engine.sequence import Bounds, Embeddings, SamplingOptions
from gpu_node.engine.step import CacheShape, Choice, StepResult
from gpu_node.errors import DeviceOutOfMemory, GenerationFailed
from tests.fakes.scripted_runner import ByteVocabulary, ScriptedRunner, mixed
from tests.gpu_node.engine.desk import ASK, GREEDY, Client, Desk, greedy


def bounded(tokens: int, **changes: object):
    return replace(ASK, bounds=Bounds(context_tokens=1000, max_tokens=tokens, **changes))


def assert_right(client: Client, prompt: str, tokens: int) -> None:
    assert client.ids_of(0) == greedy(mixed, prompt.encode(), tokens)
    assert client.done.output_tokens == tokens


def odd() -> BaseException:
    return RuntimeError("the row is odd")


@pytest.mark.parametrize("prompt", ["!", "a prompt!", "a prompt of several pieces! and more of them to come"])
def test_a_row_that_fails_ends_its_own_request_only(prompt: str) -> None:
    desk = Desk()
    desk.runner.poison = {ord("!"): odd}
    good = [(desk.ask(f"good {number}", bounded(12)), f"good {number}") for number in range(3)]
    desk.turn()
    bad = desk.ask(prompt, bounded(12))
    late = desk.ask("late", bounded(12))
    desk.run()
    assert isinstance(bad.end, GenerationFailed) and "the row is odd" in str(bad.end)
    for client, text in [*good, (late, "late")]:
        assert_right(client, text, 12)
    assert (desk.stats.failed, desk.stats.restarts) == (1, 0)
    desk.assert_empty()


def test_a_row_that_fails_in_the_middle_of_its_answer() -> None:
    desk = Desk()
    fifth = greedy(mixed, b"bad", 6)[4]
    clients = {text: desk.ask(text, bounded(20)) for text in ("bad", "good")}
    desk.turn()
    desk.runner.poison = {fifth: odd}
    desk.run()
    assert len(clients["bad"].tokens) >= 1 and isinstance(clients["bad"].end, GenerationFailed)
    if fifth not in greedy(mixed, b"good", 20):
        assert_right(clients["good"], "good", 20)


def test_what_a_failed_row_computed_is_used_by_nobody() -> None:
    desk = Desk()
    desk.runner.not_finite = {ord("!")}
    bad = desk.ask("the very same prompt!", bounded(3))
    desk.run()
    assert "not finite" in str(bad.end)
    desk.runner.not_finite = set()
    good = desk.ask("the very same prompt!", bounded(3))
    desk.run()
    assert good.done.reused_tokens == 0
    assert_right(good, "the very same prompt!", 3)


def test_samples_of_a_failing_prompt_fail_together_and_once() -> None:
    desk = Desk()
    desk.runner.poison = {ord("!"): odd}
    bad = desk.ask("oh!", replace(bounded(5), samples=4, sampling=SamplingOptions(seed=1)))
    good = desk.ask("yes", bounded(5))
    desk.run()
    assert isinstance(bad.end, GenerationFailed)
    assert_right(good, "yes", 5)
    desk.assert_empty()


def test_a_runner_that_chooses_nothing_fails_the_request_instead_of_spinning() -> None:
    class Silent(ScriptedRunner):
        def run(self, step, picks):
            result = super().run(step, picks)
            return StepResult(tuple(Choice() for _ in result.choices), result.arrays)

    desk = Desk(Silent())
    client = desk.ask("q")
    desk.run(50)
    assert isinstance(client.end, GenerationFailed)


def test_a_tokenizer_that_breaks_fails_its_request_only() -> None:
    class Brittle(ByteVocabulary):
        def decode(self, ids):
            if ord("!") in ids:
                raise UnicodeError("no such text")
            return super().decode(ids)

    desk = Desk(ScriptedRunner(vocabulary=Brittle()))
    bad, good = desk.ask("broken!", bounded(5)), desk.ask("whole", bounded(5))
    desk.run()
    assert isinstance(bad.end, GenerationFailed) and "no such text" in str(bad.end)
    assert_right(good, "whole", 5)
    desk.assert_empty()


def test_a_reading_whose_rows_do_not_come_fails_alone() -> None:
    class Forgetful(ScriptedRunner):
        def run(self, step, picks):
            return StepResult(super().run(step, picks).choices)

    desk = Desk(Forgetful())
    reading, good = desk.embed("some text"), desk.ask("good", bounded(5))
    desk.run()
    assert isinstance(reading.end, GenerationFailed)
    assert_right(good, "good", 5)
    desk.assert_empty()


def test_out_of_memory_makes_steps_smaller_and_nobody_fails() -> None:
    desk = Desk()
    desk.runner.most_tokens = 5
    asked = [(desk.ask(f"a longer prompt, number {number}", bounded(15)), number) for number in range(4)]
    desk.run()
    for client, number in asked:
        assert_right(client, f"a longer prompt, number {number}", 15)
    stats = desk.stats
    assert stats.out_of_memory >= 2 and stats.failed == 0
    assert stats.step_token_limit <= 5


def test_out_of_memory_with_many_rows_makes_fewer_of_them() -> None:
    desk = Desk()
    desk.runner.most_rows = 2
    asked = [(desk.ask(f"prompt {number}", bounded(10)), number) for number in range(6)]
    desk.run()
    for client, number in asked:
        assert_right(client, f"prompt {number}", 10)
    assert desk.stats.failed == 0


def test_steps_grow_again_when_memory_is_there() -> None:
    desk = Desk()
    desk.runner.failures = [DeviceOutOfMemory("for a moment")]
    desk.ask("x" * 60, bounded(5))
    desk.turn()
    assert desk.stats.step_token_limit == 16
    desk.ask("y", bounded(min(GOOD_STEPS + 20, 150)))
    desk.ask("z", bounded(150))
    desk.run()
    desk.ask("y" * 7, bounded(GOOD_STEPS - 100))
    desk.run()
    assert desk.stats.step_token_limit == 32


def test_what_does_not_fit_even_alone_fails_and_the_cache_shrinks() -> None:
    desk = Desk()
    desk.runner.most_tokens = 0
    first = desk.ask("q")
    desk.run()
    assert isinstance(first.end, GenerationFailed) and "out of memory" in str(first.end)
    assert desk.runner.cache.block_count == 48
    desk.runner.most_tokens = None
    good = desk.ask("good", bounded(8))
    desk.run()
    assert_right(good, "good", 8)
    assert desk.stats.blocks_free + desk.stats.blocks_cached == 48


def test_a_cache_that_shrinks_under_others_lets_them_go_on_or_says_that_they_do_not_fit() -> None:
    class Shrinking(ScriptedRunner):
        def shrink_cache(self, block_count: int) -> CacheShape:
            return super().shrink_cache(6)

    desk = Desk(Shrinking(blocks=32), max_running=1)
    long = desk.ask("long", bounded(80))
    for _ in range(30):
        desk.turn()
    short = desk.ask("short", bounded(10))
    shifting = desk.ask("shift", replace(ASK, bounds=Bounds(context_tokens=100, max_tokens=60)))
    huge = desk.ask("huge" * 10, bounded(4))
    # Only the one that runs is in the step; it fails, and the rest of the world is smaller.
    desk.runner.failures = [DeviceOutOfMemory("x")] * 1
    desk.runner.most_tokens = None
    desk.run()
    assert isinstance(long.end, GenerationFailed)
    assert isinstance(huge.end, GenerationFailed) and "no room" in str(huge.end)
    assert_right(short, "short", 10)
    assert shifting.done.output_tokens == 60
    desk.assert_empty()


def test_a_cache_that_cannot_shrink_stays_as_it_is() -> None:
    class Stubborn(ScriptedRunner):
        def shrink_cache(self, block_count: int) -> CacheShape:
            raise DeviceOutOfMemory("not even that")

    desk = Desk(Stubborn())
    desk.runner.most_tokens = 0
    assert isinstance(_ended(desk, desk.ask("q")), GenerationFailed)
    desk.runner.most_tokens = None
    good = desk.ask("good", bounded(8))
    desk.run()
    assert_right(good, "good", 8)


def _ended(desk: Desk, client: Client) -> object:
    desk.run()
    return client.end


@pytest.mark.parametrize("turns", [0, 1, 3, 6])
def test_after_the_thread_died_answers_go_on_without_gap_or_repeat(turns: int) -> None:
    desk = Desk(max_running=2, step_tokens=8)
    running = [(desk.ask(f"prompt of some length {number}", bounded(15)), number) for number in range(4)]
    reading = desk.embed("some text to be read", "more of it", normalise=False)
    for _ in range(turns):
        desk.turn()
    desk.runner.failures = [SystemExit("killed")]
    desk.run()
    for client, number in running:
        assert_right(client, f"prompt of some length {number}", 15)
    assert isinstance(reading.end, Embeddings)
    assert reading.end.vectors[0][1:3] == (9.5, 1.0)
    assert desk.stats.restarts == 1
    desk.assert_empty()


def test_samples_and_shifts_survive_a_death() -> None:
    request = replace(ASK, bounds=Bounds(context_tokens=20, max_tokens=50), samples=2)
    heard = []
    for deaths in (0, 1):
        desk = Desk()
        client = desk.ask("prompt", replace(request, sampling=SamplingOptions(temperature=1, seed=5)))
        for _ in range(25):
            desk.turn()
        desk.runner.failures = [KeyboardInterrupt()] * deaths
        desk.run()
        heard.append([client.ids_of(sample) for sample in range(2)])
    assert heard[0] == heard[1] and len(heard[0][0]) == 50


def test_who_kills_the_thread_again_and_again_is_found_out() -> None:
    desk = Desk(max_running=4)
    desk.runner.poison = {ord("!"): lambda: SystemExit("again")}
    killer = desk.ask("kill!", bounded(5))
    desk.run()
    good = desk.ask("good", bounded(5))
    desk.run()
    assert isinstance(killer.end, GenerationFailed) and "died" in str(killer.end)
    assert desk.stats.restarts == DEATHS_OF_ONE
    assert_right(good, "good", 5)


def test_a_reading_that_kills_the_thread_is_found_out_too() -> None:
    desk = Desk()
    desk.runner.poison = {ord("!"): lambda: SystemExit("again")}
    killer = desk.embed("kill!")
    desk.run()
    good = desk.ask("good", bounded(5))
    desk.run()
    assert isinstance(killer.end, GenerationFailed) and "died" in str(killer.end)
    assert_right(good, "good", 5)
    desk.assert_empty()


def test_a_device_that_only_fails_is_not_taken_for_bad_requests() -> None:
    desk = Desk(max_running=1)
    desk.runner.failures = [RuntimeError("illegal memory access")] * 100
    clients = [desk.ask(f"q{number}") for number in range(BARREN_STEPS + 3)]
    desk.run()
    assert all(isinstance(client.end, GenerationFailed) for client in clients)
    assert desk.stats.restarts >= 3  # the worker would give up soon
    desk.runner.failures = []
    good = desk.ask("good", bounded(5))
    desk.run()
    assert_right(good, "good", 5)


def test_rows_that_come_twice_or_not_at_all_are_an_error() -> None:
    class Stuttering(ScriptedRunner):
        def run(self, step, picks):
            result = super().run(step, picks)
            return StepResult(result.choices, {row: rows.repeat(2, axis=0) for row, rows in result.arrays.items()})

    desk = Desk(Stuttering())
    for client in (desk.embed("some text"), desk.infer("some text")):
        desk.run()
        assert isinstance(client.end, GenerationFailed) and "rows" in str(client.end)


def test_dying_after_the_answer_was_told_but_before_the_commit_repeats_nothing() -> None:
    desk = Desk()
    client, other = desk.ask("prompt", bounded(12)), desk.ask("other", bounded(4))
    for _ in range(3):
        desk.turn()
    commit = desk.core._scheduler.commit

    class Broken:
        """The scheduler, but for one commit."""

        def __getattr__(self, name: str) -> object:
            return getattr(scheduler, name)

        def commit(self, *arguments: object) -> object:
            desk.core._scheduler = scheduler
            raise SystemExit("in the middle")

    scheduler = desk.core._scheduler
    desk.core._scheduler = Broken()  # type: ignore[assignment]
    desk.run()
    assert desk.core._scheduler.commit == commit
    assert_right(client, "prompt", 12)
    assert_right(other, "other", 4)
    assert desk.stats.restarts == 1
    desk.assert_empty()


def test_greedy_options_are_greedy() -> None:
    assert GREEDY.greedy  # what the references above rely on
