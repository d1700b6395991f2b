"""The results of all measurements as Markdown: figure against target, with date, machine and load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.rig.report import RESULTS, rounded

VERDICTS = {True: "yes", False: "**no**"}


def section(result: dict[str, Any]) -> str:
    """One result: its head and a line per target."""
    machine, load = result["machine"], result["load_average"]
    head = (
        f"### {result['name']}\n\n`{result['command']}`, {result['date'][:16]} UTC, {machine['cpu']}, "
        f"{machine['cores']} cores, Python {machine['python']}; load average {load['before']} before, "
        f"{load['after']} after.\n"
    )
    rows = [
        f"| {target['name']} | {rounded(target['got'])} | {target['wanted']} | {VERDICTS[target['reached']]} |"
        for target in result["targets"]
    ]
    notes = "".join(f"\n- {note}" for note in result["notes"])
    return "\n".join([head, "| what | measured | wanted | reached |", "|---|---|---|---|", *rows]) + notes


def main() -> None:
    for path in sorted(Path(RESULTS).glob("*.json")):
        print(section(json.loads(path.read_text(encoding="utf-8"))), end="\n\n")


if __name__ == "__main__":
    main()
