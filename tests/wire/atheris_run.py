"""Throws mutated bytes at the protocol for as long as wanted: `python -m tests.wire.atheris_run --seconds 300`.

Coverage of `wire` guides the mutations (atheris, libFuzzer); it begins from the vectors. What breaks a target is
written to the folder of `--findings` and ends the run with an error; the same file as an argument shows it again. The
tests throw a few hundred mutations of the same seeds at the same targets, without atheris.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["main"]

LARGEST_INPUT = 2048


def main(arguments: Sequence[str]) -> None:
    """Returns never: libFuzzer ends the process."""
    chosen = _parser().parse_args(arguments)
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["wire"]):
        targets = importlib.import_module("tests.wire.fuzz_targets")
    names = list(targets.TARGETS)
    target = targets.TARGETS[chosen.target] if chosen.target else targets.run
    with tempfile.TemporaryDirectory() as folder:
        corpus = chosen.corpus or Path(folder)
        for number, (name, data) in enumerate(targets.SEEDS):
            if chosen.target in (None, name):
                lead = b"" if chosen.target else bytes((names.index(name),))
                (corpus / f"seed-{number}").write_bytes(lead + data)
        fuzzer = ["fuzz", f"-max_total_time={chosen.seconds}", f"-max_len={LARGEST_INPUT}", "-timeout=20"]
        fuzzer += ["-rss_limit_mb=1024", f"-artifact_prefix={chosen.findings}/", f"-runs={chosen.runs}"]
        atheris.Setup([*fuzzer, *map(str, chosen.again or [corpus])], target)
        atheris.Fuzz()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.wire.atheris_run", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="how long")
    parser.add_argument("--runs", type=int, default=-1, help="how many inputs at most; -1: no bound")
    parser.add_argument("--target", help="only this one; without it all, by the first byte")
    parser.add_argument("--corpus", type=Path, help="a folder that keeps what was found to be new; else a passing one")
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()), help="where faults are written")
    parser.add_argument("again", nargs="*", type=Path, help="files to run once each instead of fuzzing")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
