"""The life of two phones, told whole: invited or plugged in, set up by the real script, answering, unplugged in
mid-answer without the client noticing, too hot, at rest, and back.

Every part is a program of its own: the gateway, its commands, an adb server, and on each phone Termux's shell, tmux,
Ollama, the reporter and the adb daemon. With network namespaces one phone is on Wi-Fi and one on a cable; without,
both are on cables, so that the core of the story is told everywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from server.adb.binary import adb_binary
from tests.fakes.network_namespaces import ROOT, Lab, LabHost, namespaces, why_not
from tests.fakes.phone import FakeModel, PhoneSettings, expected_answer
from tests.fakes.ports import free_port
from tests.fakes.termux_phone import Cable, Machine, TermuxPhone, ThisComputer, missing_tools, until

ADB = adb_binary()
WHY_NOT = missing_tools() or ("" if ADB else "there is no adb program here")
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "never")

MODEL, SECOND_MODEL = "qwen2.5:0.5b", "smollm2:135m"
HABITS: dict[str, Any] = {"tokens_per_second": 60, "answer_tokens": [70, 90]}
# Slowly: an answer lasts longer than all that happens meanwhile, on a busy machine too.
SLOWLY, AS_EVER = {"tokens_per_second": 1}, {"tokens_per_second": 60}
ALIKE = PhoneSettings(models=(FakeModel(MODEL),), answer_tokens=(70, 90))
STORY = "Tell me a story."
ON_WIFI, ON_CABLE, ON_ANOTHER_CABLE = "Pixel 5", "Pixel 7", "Pixel 8"


@dataclass
class Home:
    """The gateway's machine: the gateway, its adb server, and who asks them."""

    machine: Machine
    folder: Path
    listens: str
    port: int
    adb_port: int
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        settings = {
            "POTLUCK_PHONES_FILE": str(self.folder / "phones.json"),
            "POTLUCK_EMBEDDED_NODE": "off",
            "POTLUCK_DISCOVERY": "off",
            "POTLUCK_ADB_SERVER": f"127.0.0.1:{self.adb_port}",
            "POTLUCK_ADB_READ_S": "0.4",
            "POTLUCK_PROBE_INTERVAL_S": "0.5",
            "POTLUCK_BETWEEN_TOKENS_FLOOR_S": "8",
            "POTLUCK_BREAKER_REST_S": "1",
            "ENABLE_LRU_CACHE": "0",
        }
        apart = {name: "0" for name in ("ADB_USB", "ADB_EMU", "ADB_MDNS", "ADB_MDNS_OPENSCREEN")}
        own = {"HOME": str(self.folder), "TMPDIR": str(self.folder)}
        self._run("adb", [str(ADB), "-P", str(self.adb_port), "server", "nodaemon"], apart | own)
        serve = ["-m", "potluck", "serve", "--host", self.listens, "--port", str(self.port)]
        self._run("gateway", [sys.executable, *serve], settings)
        until(lambda: self.curl("/live", check=False).returncode == 0, "the gateway")
        until(lambda: self.told("/health")["adb"]["problem"] is None, "the adb server")  # else `adb` starts another

    def stop(self) -> None:
        """The gateway as by Ctrl-C, so that it takes its forwards away; then the adb server."""
        adb, gateway = self.programs
        gateway.send_signal(signal.SIGINT)
        assert gateway.wait(timeout=120) in (0, -signal.SIGINT), (self.folder / "gateway.log").read_text()
        assert self.adb("forward", "--list").strip() == ""
        adb.kill()
        adb.wait()

    def end(self) -> None:
        for program in self.programs:
            program.kill()
            program.wait()

    def _run(self, name: str, words: list[str], more: dict[str, str]) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            command = self.machine.command(words)
            environ = {**os.environ, **more}
            self.programs.append(subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log))

    def said(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(self.machine.command(list(words)), cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, (words, done.stdout, done.stderr)
        return done.stdout

    def adb(self, *words: str) -> str:
        return self.said(str(ADB), "-P", str(self.adb_port), *words)

    def potluck(self, *words: str) -> str:
        """A command as a person gives it."""
        place = ["--server", f"127.0.0.1:{self.adb_port}"] if words[0] == "adb" else ["--url", self.url]
        return self.said(sys.executable, "-m", "potluck", *words, *place)

    def curl(self, path: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = self.machine.command(["curl", "-fsS", "--max-time", "30", *words, f"{self.url}{path}"])
        return subprocess.run(command, capture_output=True, text=True, check=check)

    def told(self, path: str, *words: str) -> Any:
        return json.loads(self.curl(path, *words).stdout)

    def ask(self, prompt: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.told("/ask", "-d", json.dumps({"prompt": prompt, "max_tokens": 4}))
        return answer

    def node(self, name: str) -> dict[str, Any] | None:
        return next((node for node in self.told("/health")["nodes"] if node["name"] == name), None)

    def resting(self, name: str) -> str:
        """Why it rests; empty when it does not."""
        return (self.node(name) or {}).get("resting") or ""

    def is_ready(self, name: str) -> bool:
        node = self.node(name)
        return node is not None and node["status"] == "ready" and node["breaker"] == "closed" and not node["resting"]


class Client:
    """Somebody who asks and must notice nothing; at /ask_stream or, for an answer in one piece, at /ask."""

    def __init__(self, home: Home, path: str) -> None:
        body = json.dumps({"prompt": STORY, "options": {"temperature": 0}})
        words = ["curl", "-fsSN", "--max-time", "280", "-d", body, f"{home.url}{path}"]
        self._curl = subprocess.Popen(home.machine.command(words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def hear_out(self) -> tuple[str, list[str]]:
        """The whole text, and who wrote it."""
        told, complaint = self._curl.communicate()
        assert self._curl.returncode == 0, complaint
        records = [json.loads(line) for line in told.splitlines()]
        text = "".join(record.get("token", "") for record in records) + records[-1].get("response", "")
        assert "nodes" in records[-1], records[-1]
        return text, [part["node"] for part in records[-1]["nodes"] if part["tokens"]]

    def end(self) -> None:
        self._curl.kill()
        self._curl.communicate()


@dataclass
class Phone:
    """One of the two: where it is called what, and its ways out of the story and back. `tell` has three tellings."""

    name: str
    termux: TermuxPhone
    leave: Callable[[], None]
    come_back: Callable[[], None]
    tell: dict[str, Callable[[], None]]  # "hot", "less hot" (it must not come back yet), "cool"
    why: str

    def answered(self) -> int:
        return int(self.termux.control()["answers"])


def plugged(home: Home, phone: TermuxPhone, cable: Cable) -> Phone:
    def plug() -> None:
        cable.order(plug=True)
        home.adb("connect", cable.address)

    tell = {
        "hot": lambda: cable.order(heat=3),
        "less hot": lambda: cable.order(heat=2),
        "cool": lambda: cable.order(heat=1),
    }
    why = "thermal status severe, rests until light"
    return Phone(phone.product, phone, lambda: cable.order(unplug=True), plug, tell, why)


def on_wifi(phone: TermuxPhone, host: LabHost) -> Phone:
    link = re.search(r"^\d+: (?!lo)([^@:]+)", host.run("ip", "-o", "link"), re.MULTILINE)
    assert link is not None

    def switch(to: str) -> None:
        host.run("ip", "link", "set", link[1], to)

    tell = {
        "hot": lambda: phone.tell_battery(45.5),
        "less hot": lambda: phone.tell_battery(41.0),
        "cool": lambda: phone.tell_battery(38.0),
    }
    why = "45.5 °C, rests until 39 °C"
    return Phone(phone.product, phone, lambda: switch("down"), lambda: switch("up"), tell, why)


# -- the chapters ------------------------------------------------------------------------------------------------------


def comes_by_an_invitation(home: Home, phone: TermuxPhone) -> None:
    phone.tell_battery(30.0)
    shown = home.potluck("phones", "invite", "--model", MODEL)
    line = re.search(r"^ +(curl .*/join/.* \| bash)$", shown, re.MULTILINE)
    assert line is not None, shown
    assert f"joined as {phone.product}" in phone.type(line[1])
    answer = home.ask("Where are you?")
    assert answer["node"] == phone.product and answer["response"]
    assert re.search(
        rf"^{phone.product} .* ready .* 80%\+ .* 30 C .*{MODEL}", until_listed(home, " 30 C"), re.MULTILINE
    )


def until_listed(home: Home, words: str) -> str:
    def look() -> str:
        shown = home.potluck("phones", "list")
        return shown if words in shown else ""

    return until(look, words)


def comes_by_a_cable(home: Home, phone: TermuxPhone, cable: Cable, serial: str) -> None:
    home.adb("connect", cable.address)
    until(lambda: cable.address in home.adb("devices"), "the phone among adb's devices")
    until(lambda: "nothing answers at its port 11434" in home.potluck("adb", "devices"), "who tells itself")
    steps = home.potluck("adb", "setup", cable.address, "--yes", "--model", MODEL)
    cable.order(save=str(phone.shared))
    line = re.search(r"^ +bash /sdcard/(potluck/phone_setup\.sh --usb .*)$", steps, re.MULTILINE)
    assert line is not None, steps
    assert "for a cable only" in phone.type(f"bash {phone.shared}/{line[1]} --port {phone.port}")
    until(lambda: home.is_ready(phone.product), f"{phone.product} in the fleet")
    assert re.search(rf"{phone.product} .* answers ", home.potluck("adb", "devices"))
    assert {one["serial"] for one in home.told("/health")["adb"]["phones"] if one["problem"] is None} >= {serial}


def overheats_and_rests(home: Home, phone: Phone, other: Phone) -> None:
    phone.tell["hot"]()
    until(lambda: home.resting(phone.name), f"the rest of {phone.name}")
    health = home.told("/health")
    (listed,) = [one for one in home.told("/api/phones")["phones"] if one["name"] == phone.name]
    assert health["status"] == "degraded"
    assert listed["resting"] == home.resting(phone.name) and phone.why in listed["resting"]
    metrics = home.curl("/metrics").stdout
    assert 'potluck_resting_nodes{cause="heat"} 1.0' in metrics
    assert f'potluck_care_factor{{node="{phone.name}"}} 0.0' in metrics
    before = phone.answered()
    assert [home.ask(f"Question {number}?")["node"] for number in range(3)] == [other.name] * 3
    assert phone.answered() == before


def cools_and_returns(home: Home, phone: Phone) -> None:
    phone.tell["less hot"]()
    until(lambda: phone.why not in home.resting(phone.name), f"news of {phone.name}")
    assert "hot: " in home.resting(phone.name)  # better than where the rest began, and not yet well
    phone.tell["cool"]()
    until(lambda: home.is_ready(phone.name), f"the return of {phone.name}")


def leaves_in_mid_answer(home: Home, phone: Phone, other: Phone, path: str) -> None:
    """The other one rests while the answer begins, and goes on with it."""
    overheats_and_rests(home, other, phone)
    phone.termux.control(**SLOWLY)
    said = phone.termux.control()["tokens_sent"]
    with closing_client(home, path) as client:
        until(lambda: phone.termux.control()["tokens_sent"] > said, f"the beginning of an answer by {phone.name}")
        cools_and_returns(home, other)
        assert phone.termux.control()["generating"] == 1
        phone.leave()
        assert client.hear_out() == (undisturbed(), [phone.name, other.name])
    assert home.ask("Who is left?")["node"] == other.name
    phone.come_back()
    until(lambda: home.is_ready(phone.name), f"{phone.name} back in the fleet")
    phone.termux.control(**AS_EVER)


@contextlib.contextmanager
def closing_client(home: Home, path: str) -> Iterator[Client]:
    client = Client(home, path)
    try:
        yield client
    finally:
        client.end()


def undisturbed() -> str:
    messages = [{"role": "user", "content": STORY}]
    return expected_answer(messages, settings=ALIKE, model=MODEL, options={"temperature": 0}).text


def an_undisturbed_answer(home: Home) -> None:
    text, nodes = Client(home, "/ask_stream").hear_out()
    assert text == undisturbed() and len(nodes) == 1


def gets_another_model(home: Home, phones: tuple[Phone, ...]) -> None:
    told = home.potluck("models", "pull", SECOND_MODEL, "--all")
    assert all(phone.name in told for phone in phones), told
    for phone in phones:
        until(
            lambda phone=phone: SECOND_MODEL in (home.node(phone.name) or {}).get("models", ()),
            f"the model on {phone.name}",
        )
    answer = home.told("/ask", "-d", json.dumps({"prompt": "New here?", "model": SECOND_MODEL, "max_tokens": 4}))
    assert answer["model"] == SECOND_MODEL and answer["node"] in {phone.name for phone in phones}


# -- and where it is told ----------------------------------------------------------------------------------------------


@pytest.fixture
def stage() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def home_on(stage: ExitStack, machine: Machine, folder: Path, listens: str, ports: tuple[int, int]) -> Home:
    home = Home(machine, folder, listens, *ports)
    stage.callback(home.end)
    home.start()
    return home


def termux_on(stage: ExitStack, folder: Path, machine: Machine, product: str, port: int = 11434) -> TermuxPhone:
    phone = TermuxPhone(folder, machine, product, HABITS, port)
    stage.callback(phone.end)
    return phone


def cable_on(stage: ExitStack, phone: TermuxPhone, serial: str) -> Cable:
    cable = Cable(phone.machine, serial, phone.product, phone.port)
    stage.callback(cable.end)
    return cable


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "never")
@pytest.mark.timeout(900)
def test_a_phone_on_wifi_and_a_phone_on_a_cable(stage: ExitStack, tmp_path: Path) -> None:
    lab = stage.enter_context(namespaces())
    machines = [lab.host(f"10.79.0.{number}/24") for number in (1, 2, 3)]
    home = home_on(stage, machines[0], tmp_path, "0.0.0.0", (8000, 5037))
    wireless = termux_on(stage, tmp_path / "a", machines[1], ON_WIFI)
    comes_by_an_invitation(home, wireless)
    wired = termux_on(stage, tmp_path / "b", machines[2], ON_CABLE)
    cable = cable_on(stage, wired, "CABLE7")
    comes_by_a_cable(home, wired, cable, "CABLE7")
    phones = on_wifi(wireless, machines[1]), plugged(home, wired, cable)
    an_undisturbed_answer(home)
    gets_another_model(home, phones)
    leaves_in_mid_answer(home, phones[1], phones[0], "/ask_stream")
    leaves_in_mid_answer(home, phones[0], phones[1], "/ask")

    assert wireless.pid("report") is not None
    assert "is removed" in home.potluck("phones", "remove", ON_WIFI, "--yes")
    wireless.type(f"curl -fsSL 'http://{home.machine.address}:8000/join' | bash -s -- --uninstall")
    assert not (wireless.home / "mobile-llm").exists()
    wired.type("~/mobile-llm/stop_ollama.sh")
    cable.order(unplug=True)
    until(lambda: home.told("/health")["nodes"] == [], "an empty fleet")
    home.stop()
    cable.end()
    until(lambda: not any(left_in(lab)), f"the end of {left_in(lab)}")


def left_in(lab: Lab) -> list[str]:
    """Programs that still run in its namespaces."""
    found = [subprocess.check_output(["ip", "netns", "pids", name], text=True).split() for name in lab.names]
    return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pids in found for pid in pids]


@pytest.mark.timeout(900)
def test_two_phones_on_cables(stage: ExitStack, tmp_path: Path) -> None:
    here = ThisComputer()
    home = home_on(stage, here, tmp_path, "127.0.0.1", (free_port(), free_port()))
    phones = []
    for product, serial, folder in ((ON_CABLE, "CABLE7", "b"), (ON_ANOTHER_CABLE, "CABLE8", "c")):
        termux = termux_on(stage, tmp_path / folder, here, product, free_port())
        cable = cable_on(stage, termux, serial)
        comes_by_a_cable(home, termux, cable, serial)
        phones.append(plugged(home, termux, cable))
    an_undisturbed_answer(home)
    leaves_in_mid_answer(home, phones[0], phones[1], "/ask_stream")
    for phone in phones:
        phone.termux.type("~/mobile-llm/stop_ollama.sh")
        phone.leave()
    until(lambda: home.told("/health")["nodes"] == [], "an empty fleet")
    home.stop()
