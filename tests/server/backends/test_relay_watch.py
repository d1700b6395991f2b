"""How long is waited: on a clock that jumps."""

from __future__ import annotations

import asyncio

import pytest

from server.backends.relay_watch import Watch
from server.errors import NodeStalled
from server.patience import Patience
from tests.fakes.clock_loop import on_clock_loop


def watch_of(total: float = 100.0) -> Watch:
    return Watch("a:1", Patience(total=total))


@on_clock_loop
async def test_who_waits_too_long_is_told_what_for():
    watch = watch_of()
    watch.expect("first_token", 5.0)
    with pytest.raises(NodeStalled) as caught, watch:
        await asyncio.sleep(50)
    assert (caught.value.phase, asyncio.get_running_loop().time()) == ("first_token", pytest.approx(5.0))
    assert "a:1" in caught.value.message
    watch.close()


@on_clock_loop
async def test_each_token_moves_the_deadline():
    watch = watch_of()
    for _ in range(10):
        watch.expect("between_tokens", 2.0)
        with watch:
            await asyncio.sleep(1.5)
    with pytest.raises(NodeStalled), watch:
        await asyncio.sleep(50)
    assert asyncio.get_running_loop().time() == pytest.approx(15.5)
    watch.close()


@on_clock_loop
async def test_a_shorter_limit_counts_at_once():
    watch = watch_of()
    watch.expect("first_token", 60.0)
    with watch:
        await asyncio.sleep(1)
    watch.expect("between_tokens", 2.0)
    with pytest.raises(NodeStalled), watch:
        await asyncio.sleep(50)
    assert asyncio.get_running_loop().time() == pytest.approx(3.0)
    watch.close()


@on_clock_loop
async def test_the_end_of_all_comes_first():
    watch = watch_of(total=3.0)
    watch.expect("first_token", 60.0)
    with pytest.raises(NodeStalled) as caught, watch:
        await asyncio.sleep(50)
    assert caught.value.phase == "total"
    watch.close()


@on_clock_loop
async def test_time_counts_only_while_somebody_waits():
    watch = watch_of()
    watch.expect("between_tokens", 2.0)
    with watch:
        await asyncio.sleep(1)
    await asyncio.sleep(10)  # a client that reads slowly
    watch.expect("between_tokens", 2.0)
    with watch:
        await asyncio.sleep(1)
    watch.close()


@on_clock_loop
async def test_whoever_is_cancelled_by_others_is_not_told_of_silence():
    watch = watch_of()
    watch.expect("first_token", 5.0)

    async def wait() -> None:
        with watch:
            await asyncio.sleep(50)

    task = asyncio.create_task(wait())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    watch.close()


@on_clock_loop
async def test_both_at_once_is_the_others_cancelling():
    watch = watch_of()
    watch.expect("first_token", 5.0)

    async def wait() -> None:
        with watch:
            await asyncio.sleep(50)

    task = asyncio.create_task(wait())
    asyncio.get_running_loop().call_later(4.995, task.cancel)
    asyncio.get_running_loop().call_at(5.0, lambda: None)
    with pytest.raises(asyncio.CancelledError):
        await task
    watch.close()


@on_clock_loop
async def test_other_errors_pass():
    watch = watch_of()
    watch.expect("first_token", 5.0)
    with pytest.raises(KeyError), watch:
        raise KeyError("x")
    watch.close()
