"""The shared environment of the scripts: made once, installed when something changed, repaired when half made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.checkout import ROOT, Checkout, make_checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


def _installs(checkout: Checkout) -> list[str]:
    return [line for line in checkout.asked if line.startswith("-m pip install")]


def test_the_first_time_makes_the_environment_and_installs(checkout: Checkout) -> None:
    done = checkout.install()
    assert done.returncode == 0, done.stderr
    assert checkout.asked[0].startswith("-m venv")
    requirements, link = _installs(checkout)
    assert f"-r {checkout.folder}/requirements.txt" in requirements
    assert "--no-deps --no-build-isolation --no-index -e" in link


def test_the_second_time_asks_python_for_nothing(checkout: Checkout) -> None:
    checkout.install()
    done = checkout.install()
    assert (done.stdout, done.stderr, checkout.asked) == ("installed\n", "", [])


def test_changed_requirements_are_installed_into_the_same_environment(checkout: Checkout) -> None:
    checkout.install()
    with (checkout.folder / "requirements.txt").open("a") as file:
        file.write("another==1\n")
    checkout.install()
    assert len(_installs(checkout)) == 2
    assert not any(line.startswith("-m venv") for line in checkout.asked)


def test_each_set_of_requirements_is_remembered_by_itself(checkout: Checkout) -> None:
    checkout.install("requirements.txt")
    checkout.install("requirements.txt", "requirements-dev.txt")
    assert "requirements-dev.txt" in _installs(checkout)[0]
    checkout.install("requirements.txt")
    assert checkout.asked == []


def test_pins_that_are_installed_already_are_not_asked_for(checkout: Checkout) -> None:
    done = checkout.install(STAND_IN_MET="0")
    assert done.returncode == 0
    assert ["-e " in line for line in _installs(checkout)] == [True]
    assert "Installing" not in done.stderr


@pytest.mark.parametrize(("pin", "status"), [("", 0), ("pytest==0.1", 1), ("no-such-package==1", 1)])
def test_pins_are_compared_with_what_is_installed(tmp_path: Path, pin: str, status: int) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text((ROOT / "requirements.txt").read_text() + pin + "\n")
    command = [sys.executable, str(ROOT / "scripts/lib/pins_met.py"), str(file)]
    assert subprocess.run(command, check=False).returncode == status


def test_a_failed_install_is_told_and_tried_again(checkout: Checkout) -> None:
    failed = checkout.install(STAND_IN_PIP_STATUS="1")
    assert failed.returncode == 1
    assert "could not be installed" in failed.stderr
    assert "installed\n" not in failed.stdout
    assert checkout.install().returncode == 0
    assert len(_installs(checkout)) == 2


def test_a_half_made_environment_is_made_anew(checkout: Checkout) -> None:
    checkout.install()
    (checkout.venv / "half-made").touch()
    done = checkout.install()
    assert "incomplete" in done.stderr
    assert checkout.asked[0].startswith("-m venv --clear")
    assert not (checkout.venv / "half-made").exists()


def test_an_empty_folder_in_its_place_is_made_anew(checkout: Checkout) -> None:
    checkout.venv.mkdir()
    assert checkout.install().returncode == 0
    assert (checkout.venv / "bin" / "python").exists()


def test_a_moved_folder_is_linked_anew(checkout: Checkout) -> None:
    checkout.install()
    moved = Checkout(checkout.folder.rename(checkout.folder.with_name("moved")))
    moved.install()
    assert any(f"-e {moved.folder}" in line for line in moved.asked)


def test_another_name_of_a_new_enough_python_is_found(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path, python_names=("python3.12",))
    done = checkout.install()
    assert done.returncode == 0
    assert "python3.12" in done.stderr


def test_the_python_that_the_user_names_comes_first(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path, python_names=("python3", "mine"))
    assert "bin/mine" in checkout.install(PYTHON="mine").stderr


def test_no_python_at_all_is_explained(tmp_path: Path) -> None:
    done = make_checkout(tmp_path, python_names=()).install()
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed; found: none" in done.stderr
    assert "brew install" in done.stderr


def test_too_old_a_python_is_named_with_its_version(checkout: Checkout) -> None:
    done = checkout.install(STAND_IN_UNFIT="1", STAND_IN_OLD="1", STAND_IN_VERSION="3.9.6")
    assert done.returncode == 1
    assert "version 3.9.6" in done.stderr
    assert not checkout.venv.exists()


def test_a_python_without_the_part_for_environments_is_explained(checkout: Checkout) -> None:
    done = checkout.install(STAND_IN_UNFIT="1")
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr


def test_a_second_install_waits_for_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "requirements.txt"
    folder.write_text("")
    # Two takers of the real lock: the second one says that it waits, and has it as soon as the first is gone.
    code = '. "$0"; ROOT=$1; take_lock python3; echo held; read -r _'
    command = ["bash", "-c", code, str(ROOT / "scripts/lib/environment.sh"), str(tmp_path)]
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    with subprocess.Popen(command, **pipes) as first:
        assert first.stdout.readline() == "held\n"
        with subprocess.Popen(command, **pipes) as second:
            assert "waiting for it" in second.stderr.readline()
            first.communicate("\n")
            assert second.stdout.readline() == "held\n"
            second.communicate("\n")


@pytest.mark.parametrize("how", ["uninterrupted", ""])
def test_ctrl_c_ends_a_script_whatever_its_child_makes_of_it(checkout: Checkout, how: str) -> None:
    child = 'bash -c "kill -INT $$; exit 1"'  # a program that takes its own interruption for a failure
    done = checkout.run("-c", f". scripts/lib/environment.sh; {how} {child} || echo 'went on'; echo 'and on'")
    assert (done.returncode, done.stdout) == (130, "")


def test_what_takes_a_moment_is_not_interrupted(checkout: Checkout) -> None:
    done = checkout.run("-c", ". scripts/lib/environment.sh; uninterrupted bash -c 'kill -INT $$; echo done'")
    assert (done.returncode, done.stdout) == (0, "done\n")
