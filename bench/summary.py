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


def variants(figures: dict[str, Any]) -> str:
    """The table of `gateway`: every variant under every load."""
    rows = []
    loads: list[str] = []
    for name, row in figures.items():
        cells = {load: cell for load, cell in row.items() if isinstance(cell, dict)}
        loads = list(cells)
        others = [row.get(key) for key in ("added_median_ms", "added_p99_ms", "rss_mib")]
        rows.append([name, *(cell["per_second"] for cell in cells.values()), *others])
    head = ["variant", *(f"{load}/s" for load in loads), "added median ms", "added p99 ms", "MiB"]
    lines = ["| " + " | ".join(rounded(value) for value in row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines])


def main() -> None:
    for path in sorted(Path(RESULTS).glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        print(section(result), end="\n\n")
        if "variants" in result["figures"]:
            print(variants(result["figures"]["variants"]), end="\n\n")


if __name__ == "__main__":
    main()
