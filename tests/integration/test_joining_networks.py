"""A phone joins over a real network: gateway and phone are programs, each in a network namespace of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.network_namespaces import Lab, LabError, LabHost, namespaces, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "never")

GATEWAY, PHONE, MOVED = "10.78.0.1", "10.78.0.2", "10.78.0.3"
PATIENCE_SECONDS = 60.0
HERE = "http://127.0.0.1:8000"
SERVE = ("-m", "uvicorn", "server:app", "--host", "0.0.0.0", "--port", "8000")
BODY = {"id": "c" * 32, "name": "Pixel 5", "port": 11434, "chip": "SM8550", "mode": "native", "tokens_per_second": 12.5}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with namespaces() as made:
        yield made


def settings_in(folder: Path) -> dict[str, str]:
    return {
        "POTLUCK_PHONES_FILE": str(folder / "phones.json"),
        "POTLUCK_EMBEDDED_NODE": "off",
        "POTLUCK_DISCOVERY": "off",
        "POTLUCK_LOG_FORMAT": "json",
    }


@contextmanager
def program(host: LabHost, folder: Path, *words: str, **environ: str) -> Iterator[Path]:
    """Killed at the end; gives the file that its output goes to."""
    out = folder / f"{words[1].rpartition('.')[2]}.log"
    variables = {**os.environ, "PYTHONPATH": os.getcwd(), **environ}
    with out.open("wb") as file:
        started = subprocess.Popen(
            host.command([sys.executable, *words]), cwd=os.getcwd(), env=variables, stdout=file, stderr=file
        )
        try:
            yield out
        finally:
            started.kill()
            started.wait()


def told(host: LabHost, *words: str) -> Any:
    return json.loads(host.run("curl", "-sS", "--max-time", "60", *words))


def until_answered(host: LabHost, url: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            host.run("curl", "-fsS", "--max-time", "5", "-o", "/dev/null", url)
            return
        except LabError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)  # programs of their own take real time to start


def test_the_whole_script_joins_reports_moves_and_is_removed(lab: Lab, tmp_path: Path) -> None:
    missing = [name for name in ("bats", "tmux", "curl") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} is not installed")
    home, phone = lab.host(f"{GATEWAY}/24"), lab.host(f"{PHONE}/24")
    with program(home, tmp_path, *SERVE, **settings_in(tmp_path)):
        until_answered(home, f"{HERE}/live")
        invited = json.loads(home.run(sys.executable, "-m", "potluck", "phones", "invite", "--json", "--url", HERE))
        (link,) = invited["links"]
        facts = {"LINK": link["url"], "GATEWAY": f"http://{GATEWAY}:8000", "OLD": PHONE, "NEW": MOVED}
        facts |= {"DEVICE": device_of(phone), "IP": shutil.which("ip") or "", "FAKE_PYTHON": sys.executable}
        done = subprocess.run(
            phone.command(["bats", "--tap", str(Path(__file__).with_name("joining_phone.bats"))]),
            env={**os.environ, **facts},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "ok 1 " in done.stdout, done.stdout + done.stderr
        assert json.loads((tmp_path / "phones.json").read_text()) == []


def test_from_the_invitation_to_an_answer_and_on_with_another_address(lab: Lab, tmp_path: Path) -> None:
    home, phone = lab.host(f"{GATEWAY}/24"), lab.host(f"{PHONE}/24")
    ollama = ("-m", "tests.fakes.phone", "--host", "0.0.0.0", "--port", "11434", "--time-scale", "0.01")
    with program(home, tmp_path, *SERVE, **settings_in(tmp_path)) as log, program(phone, tmp_path, *ollama):
        until_answered(home, f"{HERE}/live")
        until_answered(phone, "http://127.0.0.1:11434/api/version")
        invited = json.loads(home.run(sys.executable, "-m", "potluck", "phones", "invite", "--json", "--url", HERE))
        (link,) = invited["links"]
        assert link["url"] == f"http://{GATEWAY}:8000/join/{invited['token']}"
        script = phone.run("curl", "-fsSL", link["url"])
        assert script.startswith(f"POTLUCK_GATEWAY=http://{GATEWAY}:8000\nPOTLUCK_TOKEN={invited['token']}\n")
        checked = subprocess.run(["bash", "-s", "--", "--help"], input=script, capture_output=True, text=True)
        assert checked.returncode == 0 and "--gateway" in checked.stdout

        join = ("-d", json.dumps({"token": invited["token"], **BODY}))
        refused = told(home, *join, f"{HERE}/api/phones/join")
        assert "from this machine" in refused["error"]["message"]
        joined = told(phone, *join, f"http://{GATEWAY}:8000/api/phones/join")
        assert joined["name"] == "Pixel 5"
        answer = told(home, "-d", '{"prompt": "Where are you?"}', f"{HERE}/ask")
        assert answer["node"] == "Pixel 5" and answer["response"]

        phone.run("ip", "addr", "del", f"{PHONE}/24", "dev", device_of(phone))
        phone.run("ip", "addr", "add", f"{MOVED}/24", "dev", device_of(phone))
        own = ("-H", f"Authorization: Bearer {joined['phone_token']}")
        assert told(phone, *own, "-d", json.dumps(BODY), f"http://{GATEWAY}:8000/api/phones/join")["name"] == "Pixel 5"
        (entry,) = json.loads((tmp_path / "phones.json").read_text())
        assert entry["host"] == MOVED
        assert told(home, "-d", '{"prompt": "And now?"}', f"{HERE}/ask")["node"] == "Pixel 5"
        assert invited["token"] not in log.read_text() and joined["phone_token"] not in log.read_text()


def device_of(host: LabHost) -> str:
    found = re.search(r"^\d+: (?!lo)([^@:]+)", host.run("ip", "-o", "link"), re.MULTILINE)
    assert found is not None
    return found[1]
