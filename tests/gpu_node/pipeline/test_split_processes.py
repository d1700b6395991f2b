"""Workers as processes of their own, that are killed and frozen as processes are."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_node.device_fleet import DeviceFleet
from gpu_node.devices import Device, parse_devices
from gpu_node.engine.loader import load_runner
from gpu_node.pipeline.nursery import Nursery
from gpu_node.pipeline.process import ChildWorker, WorkerWords, start_process, surroundings, torch_device
from gpu_node.pipeline.split_model import SplitOptions
from gpu_node.pipeline.split_runner import SplitRunner
from tests.fakes.greedy_steps import some_prompts
from tests.fakes.tiny_model import VOCABULARY, write_tiny_model
from tests.gpu_node.engine.driving import greedy
from tests.gpu_node.engine.layers.chains import LAYERS
from tests.gpu_node.pipeline.splits import EXACT, Story, Threads, by_hand, fleet_of, model_of, split

PROMPT = some_prompts(VOCABULARY, (21,), seed=8)[0]
# Busy machines let processes wait for longer than the usual silence.
CALM = SplitOptions(depth=2, silence_seconds=2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("split") / "tiny", num_hidden_layers=LAYERS)


def pid_of(runner: SplitRunner, device: str) -> int:
    return next(stage.pid for stage in runner.pipeline.stages if stage.device == device)


def lost_devices(fleet: DeviceFleet) -> list[str]:
    """Why they were lost."""
    return [event.detail for event in fleet.events if event.what == "lost"]


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()


def test_one_is_killed_another_freezes_and_the_last_goes_on(folder: Path, nursery: Nursery) -> None:
    alone = load_runner(folder, EXACT)
    expected = greedy(alone, PROMPT, 12)
    alone.close()
    fleet = fleet_of(3)
    runner = SplitRunner(model_of(folder), fleet, by_hand(folder, (1, 2, 1), (2, 2), (4,)), CALM, nursery.start)
    try:
        story = Story(runner, PROMPT)
        story.go(4)
        os.kill(pid_of(runner, "cpu:1"), signal.SIGKILL)
        story.go(4)
        assert [event.detail for event in fleet.events if event.what == "lost"] == [
            "its process was killed by signal 9"
        ]
        frozen = pid_of(runner, "cpu:2")
        os.kill(frozen, signal.SIGSTOP)
        assert story.go(4) == expected
        assert re.search(r"has said nothing for \d+\.\d s", lost_devices(fleet)[1])
        assert not Path(f"/proc/{frozen}").exists()
        assert [stage.device for stage in runner.pipeline.stages] == ["cpu:0"] and len(story.changes) == 2
    finally:
        runner.close()
    assert not any(one.held for one in fleet.devices)


def test_a_process_that_ends_before_it_says_hello(folder: Path) -> None:
    """Its last words are the reason that people are told."""
    threads = Threads()

    def start(words: WorkerWords) -> object:
        if words.device.name == "cpu:1":
            return Ended(words)
        return threads(words)

    with split(folder, (1, 2, 1), (2, 2), threads=start) as (runner, fleet, _):
        assert len(greedy(runner, PROMPT, 4)) == 4
        (lost,) = [event for event in fleet.events if event.what == "lost"]
        assert lost.device == "cpu:1" and lost.detail == "its process ended with code 3: no luck today"


class Talkative(ChildWorker):
    command = (sys.executable, "-S", "-c", "import sys; sys.stderr.write('a word\\n' * 8000 + 'the last'); sys.exit(3)")


def test_the_last_words_are_told_however_soon_it_is_asked() -> None:
    """A process has ended before all that it wrote is read."""
    (device,) = parse_devices("cpu:1GiB")
    worker = Talkative(WorkerWords("/nowhere", 0, device, "token"))
    while not (ending := worker.ending):
        pass
    assert ending == "its process ended with code 3: the last"


class Ended(ChildWorker):
    command = (sys.executable, "-c", "import sys; print('no luck today', file=sys.stderr); sys.exit(3)")


def test_a_worker_sees_its_own_card_only() -> None:
    cuda, rocm, cpu = Device("cuda:1", "cuda", 1), Device("rocm:0", "rocm", 0), Device("cpu:3", "cpu", 3)
    assert surroundings(cuda, {})["CUDA_VISIBLE_DEVICES"] == "1"
    assert surroundings(cuda, {"CUDA_VISIBLE_DEVICES": "4, 6"})["CUDA_VISIBLE_DEVICES"] == "6"
    moved = surroundings(cuda, {"CUDA_VISIBLE_DEVICES": "4, 6"}, "GPU-b")
    assert moved["CUDA_VISIBLE_DEVICES"] == "GPU-b", "cards count anew when one is pulled out; a name stays"
    assert "CUDA_VISIBLE_DEVICES" not in surroundings(cpu, {}, "GPU-b")
    assert surroundings(rocm, {"HIP_VISIBLE_DEVICES": "2"})["HIP_VISIBLE_DEVICES"] == "2"
    assert "CUDA_VISIBLE_DEVICES" not in surroundings(cpu, {})
    assert [torch_device(device) for device in (cuda, rocm, cpu)] == ["cuda:0", "cuda:0", "cpu"]


def test_the_token_is_in_no_command_line(tmp_path: Path) -> None:
    (device,) = parse_devices("cpu:1GiB")
    worker = start_process(WorkerWords(str(tmp_path / "nobody"), 7, device, "secret"))
    try:
        assert b"secret" not in Path(f"/proc/{worker.pid}/cmdline").read_bytes()
    finally:
        worker.kill()
    assert worker.ending and "secret" not in repr(WorkerWords("/x", 1, device, "secret"))
