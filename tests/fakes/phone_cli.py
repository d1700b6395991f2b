"""`python -m tests.fakes.phone`: phones on consecutive ports in one process, for demonstrations and load tests."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from tests.fakes.phone import FakeModel, PhoneSettings, fake_fleet


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m tests.fakes.phone", description=__doc__)
    add = result.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=11500, help="the first port; the others follow")
    add("--count", type=int, default=1)
    add("--version", default="0.24.0", help="of Ollama: 0.6.8, 0.24.0 or 0.33.0-rc2")
    add("--model", action="append", help="name of a model; may be given several times")
    add("--template", choices=("open", "closed", "trimming"), default="closed")
    add("--tokens-per-second", type=float, default=12.0, help="0: as fast as it can")
    add("--prompt-tokens-per-second", type=float, default=60.0)
    add("--burst", type=int, default=16, help="tokens in one write, if there is no speed")
    add("--load-seconds", type=float, default=1.0)
    add("--time-scale", type=float, default=1.0, help="0.01 makes everything a hundred times faster")
    add("--prompt-cache", type=int, default=1, help="conversations held; 0: none")
    add("--num-parallel", type=int, default=1)
    add("--num-ctx", type=int, default=4096)
    add("--answer-tokens", type=int, nargs=2, default=(16, 96), metavar=("LEAST", "MOST"))
    add("--seed", type=int, default=0)
    add("--log-size", type=int, default=256, help="requests kept in memory by each phone")
    add("--library", action="append", help="name of a model that can be pulled; may be given several times")
    add("--pull-bytes-per-second", type=float, default=0.0, help="speed of a download; 0: as fast as it can")
    add("--free-bytes", type=int, help="storage that is free: a larger part of a model does not find room")
    add("--control", action="store_true", help="answer /_control: counters, settings and faults at run time")
    add("--demo", action="store_true", help="readable English answers")
    return result


def settings_from(arguments: argparse.Namespace) -> PhoneSettings:
    models = tuple(FakeModel(name) for name in arguments.model or ["smollm2:135m"])
    return PhoneSettings(
        version=arguments.version,
        models=models,
        template=arguments.template,
        tokens_per_second=arguments.tokens_per_second,
        prompt_tokens_per_second=arguments.prompt_tokens_per_second,
        burst=arguments.burst,
        load_seconds=arguments.load_seconds,
        time_scale=arguments.time_scale,
        prompt_cache=arguments.prompt_cache,
        num_parallel=arguments.num_parallel,
        num_ctx=arguments.num_ctx,
        answer_tokens=tuple(arguments.answer_tokens),
        seed=arguments.seed,
        log_size=arguments.log_size,
        control=arguments.control,
        library=tuple(FakeModel(name, size=900_000_000) for name in arguments.library or ()),
        pull_bytes_per_second=arguments.pull_bytes_per_second,
        free_bytes=arguments.free_bytes,
        demo=arguments.demo,
        check_origin=arguments.host in ("127.0.0.1", "::1", "localhost"),  # on other addresses Ollama does not ask
    )


async def run(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    settings = settings_from(arguments)
    async with fake_fleet(arguments.count, settings, host=arguments.host, first_port=arguments.port) as phones:
        last = f" to {phones[-1].port}" if len(phones) > 1 else ""
        print(f"{len(phones)} fake phone(s) ready on {arguments.host}, port {phones[0].port}{last}", flush=True)
        await stop.wait()


def main() -> None:
    arguments = parser().parse_args()
    try:
        _loop_runner()(run(arguments))
    except OSError as error:
        sys.exit(f"cannot listen on {arguments.host}, port {arguments.port} and following: {error.strerror or error}")


def _loop_runner() -> Callable[[Coroutine[Any, Any, None]], None]:
    try:
        import uvloop
    except ImportError:  # slower, but the same
        return asyncio.run
    return uvloop.run


if __name__ == "__main__":
    main()
