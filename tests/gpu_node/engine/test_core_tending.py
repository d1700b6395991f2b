"""A runner that loses a stage, gets a new plan, or lends and takes back blocks: nobody loses or repeats a token."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from gpu_node.engine.core import BARREN_STEPS
from gpu_node.engine.sequence import Bounds, Embeddings, SamplingOptions
from gpu_node.engine.step import CacheChange, CacheShape
from gpu_node.errors import GenerationFailed, ModelError
from tests.fakes.pipelined_runner import PipelinedRunner
from tests.fakes.scripted_runner import mixed
from tests.gpu_node.engine.desk import ASK, Client, Desk, greedy

DEPTHS = [1, 2, 4]


def bounded(tokens: int):
    return replace(ASK, bounds=Bounds(context_tokens=1000, max_tokens=tokens))


def asked(desk: Desk, count: int = 6, tokens: int = 20) -> dict[str, Client]:
    return {prompt: desk.ask(prompt, bounded(tokens)) for prompt in (f"prompt {number}" for number in range(count))}


def assert_right(clients: dict[str, Client], tokens: int = 20) -> None:
    for prompt, client in clients.items():
        assert client.ids_of(0) == greedy(mixed, prompt.encode(), tokens)
        assert client.done.output_tokens == tokens


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("when", ["lost_at", "lost_later"])
def test_a_lost_stage_costs_no_token(depth: int, when: str) -> None:
    desk = Desk(PipelinedRunner(depth=depth))
    setattr(desk.runner, when, {1, 7, 8, 25})
    clients = asked(desk)
    reading = desk.embed("a text in between")
    samples = desk.ask("samples", replace(bounded(9), samples=3, sampling=SamplingOptions(seed=1)))
    desk.run()
    assert_right(clients)
    assert isinstance(reading.end, Embeddings)
    calm = Desk(PipelinedRunner(depth=1))
    alone = calm.ask("samples", replace(bounded(9), samples=3, sampling=SamplingOptions(seed=1)))
    calm.run()
    assert [samples.ids_of(one) for one in range(3)] == [alone.ids_of(one) for one in range(3)]
    assert len(desk.runner.tended) == desk.runner.drops >= 3
    assert (desk.stats.failed, desk.stats.restarts) == (0, 0)
    desk.assert_empty()


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_new_plan_may_have_another_cache(depth: int) -> None:
    desk = Desk(PipelinedRunner(depth=depth, blocks=64))
    clients = asked(desk, tokens=40)
    for _ in range(6):
        desk.turn()
    desk.runner.depth = 2
    desk.runner.change = CacheChange(CacheShape(2, 50, 200, promised=40), reset=True)
    desk.runner._lost = True
    desk.run()
    assert_right(clients, 40)
    gauges = desk.core.gauges()
    assert (gauges.block_tokens, gauges.blocks_free + gauges.blocks_cached) == (2, 40)


def test_what_does_not_fit_the_new_plan_ends_and_the_rest_goes_on() -> None:
    desk = Desk(PipelinedRunner(blocks=64))
    long, short = desk.ask("long " * 20, bounded(60)), desk.ask("short", bounded(12))
    for _ in range(6):
        desk.turn()
    desk.runner.change = CacheChange(CacheShape(4, 8, 400), reset=True)
    desk.run()
    assert isinstance(long.end, GenerationFailed) and "no room" in str(long.end)
    assert short.ids_of(0) == greedy(mixed, b"short", 12)
    assert desk.core.gauges().blocks_free + desk.core.gauges().blocks_cached == 8


def test_when_no_plan_is_possible_all_end_with_that_error_and_later_ones_try_again() -> None:
    desk = Desk(PipelinedRunner())
    clients = asked(desk)
    for _ in range(6):
        desk.turn()
    desk.runner.lost_later = set(range(1, 99))
    desk.runner.broken = ModelError("short by 3 GiB")
    desk.run()
    assert all(isinstance(client.end, ModelError) and "3 GiB" in str(client.end) for client in clients.values())
    tried = len(desk.runner.tended)
    assert desk.turn() is None and len(desk.runner.tended) == tried + 1, "an idle engine asks when it is woken"
    later = desk.ask("later", bounded(5))
    desk.run()
    assert isinstance(later.end, ModelError)
    desk.runner.broken, desk.runner.lost_later = None, set()
    better = desk.ask("better", bounded(5))
    desk.run()
    assert_right({"better": better}, 5)
    desk.assert_empty()


def test_a_runner_that_forgets_to_say_that_the_cache_is_lost_is_not_believed() -> None:
    class Forgetful(PipelinedRunner):
        def tend(self, shortage, urgent=False):
            super().tend(shortage, urgent)

    desk = Desk(Forgetful())
    desk.runner.lost_later = {9}
    clients = asked(desk)
    desk.run()
    assert_right(clients)


def test_stages_that_are_always_lost_end_the_thread_at_last() -> None:
    desk = Desk(PipelinedRunner())
    desk.runner.lost_at = set(range(1, 1000))
    desk.ask("never", bounded(5))
    for _ in range(BARREN_STEPS + 1):
        desk.turn()
    assert desk.stats.restarts


def test_an_idle_engine_tends_and_nothing_more() -> None:
    desk = Desk(PipelinedRunner())
    assert desk.turn() is None and not desk.runner.tended
    desk.runner.change = CacheChange(CacheShape(4, 32, 400), reset=True)
    assert desk.turn() is None and desk.runner.tended == [0]
    assert desk.core.gauges().blocks_free == 32
    assert desk.turn() is None and desk.runner.tended == [0]


# Lending


def lending(blocks: int = 24, promised: int = 12, depth: int = 2) -> Desk:
    desk = Desk(PipelinedRunner(blocks=blocks, promised=promised, depth=depth), seconds_a_step=0.02)
    desk.runner.lends = True
    return desk


def test_a_runner_that_lends_nothing_is_never_asked() -> None:
    desk = Desk(PipelinedRunner(blocks=12))
    clients = asked(desk, tokens=30)
    desk.run()
    assert_right(clients, 30)
    assert desk.stats.preemptions > 0 and not desk.runner.tended


def test_a_shortage_is_told_but_not_all_the_time() -> None:
    desk = lending()
    clients = asked(desk, tokens=30)
    began = desk.now
    desk.run()
    assert_right(clients, 30)
    passed = desk.now - began
    assert desk.runner.tended and all(shortage > 0 for shortage in desk.runner.tended)
    assert len(desk.runner.tended) < passed / 0.05


def test_it_is_told_whether_somebody_waits_or_would_give_way() -> None:
    waits = lending(24, 12)
    for number in range(3):  # of 6 blocks each from the beginning, and no more
        waits.ask(f"{number}" * 20, bounded(2))
    waits.run()
    assert waits.runner.urgent and not any(waits.runner.urgent) and not waits.stats.preemptions
    grows = lending(24, 12)
    clients = asked(grows, 3, tokens=30)  # they fit until they have written
    grows.run()
    assert_right(clients, 30)
    assert any(grows.runner.urgent) and grows.stats.preemptions


def test_nobody_is_told_of_a_shortage_while_there_are_blocks() -> None:
    desk = lending(100, 90)
    clients = asked(desk, tokens=30)
    desk.run()
    assert_right(clients, 30)
    assert not desk.runner.tended


@pytest.mark.parametrize("depth", DEPTHS)
def test_lent_blocks_spare_preemptions(depth: int) -> None:
    preemptions = []
    for restored in ((), tuple(range(12, 60))):
        desk = lending(60, 12, depth)
        clients = asked(desk, 5, tokens=30)
        shape = desk.runner.cache
        while any(not client.ends for client in clients.values()):
            if len(desk.runner.tended) == 1 and restored:
                desk.runner.change, restored = CacheChange(shape, restored=restored), ()
            desk.turn()
        assert_right(clients, 30)
        preemptions.append(desk.stats.preemptions)
    assert preemptions[1] < preemptions[0]


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("number", range(3))
def test_blocks_that_come_and_go_change_no_token(depth: int, number: int) -> None:
    desk, chance = lending(40, 12, depth), random.Random(number)
    clients = asked(desk, 8, tokens=35)
    shape, out = desk.runner.cache, set(range(12, 40))
    while any(not client.ends for client in clients.values()):
        if chance.random() < 0.15 and desk.runner.change is None:
            some = tuple(block for block in range(12, 40) if chance.random() < 0.4)
            restored, retired = tuple(out.intersection(some)), tuple(set(some) - out)
            out = out - set(restored) | set(retired)
            desk.runner.change = CacheChange(shape, retired=retired, restored=restored)
        desk.turn()
        for step in (step for step, _ in desk.runner.flying):
            assert not out.intersection(block for row in step.rows for block in row.blocks)
    assert_right(clients, 35)
    assert desk.stats.blocks_free + desk.stats.blocks_cached == 40 - len(out)


def test_everything_at_once() -> None:
    """Losses, failures, memory that runs out and blocks that come and go, for answers of several kinds."""
    for number in range(4):
        desk, chance = lending(40, 14, 1 + number), random.Random(number)
        clients = asked(desk, 7, tokens=40)
        sampled = [desk.ask("shared", replace(bounded(12), samples=2, sampling=SamplingOptions(seed=2)))]
        shape, out = desk.runner.cache, set(range(14, 40))
        for _ in range(1500):
            luck = chance.random()
            if luck < 0.02:
                desk.runner.lost_later.add(desk.runner.begun + 1)
                desk.runner.change = None
                out = set(range(14, 40))
            elif luck < 0.06 and not desk.runner.lost_later and not desk.runner.restless:
                some = {block for block in range(14, 40) if chance.random() < 0.4}
                desk.runner.change = CacheChange(shape, retired=tuple(some - out), restored=tuple(some & out))
                out = out ^ some
            elif luck < 0.08:
                desk.runner.failures = [SystemExit("the thread dies")]
            elif luck < 0.1:
                desk.runner.failures = [RuntimeError("a moment's trouble")]
            if desk.turn() != 0.0:
                break
        desk.run()
        failed = [client for client in clients.values() if isinstance(client.end, GenerationFailed)]
        for client in failed:
            assert "died of this request" in str(client.end) or "a moment's trouble" in str(client.end)
        good = {prompt: client for prompt, client in clients.items() if client not in failed}
        assert_right(good, 40)
        for prompt, client in clients.items():
            wanted = greedy(mixed, prompt.encode(), 40)
            assert client.ids_of(0) == wanted[: len(client.ids_of(0))]
        assert len(sampled[0].ends) == 1
        desk.assert_empty()
