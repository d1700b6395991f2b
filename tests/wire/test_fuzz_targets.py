"""The targets of the fuzzer hold for its seeds and for mutations of them; the long run is `atheris_run`."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.fuzz_targets import SEEDS, TARGETS, run

OF_TARGET = {target: [data for name, data in SEEDS if name == target] for target in TARGETS}
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("target", TARGETS)
def test_the_seeds(target: str) -> None:
    assert OF_TARGET[target]
    for data in OF_TARGET[target]:
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_mutations_of_the_seeds(target: str) -> None:
    dice = random.Random(target)  # the same ones every time
    for _ in range(150):
        TARGETS[target](mutated(dice.choice(OF_TARGET[target]), dice.choice(OF_TARGET[target]), dice))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    run(data)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 255), st.lists(st.binary(min_size=3, max_size=9), max_size=12))
def test_stories_of_a_connection(setting: int, moves: list[bytes]) -> None:
    TARGETS["connection"](bytes((setting,)) + b"".join(moves))


def mutated(data: bytes, other: bytes, dice: random.Random) -> bytes:
    """As fuzzers do: bytes changed, left out, put in, repeated, or the end of another seed."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randint(0, len(changed))
        match dice.randrange(5):
            case 0:
                changed[at : at + 1] = bytes((dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)]),))
            case 1:
                del changed[at : at + dice.randint(1, 8)]
            case 2:
                changed[at:at] = dice.randbytes(dice.randint(1, 8))
            case 3:
                changed[at:at] = changed[at : at + dice.randint(1, 16)]
            case _:
                changed[at:] = other[dice.randint(0, len(other)) :]
    return bytes(changed)


def test_every_target_has_seeds() -> None:
    assert set(Counter(name for name, _ in SEEDS)) == set(TARGETS)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_the_fuzzer_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.wire.atheris_run", "--runs", "50", "--seconds", "20", "--target", "tensor"]
    command += ["--findings", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Done" in done.stderr and list(tmp_path.iterdir()) == []
