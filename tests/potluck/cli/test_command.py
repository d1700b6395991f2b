"""The command as a whole: what it offers, and what starting it costs."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import potluck
from potluck.cli import app
from tests.potluck.cli.terminal import ROOT, run

runner = CliRunner()
# What makes a command slow to start, and what only a subcommand that needs it may import.
HEAVY = {"torch", "transformers", "server", "gpu_node", "uvicorn", "httpx", "aiohttp", "starlette", "pydantic", "rich"}


def test_version():
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"potluck {potluck.__version__}\n")


def test_help_names_every_command():
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("serve", "node", "ask", "chat", "status", "discover", "plan", "devices"):
        assert f"\n  {command} " in result.stdout


@pytest.mark.parametrize("command", ["serve", "ask", "chat", "status", "discover", "plan", "devices"])
def test_every_command_has_help_of_its_own(command):
    result = runner.invoke(app, [command, "-h"])
    assert result.exit_code == 0
    assert f"potluck {command}" in result.stdout or "Usage:" in result.stdout
    assert "--help" in result.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "sys.argv = ['potluck', '--help']\n"
        "from potluck.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "Usage: potluck" in done.stdout
    assert HEAVY & set(done.stderr.split()) == set()


def test_the_module_is_the_command():
    done = run("http://127.0.0.1:9", "--version")
    assert (done.returncode, done.stdout) == (0, f"potluck {potluck.__version__}\n")
    wrong = run("http://127.0.0.1:9", "aks")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
