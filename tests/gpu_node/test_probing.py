"""The probe's child: bounded, kept, asked again without what hung. Played by children that import nothing."""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from gpu_node.device_profiles import Findings, FoundDevice, LeftOut
from gpu_node.probing import FILE_NAME, ProbeRun, ProbeTimes, Probing, key_of, probed

CPU = FoundDevice("cpu", 0, "a processor", "AMD", "", "", 1000, 400, 2e10, 1e11, 3e-6, 2)
CARD = replace(CPU, kind="cuda", name="a card", threads=None)
PRELUDE = f"""
import json, os, sys, time
skip = sys.argv[sys.argv.index("--skip") + 1].split(",")
def tell(**words): print(json.dumps(words), flush=True)
open(os.environ["DIARY"], "a").write(" ".join(sys.argv[1:]) + "\\n")
CPU, CARD = {asdict(CPU)!r}, {asdict(CARD)!r}
tell(asking="torch")
"""
GOOD = "print('a word of a library', flush=True); tell(asking='cpu'); tell(device=CPU); tell(done=True)"
PATIENT = ProbeTimes(60.0, 60.0)
QUICK = ProbeTimes(60.0, 3.0)


def run_of(tmp_path: Path, script: str, **more: Any) -> ProbeRun:
    environ = {**os.environ, "DIARY": str(tmp_path / "diary")}
    return ProbeRun((sys.executable, "-S", "-c", PRELUDE + script), environ=environ, **more)


def runs(tmp_path: Path) -> list[str]:
    return (tmp_path / "diary").read_text().splitlines()


def test_what_it_says_is_found_and_the_rest_is_not_ours(tmp_path: Path) -> None:
    assert probed(run_of(tmp_path, GOOD, threads=3)) == Findings((CPU,))
    assert runs(tmp_path) == ["--threads 3 --skip "]


def test_a_driver_that_hangs_costs_its_device_only(tmp_path: Path) -> None:
    script = (
        "tell(asking='cpu'); tell(device=CPU); tell(asking='cuda:0')\n"
        "if 'cuda:0' not in skip: time.sleep(600)\n"
        "tell(asking='cuda:1'); tell(device={**CARD, 'number': 1}); tell(done=True)"
    )
    found = probed(run_of(tmp_path, script, times=QUICK))
    assert found == Findings((CPU, replace(CARD, number=1)), (LeftOut("cuda:0", "it did not answer within 3 s"),))
    assert [line.partition("--skip ")[2] for line in runs(tmp_path)] == ["", "cuda:0"]


def test_a_driver_that_ends_the_process_costs_its_device_only(tmp_path: Path) -> None:
    script = (
        "tell(asking='cpu'); tell(device=CPU); tell(asking='xpu')\nif 'xpu' not in skip: os._exit(11)\ntell(done=True)"
    )
    found = probed(run_of(tmp_path, script))
    assert found == Findings((CPU,), (LeftOut("xpu", "the probe ended while it asked, with code 11"),))


def test_broken_output_is_told(tmp_path: Path) -> None:
    script = "tell(asking='cpu'); print('{\"device\": 3', flush=True); tell(device={'kind': 'cpu'}); tell(done=True)"
    found = probed(run_of(tmp_path, script))
    assert found.devices == () and [one.what for one in found.left_out] == ["cpu", "cpu"]
    assert "cannot be read" in found.left_out[0].why


@pytest.mark.parametrize(
    ("script", "times", "why"),
    [
        (
            "tell(left_out={'what': 'torch', 'why': 'ImportError: no torch'}); sys.exit(1)",
            PATIENT,
            "ImportError: no torch",
        ),
        ("time.sleep(600)", ProbeTimes(3.0, 3.0), "it did not answer within 3 s"),
        ("sys.exit(3)", PATIENT, "the probe ended while it asked, with code 3"),
    ],
)
def test_without_torch_there_is_nothing_and_a_word_why(
    tmp_path: Path, script: str, times: ProbeTimes, why: str
) -> None:
    assert probed(run_of(tmp_path, script, times=times)) == Findings((), (LeftOut("torch", why),))
    assert len(runs(tmp_path)) == 1


def test_a_command_that_is_not_there_is_one_more_reason(tmp_path: Path) -> None:
    found = probed(ProbeRun((str(tmp_path / "nothing"),)))
    assert found.devices == () and "cannot be started" in found.left_out[0].why


def probing(tmp_path: Path, script: str = GOOD, key: str = "k", now: float = 100.0) -> Probing:
    run, ticks = run_of(tmp_path, script), itertools.count(step=31)
    return Probing(tmp_path / "sub" / FILE_NAME, run, lambda _: {"key": key}, lambda: now, lambda: next(ticks))


def test_it_is_asked_once_and_kept_between_starts(tmp_path: Path) -> None:
    first = probing(tmp_path)
    assert first.known is None
    assert first.findings() == first.findings() == first.known == Findings((CPU,))
    assert probing(tmp_path).findings() == Findings((CPU,))
    assert len(runs(tmp_path)) == 1
    assert [one.name for one in (tmp_path / "sub").iterdir()] == [FILE_NAME], "nothing is left beside it"
    first.findings(refresh=True)
    assert len(runs(tmp_path)) == 2


def test_who_refreshes_again_at_once_gets_what_is_known(tmp_path: Path) -> None:
    found = Probing(tmp_path / FILE_NAME, run_of(tmp_path, GOOD), lambda _: {}, clock=lambda: 5.0)
    assert found.findings() is found.findings(refresh=True)
    assert len(runs(tmp_path)) == 1


def test_other_devices_and_old_files_are_asked_anew(tmp_path: Path) -> None:
    probing(tmp_path).findings()
    probing(tmp_path, key="another").findings()
    probing(tmp_path, key="another", now=100.0 + 25 * 3600).findings()
    assert len(runs(tmp_path)) == 3


def test_a_torn_file_is_as_good_as_none(tmp_path: Path) -> None:
    probing(tmp_path).findings()
    file = tmp_path / "sub" / FILE_NAME
    file.write_text(file.read_text()[:40])
    assert probing(tmp_path).findings() == Findings((CPU,))
    assert json.loads(file.read_text())["key"] == {"key": "k"}


def test_where_nothing_can_be_kept_it_works_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "sub").write_text("a file")
    with caplog.at_level(logging.INFO, "gpu_node"):
        assert probing(tmp_path).findings() == Findings((CPU,))
    assert "measured at each start" in caplog.text


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    assert probing(tmp_path, "sys.exit(3)").findings().devices == ()
    assert not (tmp_path / "sub").exists()


def test_what_measurements_depend_on() -> None:
    assert key_of(1) != key_of(2) and key_of(1)["torch"]
    json.dumps(key_of(0))
