"""`potluck plan`: a real model's files, the real command; nothing is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gpu_node.device_profiles import Findings, FoundDevice, kept_text
from gpu_node.devices import parse_devices
from gpu_node.probing import FILE_NAME, key_of
from gpu_node.splitting import stage_threads
from potluck.cli import app
from potluck.cli.plan import counts_of, fetch_command
from potluck.errors import Misuse
from tests.fakes.tiny_model import write_tiny_gguf, write_tiny_model
from tests.potluck.cli.terminal import ROOT, run

runner = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny, with a context that takes more than the least budget."""
    made = write_tiny_model(tmp_path_factory.mktemp("plan") / "tiny")
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return made


def plan(*arguments: str, cache: Path | None = None, columns: int = 80) -> Result:
    where = {"POTLUCK_NODE_CACHE": str(cache)} if cache else {}
    return runner.invoke(app, ["plan", *arguments], env={"COLUMNS": str(columns), **where})


def test_one_device_and_two(folder: Path) -> None:
    whole = plan("-m", str(folder), "-d", "cpu:64MiB", "--context", "64")
    assert (whole.exit_code, whole.stderr) == (0, "")
    assert "1 stage (balanced), room for 8 contexts of 64 tokens: one device holds all of" in whole.stdout
    for columns in (60, 80, 120):
        split = plan("-m", str(folder), "-d", "cpu:64MiB,cpu:64MiB", "--layers", "1,1", columns=columns)
        lines = split.stdout.splitlines()
        assert (split.exit_code, split.stderr) == (0, "")
        assert "█" in split.stdout and "2 stages (by hand)" in split.stdout
        assert max(map(len, lines)) <= columns


def test_a_file_is_planned_before_the_node_has_seen_it(folder: Path, tmp_path: Path) -> None:
    file = write_tiny_gguf(folder, tmp_path / "Tiny.F32.gguf")
    done = plan("-m", str(file), "-d", "cpu:64MiB", "--json", cache=tmp_path / "cache")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["fits"], found["model"]) == (0, True, "tiny.f32")
    assert not (tmp_path / "cache").exists()


def test_speeds_give_a_plan_by_speed(folder: Path, tmp_path: Path) -> None:
    done = plan("-m", str(folder), "-d", "cpu:64MiB@0.5,cpu:64MiB@1", "--strategy", "profiled", "--json")
    found = json.loads(done.stdout)
    assert [one["layers"] for one in found["devices"] if one["device"] == "cpu:1"] == [found["layers"]]
    assert found["latency_seconds"] is None  # nothing was measured
    # What a probe found before is used; a GPU that it did not find has no speed.
    cpu = FoundDevice("cpu", 0, "a processor", "", "", "", 1 << 30, 1 << 30, 1e10, 1e10, 1e-6, 1)
    threads = stage_threads(parse_devices("cpu:1GiB,cpu:1GiB"))
    (tmp_path / FILE_NAME).write_text(kept_text(Findings((cpu,)), key_of(threads), time.time()))
    asked = ("-m", str(folder), "--strategy", "profiled", "--json", "-d")
    measured = plan(*asked, "cpu:64MiB@0.5,cpu:64MiB", cache=tmp_path)
    assert (measured.exit_code, measured.stderr) == (0, "")
    assert 0 < json.loads(measured.stdout)["latency_seconds"] < 60
    without = plan(*asked, "cpu:64MiB,cpu:64MiB,xpu:0:1GiB", cache=tmp_path)
    assert without.exit_code == 2
    assert "the speed of xpu:0, which could not be measured: state it, as in cpu:2GiB@1.0" in without.stderr


def test_what_does_not_fit_says_what_would(folder: Path) -> None:
    arguments = ("-m", str(folder), "-d", "cpu:1MiB")
    done = plan(*arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    said = done.stderr.splitlines()
    assert said[0].startswith("error: tiny does not fit: short by ")
    assert any("more to use would make it fit." in line for line in said[1:])
    told = plan(*arguments, "--json")
    found = json.loads(told.stdout)
    assert (told.exit_code, told.stderr, found["fits"]) == (1, "", False)
    assert found["short_bytes"] > 0 and found["remedies"]
    assert found["remedies"][0] not in found["message"]
    more = f"cpu:{1_048_576 + found['short_bytes']}"
    assert plan(*arguments[:2], "-d", more).exit_code == 0


def test_a_model_that_is_not_here_and_how_to_get_it(tmp_path: Path) -> None:
    done = plan("-m", "somebody/some-model", "-d", "cpu:1GiB", cache=tmp_path)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "somebody/some-model is not on this machine yet." in done.stderr
    assert "python -m gpu_node.model_store fetch somebody/some-model" in done.stderr
    named = plan("-d", "cpu:1GiB", cache=tmp_path)
    assert named.exit_code == 1
    assert fetch_command("default") in named.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-d", "gpu:0"), "names no device"),
        (("-d", "cuda:99"), "there is no cuda:99 here; to plan for one, state its memory, as in cuda:99:16GiB"),
        (("-d", "cpu:1GiB", "--layers", "1,x"), "is no split by hand"),
        (("-d", "cpu:64MiB", "--layers", "1,1"), "does not give 2 layers to at most 1 devices"),
        (("-d", "cpu:1GiB", "--context", "10000000"), "is more"),
    ],
)
def test_mistakes_are_one_sentence(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    done = plan("-m", str(folder), *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr and "Traceback" not in done.stderr


def test_an_unknown_model_is_a_mistake() -> None:
    done = plan("-m", "nonsense", "-d", "cpu:1GiB")
    assert done.exit_code == 2
    assert "the model 'nonsense' is unknown" in done.stderr


def test_splits_by_hand_are_numbers() -> None:
    assert counts_of(None) == ()
    assert counts_of("12, 18,0") == (12, 18, 0)
    for wrong in ("", "1,", "-1", "1.5", "٣", "9" * 6):
        with pytest.raises(Misuse):
            counts_of(wrong)


def test_nothing_heavy_is_imported(folder: Path) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['potluck', 'plan', '-m', {str(folder)!r}, '-d', 'cpu:64MiB']\n"
        "from potluck.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'gguf', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)


def test_a_pipe_that_knows_no_blocks_gets_signs_it_knows(folder: Path) -> None:
    done = run("http://127.0.0.1:9", "plan", "-m", str(folder), "-d", "cpu:64MiB", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii() and "# weights" in done.stdout
