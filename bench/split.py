"""One model over several CPU devices beside one device: tokens/s, time between tokens, long prompts, a lost stage.

Every way is a process of its own (`contenders/potluck_split.py`) whose stages are processes too, all on the same cores;
they take turns within each round, and prompts are new in every round. One device has the better of one thread and two,
the stages have no more in sum. Budgets are such that the wanted number of devices is needed. Then: what a hop costs,
what the plan had predicted, how long answers are silent when a stage is killed, and whether plans by measured paces
beat plans by memory where one device has half of the other's speed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import links
from bench.contenders.potluck_split import Spec, need_bytes
from bench.contenders.protocol import Load, Outcome
from bench.rig.contender import Contender, Recipe
from bench.rig.models import default_gguf
from bench.rig.report import Report, Target, at_least, at_most, median, table
from gpu_node.probing import FILE_NAME
from gpu_node.split import Strategy

ONE, TWO_THREADS = "one device, 1 thread", "one device, 2 threads"
STAGES = {1: "1 stage", 2: "2 stages", 3: "3 stages"}
BY_MEMORY: Strategy = "vram"
BY_PACE: Strategy = "profiled"
STRATEGIES = (BY_MEMORY, BY_PACE)
EQUAL, SLOWER = "equal", "half as fast"
# Of what one device needs for all of it, so that so many devices are needed: each end has a table of its own.
SHARES = {1: 1.1, 2: 0.75, 3: 0.46}
SPARE_SHARE = 0.66  # of three devices two are enough
PROMPT_TOKENS, PREFILL_TOKENS = 16, 1500
KIB64 = 64 << 10
WANTED_SHARE, WANTED_HOP_US, WANTED_RECOVERY_SECONDS = 0.95, 150.0, 5.0
NOISE, FASTER = 0.95, 1.05  # what `profiled` reaches of `vram`'s speed: with equal devices, and with unequal ones


@dataclass(frozen=True, slots=True)
class Work:
    """`answers` of `tokens` each, all at once, to new prompts."""

    name: str
    answers: int
    tokens: int
    prompt: int = PROMPT_TOKENS

    def load(self, draw: random.Random, tokens: int = 0) -> Load:
        prompts = [[draw.randrange(10, 4000) for _ in range(self.prompt)] for _ in range(self.answers)]
        return Load(prompts, [tokens or self.tokens] * self.answers)

    def rate(self, outcome: Outcome) -> float:
        """Tokens/s: of a prompt that is read, or of answers while all of them run."""
        if self.tokens == 1:
            return self.prompt / outcome.seconds
        begun, ended = max(row[0] for row in outcome.stamps), min(row[-1] for row in outcome.stamps)
        told = sum(begun < stamp <= ended for row in outcome.stamps for stamp in row)
        return told / (ended - begun) if ended > begun else 0.0


ALONE, EIGHT, MANY = Work("decode, 1", 1, 64), Work("decode, 8", 8, 64), Work("decode, 32", 32, 32)
PREFILL = Work("prefill", 1, 1, PREFILL_TOKENS)
WORKS = (ALONE, EIGHT, MANY, PREFILL)
KILLED = Work("killed", 4, 400)


@dataclass(slots=True)
class Seen:
    rates: list[float]
    gaps_ms: list[float]


Table = dict[str, dict[str, Seen]]  # work, contender


def measure(contenders: Sequence[Contender], works: Sequence[Work], rounds: int) -> Table:
    """Round 0 warms up, with short answers."""
    measured: Table = {work.name: {one.name: Seen([], []) for one in contenders} for work in works}
    for turn in range(rounds + 1):
        for work in works:
            load = work.load(random.Random(f"{work.name} {turn}"), 0 if turn else min(work.tokens, 4))
            first = turn % len(contenders)
            for contender in (*contenders[first:], *contenders[:first]):
                outcome = contender.run(load)
                _check(contender.name, load, outcome)
                if turn:
                    seen = measured[work.name][contender.name]
                    seen.rates.append(work.rate(outcome))
                    seen.gaps_ms += outcome.gaps_ms
                    print(f"  round {turn}, {work.name}, {contender.name}: {seen.rates[-1]:.1f}/s", file=sys.stderr)
    return measured


def _check(name: str, load: Load, outcome: Outcome) -> None:
    if [len(tokens) for tokens in outcome.tokens] != list(load.outputs):
        raise SystemExit(f"{name} wrote {[len(tokens) for tokens in outcome.tokens]} tokens, not {load.outputs}")


def devices(sizes: Sequence[int], speeds: Sequence[float]) -> str:
    return ",".join(f"cpu:{size}@{speed}" for size, speed in zip(sizes, speeds, strict=True))


def ways(need: int) -> dict[str, Spec]:
    """One device, and so many stages; together the stages have two threads."""
    found = {ONE: Spec(1), TWO_THREADS: Spec(2)}
    for stages, name in STAGES.items():
        found[name] = Spec(1 if stages == 1 else 2, devices([int(need * SHARES[stages])] * stages, [1.0] * stages))
    return found


def unequal(need: int, slower: float) -> dict[str, Spec]:
    sizes = [int(need * SHARES[2])] * 2
    return {name: Spec(2, devices(sizes, [1.0, slower]), name) for name in STRATEGIES}


@contextmanager
def running(specs: Mapping[str, Spec], arguments: argparse.Namespace) -> Iterator[list[Contender]]:
    contenders: list[Contender] = []
    try:
        for name, spec in specs.items():
            words = replace(spec, findings=str(arguments.findings)).words()
            recipe = Recipe(name, sys.executable, "potluck_split", (str(arguments.gguf), words))
            contenders.append(Contender(recipe, arguments.cores, spec.threads))
        yield contenders
    finally:
        for contender in contenders:
            contender.close()


def compare(need: int, arguments: argparse.Namespace) -> dict[str, Any]:
    with running(ways(need), arguments) as contenders:
        measured = measure(contenders, WORKS, arguments.rounds)
        told = {}
        for one in contenders:
            one.run(ALONE.load(random.Random("predicted")))  # the latest steps are those of one answer
            told[one.name] = one.ask({"word": "status"})
        return {**rates(measured), "pipelines": told}


def rates(measured: Table) -> dict[str, Any]:
    return {
        "tokens_per_second": {
            w: {name: median(seen.rates) for name, seen in row.items()} for w, row in measured.items()
        },
        "rounds": {work: {name: seen.rates for name, seen in row.items()} for work, row in measured.items()},
        "milliseconds_between_tokens": {
            work: {name: median(seen.gaps_ms) for name, seen in row.items() if seen.gaps_ms}
            for work, row in measured.items()
        },
    }


def strategies(need: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Plans by memory and by pace, on equal devices and where one has half of the speed."""
    found = {}
    for word, slower in ((EQUAL, 1.0), (SLOWER, 0.5)):
        with running(unequal(need, slower), arguments) as contenders:
            figures = rates(measure(contenders, (ALONE, EIGHT), arguments.rounds))
            stages = {one.name: one.ask({"word": "status"})["stages"] for one in contenders}
        layers = {name: [stage["behind_layer"] - stage["first_layer"] for stage in row] for name, row in stages.items()}
        found[word] = {**figures, "layers": layers}
    return found


def kills(need: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Three devices, two of which are enough; a stage is killed while four answers run. Anew each time."""
    spec = Spec(2, devices([int(need * SPARE_SHARE)] * 3, [1.0] * 3))
    found = []
    for turn in range(arguments.deaths):
        with running({"killed": spec}, arguments) as (one,):
            load = KILLED.load(random.Random(f"killed {turn}"))
            told = one.ask({"word": "kill", "load": asdict(load), "stage": turn % 2})
            found.append({**told, "load_seconds": one.facts["summary"]["load_seconds"]})
    return found


def hop(need: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Microseconds of 64 KB by a link, and by a bare socket."""
    with tempfile.TemporaryDirectory() as folder:
        found = links.measure_size(Path(folder), KIB64, arguments.rounds, 100)
    return {name: found[name]["median_us"] for name in ("unix link", "unix bare")}


def judge(figures: Mapping[str, Any]) -> list[Target]:
    """Of the parts that were measured."""
    found = []
    for work in (EIGHT, MANY) if "ways" in figures else ():
        row = figures["ways"]["tokens_per_second"][work.name]
        share = row[STAGES[2]] / max(row[ONE], row[TWO_THREADS])
        found.append(at_least(f"{work.name}: two equal stages, share of one device", share, WANTED_SHARE))
    if "hop_us" in figures:
        found.append(at_most("a hop of 64 KB", figures["hop_us"]["unix link"], WANTED_HOP_US, " us"))
    for word, told in figures.get("strategies", {}).items():
        for name, row in told["tokens_per_second"].items():
            share, bound = row[BY_PACE] / row[BY_MEMORY], NOISE if word == EQUAL else FASTER
            found.append(at_least(f"{name}, {word}: profiled, share of vram", share, bound))
    for killed in figures.get("kills", ()):
        beyond = killed["silence_seconds"] - killed["load_seconds"]
        found.append(at_most("silence after a kill, beyond the load", beyond, WANTED_RECOVERY_SECONDS, " s"))
        found.append(at_least("the answers are those of a calm run", float(killed["same"]), 1.0))
    return found


def show(figures: Mapping[str, Any]) -> None:
    if "ways" in figures:
        _show_ways(figures["ways"])
    for word, told in figures.get("strategies", {}).items():
        rows = [[f"{word}, {work}", *row.values()] for work, row in told["tokens_per_second"].items()]
        print(table([f"layers {told['layers']}", *STRATEGIES], rows))
    if "kills" in figures:
        fields = ("silence_seconds", "recovery_seconds", "load_seconds")
        rows = [["", *(one[name] for name in fields)] for one in figures["kills"]]
        print(table(["a stage is killed", *fields], rows))


def _show_ways(told: Mapping[str, Any]) -> None:
    speeds, gaps = told["tokens_per_second"], told["milliseconds_between_tokens"]
    names = list(speeds[ALONE.name])
    print(table(["tokens/s", *names], [[work, *row.values()] for work, row in speeds.items()]))
    print(table(["ms between tokens", *names], [[work, *row.values()] for work, row in gaps.items() if row]))
    for name, pipeline in told["pipelines"].items():
        if pipeline:
            words = ("depth", "predicted_step_seconds", "measured_step_seconds")
            print(f"{name}:", *(f"{word} {pipeline[word]}" for word in words))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.split", description=__doc__)
    parser.add_argument("--gguf", type=Path, default=default_gguf(), help="SmolLM2-135M-Instruct as Q4_1 GGUF")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--deaths", type=int, default=2)
    parser.add_argument("--cores", default="0,1", help="taskset's list of cores that everything is pinned to")
    parser.add_argument("--parts", nargs="+", choices=("ways", "strategies", "kills", "hop_us"), help="not all of it")
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    if arguments.gguf is None:
        raise SystemExit("there is no default model: python -m gpu_node.model_store fetch default")
    report = Report("split", {**vars(arguments), "gguf": True})
    need = need_bytes(arguments.gguf)
    parts = {"ways": compare, "strategies": strategies, "kills": kills, "hop_us": hop}
    report.figures = {"need_bytes": need}
    with tempfile.TemporaryDirectory() as folder:
        arguments.findings = Path(folder) / FILE_NAME  # probed once, by the first that needs it
        for name in arguments.parts or parts:
            report.figures[name] = parts[name](need, arguments)
    show(report.figures)
    report.targets += judge(report.figures)
    report.finish(write=not arguments.no_write)


if __name__ == "__main__":
    main()
