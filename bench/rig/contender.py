"""A contender as a child process on its own core: started, asked in turn, ended. Knows nothing of what is measured."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.contenders.protocol import Load, Outcome

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one contender is started: which Python, which program, with which words behind it."""

    name: str
    python: str
    program: str  # module below bench.contenders
    arguments: tuple[str, ...]


class Contender:
    def __init__(self, recipe: Recipe, cores: str, threads: int) -> None:
        """Raises `RuntimeError` with the end of the program's own words when it cannot start."""
        self.name = recipe.name
        command = ["taskset", "-c", cores, recipe.python, "-m", f"bench.contenders.{recipe.program}", *recipe.arguments]
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the child
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            cwd=ROOT,
            env=_environment(os.environ, threads),
        )
        self.facts = self._hear()

    def run(self, load: Load) -> Outcome:
        return Outcome(**self.ask(asdict(load)))

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """What is no load has a "word"."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(message).encode() + b"\n")
        self._child.stdin.flush()
        return self._hear()

    def close(self) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.close()
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        self._words.close()

    def _hear(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._words.seek(0)
            told = self._words.read().decode(errors="replace").strip().splitlines()[-3:]
            raise RuntimeError(f"{self.name} ended: {' / '.join(told)}")
        message: dict[str, Any] = json.loads(line)
        return message


def _environment(own: Mapping[str, str], threads: int) -> dict[str, str]:
    """Whatever library counts the cores by itself is told how many threads it may use."""
    names: Sequence[str] = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**own, **dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false"}
