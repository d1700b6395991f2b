"""How the command ends where no part of it has begun, or none looks after it: Ctrl-C, and a full disk behind stdout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.potluck.cli.terminal import ROOT

# Ctrl-C in the moment in which the module of that name is looked for.
INTERRUPTED_AT = """
import sys
class Interruption:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interruption())
{code}
"""
COMMAND = "sys.argv = ['potluck', 'serve', '--port', '0']\nfrom potluck.__main__ import main\nmain()"
NODE = "from gpu_node.__main__ import main\nsys.exit(main(['--port', '0', '--no-relay'], {}))"


@pytest.mark.parametrize(
    ("name", "code"),
    [("typer", COMMAND), ("potluck.cli", COMMAND), ("server.main", COMMAND), ("gpu_node.node", NODE)],
)
def test_an_import_that_is_interrupted_ends_quietly(name: str, code: str) -> None:
    interrupted = INTERRUPTED_AT.format(name=name, code=code)
    done = subprocess.run([sys.executable, "-c", interrupted], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_list_that_cannot_be_written_is_told() -> None:
    with open("/dev/full", "w") as full:
        listing = [sys.executable, "-m", "potluck", "models", "recommend"]
        done = subprocess.run(listing, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "error: cannot write the answer: No space left on device.\n")
