"""Every example runs against a real node, as its user would start it, and is explained."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PATIENCE_SECONDS = 90


def run(name, *arguments):
    variables = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env={**variables, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_an_answer_is_streamed(node):
    told, notes = run("relay_stream.py", node.place, node.model)
    assert told
    assert re.search(r"\d+ tokens in \d", notes)


def test_a_module_runs_on_the_node(node):
    told, _ = run("remote_module.py", node.place)
    first, second = map(float, re.findall(r": ([\d.]+)", told))
    assert first < second


def test_generate_and_pipeline(node):
    told, _ = run("remote_generate.py", node.place)
    assert re.search(r"ids: \[\[\d", told) and "text: The capital of France is" in told and "chat: " in told


def test_without_a_node_it_says_what_it_wants():
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "relay_stream.py")],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "relay_stream.py HOST[:PORT] [MODEL]" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_explained_and_run_here(path):
    assert f"`{path.name} " in (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert f'run("{path.name}"' in Path(__file__).read_text(encoding="utf-8")
