"""Conversations that come home against plain rotation: time to first token, homecomings, and whether weights hold.

The gateway's own parts (dispatch, routing, affinity, queue, HTTP to the nodes) serve simulated phones that read 30
tokens/s, say 8 and hold one conversation each (a mixed fleet: some hold none, some four, at other speeds). Users talk
in 5 or 6 turns and think in between. All of it in virtual time: the figures are seconds of such phones, the same on
every machine, and a run of hours takes a minute. Affinity on and off see the same users with the same questions.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.rig import virtual_time
from bench.rig.phones import phones_of, write_fleet
from bench.rig.report import Report, at_least, at_most, median, percentile, table
from server.exchange import AskRequest, CallerId, Done, Failed, HomecomingOutcome, Message, RequestId, Token
from server.main import Gateway, running
from server.settings import Settings
from tests.fakes.phone import PhoneSettings

PROMPT_SPEED = 30.0  # tokens/s that a mid-range phone reads
SPEED = 8.0  # tokens/s that it says
THINKING_SECONDS = (10.0, 60.0)
SYSTEM_WORDS = 60
QUESTION_WORDS = (8, 24)
TURNS = (5, 6)
SETTLING_SECONDS = 8.0  # until every phone has been probed
WARM_UP_QUESTIONS = 3  # for each phone, so that its speeds are known as after an hour of use


@dataclass(frozen=True, slots=True)
class Scene:
    """One kind of load: so many users who talk at the same time to so many phones."""

    name: str
    phones: int
    users: int
    conversations: int  # one after the other, of each user
    fits: bool
    mixed: bool = False


SCENES = (
    Scene("fewer conversations than phones (9 on 12)", 12, 9, 5, fits=True),
    Scene("more conversations than phones (24 on 12)", 12, 24, 3, fits=False),
    Scene("far more conversations (36 on 12)", 12, 36, 2, fits=False),
    Scene("mixed fleet, fewer (9 on 12)", 12, 9, 5, fits=True, mixed=True),
    Scene("mixed fleet, more (24 on 12)", 12, 24, 3, fits=False, mixed=True),
)


class Nowhere(io.StringIO):
    """Takes the log and keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)


@dataclass(frozen=True, slots=True)
class Turn:
    """One answered question."""

    number: int  # 0: the first of its conversation
    first_token_seconds: float
    homecoming: HomecomingOutcome


@dataclass(slots=True)
class Heard:
    """All answers of one run."""

    turns: list[Turn] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    nodes: Counter[str] = field(default_factory=Counter)
    tokens_read: int = 0

    def summary(self) -> dict[str, float]:
        later = [turn for turn in self.turns if turn.number > 0]
        waits = [turn.first_token_seconds for turn in self.turns]
        home = sum(turn.homecoming == "home" for turn in later)
        return {
            "turns": float(len(self.turns)),
            "home_share": home / len(later) if later else 0.0,
            "median_s": median(waits),
            "p95_s": percentile(waits, 0.95),
            "later_median_s": median([turn.first_token_seconds for turn in later]),
            "tokens_read": float(self.tokens_read),
            "failures": float(sum(self.failures.values())),
        }


def phone_settings(count: int, *, mixed: bool) -> list[PhoneSettings]:
    """Equal phones, or a drawer full of different ones."""
    kinds: list[dict[str, Any]] = [{"prompt_cache": 1}]
    if mixed:
        kinds = [
            {"prompt_cache": 1},
            {"prompt_cache": 1, "prompt_tokens_per_second": 20.0, "tokens_per_second": 5.0},
            {"prompt_cache": 4, "version": "0.33.0", "prompt_tokens_per_second": 60.0, "tokens_per_second": 14.0},
            {"prompt_cache": 1, "version": "0.6.8"},
        ]
    usual: dict[str, Any] = {
        "prompt_tokens_per_second": PROMPT_SPEED,
        "tokens_per_second": SPEED,
        "load_seconds": 4.0,
        "keep_alive_seconds": 1e9,
        "log_size": 1,
    }
    return [PhoneSettings(**{**usual, **kinds[index % len(kinds)]}) for index in range(count)]


@asynccontextmanager
async def gateway_of(
    phones: Sequence[PhoneSettings], entries: Sequence[dict[str, Any]] = (), *, affinity: bool
) -> AsyncIterator[tuple[Gateway, Heard]]:
    """A gateway over such phones, everything else as shipped; its log goes nowhere."""
    heard = Heard()
    with tempfile.TemporaryDirectory(prefix="potluck-bench-") as folder:
        async with phones_of(phones) as started:
            fleet = write_fleet(Path(folder) / "phones.json", [phone.port for phone in started], entries)
            settings = Settings(phones_file=fleet, embedded_node="off", affinity=affinity, queue_timeout_s=1e6)
            async with running(settings, {}, Nowhere()) as gateway:
                await asyncio.sleep(SETTLING_SECONDS)
                yield gateway, heard
                heard.tokens_read = sum(phone.counters.tokens_read for phone in started)


def words(source: random.Random, count: int) -> str:
    return " ".join("".join(source.choices("abcdefghijklmnoprstuwyz", k=source.randint(2, 8))) for _ in range(count))


async def ask(gateway: Gateway, caller: str, messages: Sequence[Message], heard: Heard, number: int) -> str:
    """One question to its end; what was heard of it is written down, the text returned."""
    now = asyncio.get_running_loop().time
    asked, first = now(), None
    request = AskRequest(
        RequestId(f"{caller}-{asked:.3f}"), CallerId(caller), "chat", messages=list(messages), options={"seed": 1}
    )
    text: list[str] = []
    async for batch in gateway.dispatcher.stream(request):
        for event in batch:
            if isinstance(event, Token):
                first = now() if first is None else first
                text.append(event.text)
            elif isinstance(event, Done):
                heard.turns.append(Turn(number, (first or now()) - asked, event.homecoming))
                heard.nodes[event.node] += 1
            elif isinstance(event, Failed):
                heard.failures[event.error.code] += 1
    return "".join(text)


async def user(gateway: Gateway, scene: Scene, name: str, source: random.Random, heard: Heard) -> None:
    """Talks, thinks, talks again; then begins another conversation."""
    await asyncio.sleep(source.uniform(0, THINKING_SECONDS[1]))
    for conversation in range(scene.conversations):
        messages: list[Message] = [{"role": "system", "content": SYSTEM}]
        for number in range(source.randint(*TURNS)):
            question = words(source, source.randint(*QUESTION_WORDS))
            thinking = source.uniform(*THINKING_SECONDS)
            messages.append({"role": "user", "content": f"{name}, talk {conversation}: {question}"})
            text = await ask(gateway, name, messages, heard, number)
            messages.append({"role": "assistant", "content": text})
            await asyncio.sleep(thinking)


SYSTEM = words(random.Random(1), SYSTEM_WORDS)


async def talk(scene: Scene, seed: int, *, affinity: bool) -> Heard:
    phones = phone_settings(scene.phones, mixed=scene.mixed)
    async with gateway_of(phones, affinity=affinity) as (gateway, heard):
        await warm_up(gateway, len(phones), seed)
        sources = [random.Random(f"{seed}-{number}") for number in range(scene.users)]
        users = [user(gateway, scene, f"user-{number}", source, heard) for number, source in enumerate(sources)]
        await asyncio.gather(*users)
    return heard


async def warm_up(gateway: Gateway, phones: int, seed: int) -> None:
    """Some single questions to every phone: models are loaded, speeds are known."""
    source = random.Random(f"{seed}-warm-up")
    for _ in range(WARM_UP_QUESTIONS):
        questions = [[{"role": "user", "content": words(source, 40)}] for _ in range(phones)]
        await asyncio.gather(*(ask(gateway, f"w{at}", q, Heard(), 0) for at, q in enumerate(questions)))


async def single_turns(requests: int, at_once: int) -> dict[str, float]:
    """Strangers with one question each to phones of weights 1, 2 and 3: the share each weight got."""
    weights = [1, 2, 3, 1, 2, 3]
    fast = [PhoneSettings(tokens_per_second=400.0, prompt_cache=1, num_parallel=4, log_size=1) for _ in weights]
    entries: list[dict[str, Any]] = [{"weight": weight, "max_concurrency": 4} for weight in weights]
    async with gateway_of(fast, entries, affinity=True) as (gateway, heard):

        async def strangers(first: int) -> None:
            for number in range(first, requests, at_once):
                await ask(gateway, f"s{number}", [{"role": "user", "content": f"question {number}"}], heard, 0)

        await asyncio.gather(*(strangers(first) for first in range(at_once)))
    total = sum(heard.nodes.values())
    shares: dict[str, float] = {}
    for weight in (1, 2, 3):
        got = sum(heard.nodes[f"phone-{index}"] for index, one in enumerate(weights) if one == weight)
        shares[f"weight {weight}"] = got / total
    shares["largest error"] = max(abs(shares[f"weight {weight}"] / (weight / 6) - 1) for weight in (1, 2, 3))
    return shares


def measured(scene: Scene, seeds: int) -> dict[str, dict[str, float]]:
    """On and off over all seeds; medians of each figure, and of the ratios of pairs."""
    pairs = []
    for seed in range(seeds):
        off, on = (virtual_time.run(talk(scene, seed, affinity=affinity)).summary() for affinity in (False, True))
        pairs.append((off, on))
    result = {
        mode: {name: median([pair[index][name] for pair in pairs]) for name in pairs[0][index]}
        for index, mode in enumerate(("off", "on"))
    }
    result["ratio"] = {
        name: median([off[name] / on[name] for off, on in pairs if on[name]])
        for name in ("median_s", "p95_s", "later_median_s", "tokens_read")
    }
    return result


def judge(report: Report, scene: Scene, figures: dict[str, dict[str, float]]) -> None:
    ratios = figures["ratio"]
    failures = figures["on"]["failures"] + figures["off"]["failures"]
    report.targets.append(at_most(f"{scene.name}: failures", failures, 0))
    if scene.fits:
        report.targets.append(at_least(f"{scene.name}: later turns at home", figures["on"]["home_share"], 0.85))
        report.targets.append(at_least(f"{scene.name}: median falls by", ratios["median_s"], 5, " times"))
        return
    for name in ("median_s", "p95_s"):
        report.targets.append(at_most(f"{scene.name}: {name} of off", 1 / ratios[name], 1.05, " times"))


def print_scene(scene: Scene, figures: dict[str, dict[str, float]]) -> None:
    print(f"\n{scene.name}")
    names = ("home_share", "median_s", "p95_s", "later_median_s", "tokens_read", "turns", "failures")
    rows = [[mode, *(figures[mode].get(name) for name in names)] for mode in ("off", "on", "ratio")]
    print(table(["affinity", *names], rows), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.conversations", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, nargs="*", help=f"numbers from 0 to {len(SCENES) - 1}; all by default")
    parser.add_argument("--single-turns", type=int, default=1200, help="requests of the run about weights")
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    report = Report("conversations", vars(arguments))
    chosen = SCENES if arguments.scenes is None else [SCENES[number] for number in arguments.scenes]
    for scene in chosen:
        figures = measured(scene, arguments.seeds)
        report.figures[scene.name] = figures
        print_scene(scene, figures)
        judge(report, scene, figures)
    for at_once in (1, 6):
        shares = virtual_time.run(single_turns(arguments.single_turns, at_once))
        report.figures[f"single turns, {at_once} at once"] = shares
        name = f"single turns, {at_once} at once: largest error of a weight's share"
        report.targets.append(at_most(name, shares["largest error"], 0.02))
    report.notes.append("virtual time: seconds are those of the simulated phones, whatever machine this ran on")
    report.finish(write=not arguments.no_write)


if __name__ == "__main__":
    main()
