"""One model: its names, its context, its claim, and how long it stays. Time is a number here."""

from __future__ import annotations

from dataclasses import replace

from gpu_node.durations import FOREVER
from gpu_node.host import LARGEST_DEFAULT_CONTEXT, UNSTATED_CONTEXT, ModelHost
from gpu_node.load_wish import LoadWish
from gpu_node.model_folder import ModelDescription, Tensor
from gpu_node.model_source import HubSource
from gpu_node.vram import Account, Claim
from tests.gpu_node.serving import WISH, Fleet, Model


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def description(context: int = 256) -> ModelDescription:
    return ModelDescription("llama", "d", 1, "F32", context, 8, 0.0, "", {}, {}, (Tensor("w", "F32", (50,)),))


def host_of(wish: LoadWish = WISH, clock: Clock | None = None, context: int = 256) -> ModelHost:
    fleet = Fleet([Model("tiny", description=description(context))], clock=clock or Clock())
    return fleet.build(HubSource("tiny"), wish)


def test_names() -> None:
    host = host_of()
    assert host.name == "tiny"
    assert host.serves("TINY:latest") and host.serves("default")
    assert not host.serves("other")


async def test_the_context_is_the_models_own_within_bounds() -> None:
    assert host_of().context_tokens == UNSTATED_CONTEXT, "nothing is known yet"
    for wish, own, context in (
        (WISH, 256, 256),
        (WISH, 10**6, LARGEST_DEFAULT_CONTEXT),
        (replace(WISH, context=20_000), 10**6, 20_000),
        (replace(WISH, context=20_000), 512, 512),
    ):
        host = host_of(wish, context=own)
        await host.prepare()
        assert host.context_tokens == context
        await host.load(Claim(1, 1))
        assert host.context_tokens == min(context, 1024 * 16), "what the cache has room for"


async def test_a_load_grants_the_cache_its_size_unless_it_was_given() -> None:
    for wish, granted in ((LoadWish(), 77), (LoadWish(kv_bytes=5), 5), (LoadWish(kv_blocks=3), 0)):
        fleet = Fleet([Model("tiny", description=description())])
        host = fleet.build(HubSource("tiny"), wish)
        await host.prepare()
        await host.load(Claim(1, 77))
        assert [one.kv_bytes for one in fleet.files["tiny"].wishes] == [granted]
        assert host.ready and host.loaded_once
        assert host.held == Claim(100, 1024 * 2)
        assert (host.read_bytes, host.total_bytes) == (7, 10)


async def test_the_claim_is_what_loading_is_thought_to_take() -> None:
    host = host_of(LoadWish(kv_bytes=5, dtype="float32"))
    await host.prepare()
    assert await host.claim(Account("cpu", 1000)) == Claim(200, 5)


def test_whoever_uses_it_moves_the_end_of_its_stay() -> None:
    clock = Clock()
    host = host_of(clock=clock)
    with host.use():
        assert (host.running, host.idle) == (1, False)
    assert (host.running, host.idle, host.seconds_left) == (0, True, 300)
    clock.now += 299
    assert host.seconds_left == 1
    with host.use(10):
        pass
    assert host.seconds_left == 10
    with host.use(FOREVER):
        pass
    assert host.kept and host.seconds_left == FOREVER


def test_a_model_that_was_dismissed_stays_for_nobodys_wish() -> None:
    host = host_of()
    with host.use(600):
        host.dismiss()
    assert host.seconds_left == 0
    host.keep(50)
    assert host.seconds_left == 50
    with host.use():
        pass
    assert host.seconds_left == 50, "a wish at loading is the rule from then on"


def test_one_that_was_loaded_for_somebody_is_not_idle_before_that_one_has_it() -> None:
    host = host_of()
    with host.slots.enter():
        host.fresh = True
        assert not host.idle
        with host.use():
            pass
        assert host.idle
    host.fresh = True
    assert host.idle, "whoever wanted it has left"


async def test_states() -> None:
    host = host_of()
    assert host.state == "empty"
    host.activity = "fetching"
    assert host.state == "loading"
    host.activity, host.error = "", "the disk is gone"
    assert (host.state, host.failure) == ("failed", "the disk is gone")
