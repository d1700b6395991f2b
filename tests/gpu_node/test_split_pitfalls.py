"""Twenty mistakes that others made with models over several devices, each with what holds us from making it.

Most are guarded where the part is tested that could make them: `GUARDS` says where, and fails when such a test is gone.
What only the whole shows is tested here, with an engine over workers in threads: answers, trips, errors, devices that
die, leave and join in the middle of a sentence.
"""

from __future__ import annotations

import asyncio
import re
import stat
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from gpu_node.device_fleet import DeviceFleet
from gpu_node.devices import parse_devices
from gpu_node.engine.engine import Engine, EngineOptions
from gpu_node.pipeline.depth import Trial, choose
from gpu_node.pipeline.process import WorkerProcess, WorkerWords, surroundings
from gpu_node.pipeline.split_runner import SplitRunner
from gpu_node.pipeline.surroundings import WorkerPlace
from gpu_node.pipeline.worker import Worker
from gpu_node.pipeline_status import PipelineStatus
from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.engine.test_chain_engine import ENDS, LEAVING, REQUESTS, SHARED, asked, ids_of
from tests.gpu_node.engine.test_chain_engine import engine_of as single_engine
from tests.gpu_node.pipeline.splits import EXACT, PATIENT, SECONDS, Threads, by_hand, fleet_of, model_of

TESTS = Path(__file__).parents[1]
LAYERS = 4
LONG = replace(asked(SHARED + ENDS[1]), bounds=replace(REQUESTS[0].bounds, max_tokens=60))

# What went wrong elsewhere, and the tests beside this file's own (below, by number) that would notice it here.
GUARDS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("a split model answers something else than the whole one (VRAMancer)", (
        "gpu_node/engine/layers/test_chain.py::test_every_division_gives_the_numbers_of_the_whole",
        "gpu_node/engine/test_chain_engine.py::test_answers_are_those_of_requests_alone",
        "gpu_node/pipeline/test_worker.py::test_every_division_gives_the_numbers_of_one_runner",
    )),
    2: ("a planner that drops layers, or fills a stage beyond its memory (SGLang #9798, mlx-lm #1688)", (
        "gpu_node/test_split.py::test_a_plan_is_found_where_there_is_one_and_keeps_its_promises",
    )),
    3: ("head, embedding, cache, graphs or loading forgotten in the budget (parallax #188)", (
        "gpu_node/test_split.py::test_tied_weights_are_counted_on_both_ends_and_once_on_one_device",
        "gpu_node/test_split.py::test_a_gpu_keeps_room_for_graphs",
        "gpu_node/test_split.py::test_what_is_needed_counts_the_second_copy_of_tied_weights_and_the_steps",
        "gpu_node/engine/layers/test_part_reuse.py::test_loading_stops_before_it_is_too_much",
    )),
    4: ("layers by size alone, so that one stage's cache is the least of all (vLLM #6920, #25164)", (
        "gpu_node/test_split.py::test_the_fuller_cache_wins_over_one_tight_device",
    )),
    5: ("access from card to card taken for granted: links go through main memory, and are measured", (
        "gpu_node/test_split.py::test_a_slow_link_keeps_everything_on_one_device",
    )),
    6: ("many round trips a token (Mesh-LLM: 558)", (
        "gpu_node/memory/test_borrowing.py::test_a_layer_costs_one_round_trip_and_a_step_without_far_blocks_none",
        "gpu_node/pipeline/test_recovery.py::test_every_message_is_counted_once_a_link_and_step",
    )),
    7: ("more groups under way are taken for quicker (unslothai/llama.cpp #187)", ()),
    8: ("a split of what one device holds", (
        "gpu_node/test_split.py::test_one_device_that_holds_everything_is_not_helped",
        "gpu_node/test_splitting.py::test_one_device_is_enough_where_all_that_is_wanted_fits",
    )),
    9: ("discovery over the wrong interface, or for ever (exo #858, #1305)", (
        "gpu_node/test_announce.py::test_it_announces_itself_on_every_network_again_and_again",
        "gpu_node/test_announce.py::test_neighbours_are_counted_while_they_are_heard",
    )),
    10: ("ghosts of members that came back under another name (exo #2194)", (
        "gpu_node/test_identity.py::test_the_id_stays_and_the_incarnation_grows",
        "gpu_node/test_device_table.py::test_names_of_budgets_are_not_used_again",
        "gpu_node/pipeline/test_links.py::test_frames_of_an_older_epoch_are_dropped_and_those_of_a_newer_end_the_link",
    )),
    11: ("one missed sign of life drops a member (exo #1553), or silence hangs for ever (dnet, prima.cpp)", (
        "gpu_node/test_device_table.py::test_a_card_that_vanishes_is_lost_and_comes_back_with_the_probe",
        "gpu_node/pipeline/test_link_ends.py::test_silence_is_noticed",
        "gpu_node/pipeline/test_link_ends.py::test_heartbeats_keep_a_wait_alive_until_the_callers_own_time_is_over",
        "gpu_node/pipeline/test_link_ends.py::test_a_killed_and_a_frozen_process_are_noticed",
    )),
    12: ("a log of events without end (exo #1823), retries without end, cores that spin while idle (vLLM #21231)", (
        "gpu_node/test_device_fleet.py::test_events_are_bounded_and_counted",
        "gpu_node/test_device_table.py::test_a_lost_device_is_tried_again_after_a_growing_pause",
    )),
    13: ("a stage's failure ends the whole, or its late answers are taken for the next step's (vLLM #56430)", (
        "gpu_node/pipeline/test_step_frames.py::test_a_failure_takes_the_place_of_hidden_states",
        "gpu_node/pipeline/test_recovery.py::test_a_stage_that_dies_is_planned_around",
        "gpu_node/pipeline/test_recovery.py::test_when_nothing_fits_that_is_said_until_a_device_is_back",
    )),
    14: ("headers without a version, sizes believed (Mesh-LLM #1017)", (
        "gpu_node/pipeline/test_handshake.py::test_another_version_is_told",
        "gpu_node/pipeline/test_hostile_bytes.py::test_a_frame_too_large_is_refused_before_any_room_is_made",
        "gpu_node/pipeline/test_step_message.py::test_a_count_that_promises_gigabytes_takes_none",
    )),
    15: ("weights pushed over the links of activations", (
        "gpu_node/engine/layers/test_chain.py::test_each_part_reads_its_own_layers_only",
    )),
    16: ("links that anybody may open (exo #1833)", (
        "gpu_node/pipeline/test_gate.py::test_who_does_not_belong_is_refused_and_the_next_is_let_in",
        "gpu_node/pipeline/test_gate.py::test_a_unix_socket_is_its_owners_and_goes_with_its_gate",
    )),
    17: ("errors in the middle of a stream in another format than the stream's", (
        "gpu_node/api/test_ollama_turns.py::test_a_failure_in_the_middle_is_the_last_line_of_a_whole_body",
        "gpu_node/api/test_openai.py"
        "::test_a_failure_before_the_first_token_has_its_status_and_one_after_it_ends_without_done",
    )),
    18: ("lent memory that does not come back in time, or comes from who is short", (
        "gpu_node/memory/test_borrowing_part.py::test_a_model_over_places_is_the_model",
        "gpu_node/memory/test_borrowing.py::test_a_move_that_takes_too_long_has_moved_nothing",
        "gpu_node/memory/test_lending_policy.py::test_what_may_be_lent_keeps_every_bound",
        "gpu_node/memory/test_desk.py::test_what_cannot_be_moved_in_time_is_computed_anew",
    )),
    19: ("a process that never sees the card that was plugged in", (
        "gpu_node/test_hot_plug.py::test_a_card_is_pulled_out_and_put_back",
        "gpu_node/pipeline/test_recovery.py::test_a_device_that_joins_takes_over_between_steps",
        "gpu_node/pipeline/test_recovery.py::test_a_device_that_is_removed_drains_first",
    )),
    20: ("figures without the script that made them", ()),
}  # fmt: skip
ELSEWHERE = [reference for _, references in GUARDS.values() for reference in references]


@pytest.mark.parametrize("reference", ELSEWHERE)
def test_a_guard_is_still_there(reference: str) -> None:
    path, _, name = reference.partition("::")
    assert re.search(rf"^(async )?def {name}\(", (TESTS / path).read_text(), re.MULTILINE)


def test_every_pitfall_has_a_guard() -> None:
    here = set(map(int, re.findall(r"^(?:async )?def test_(\d+)_", Path(__file__).read_text(), re.MULTILINE)))
    assert [number for number, (_, there) in GUARDS.items() if not there and number not in here] == []
    assert list(GUARDS) == list(range(1, 21))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("pitfalls") / "tiny", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[list[list[int]]]:
    """Each request by itself, on one device: `generate` is what holds that."""

    async def answers() -> list[list[list[int]]]:
        async with single_engine(folder, max_drafts=0) as engine:
            asking = [replace(request, cache_salt=str(at)) for at, request in enumerate((*REQUESTS, LONG))]
            return [await ids_of(engine, request) for request in asking]

    return asyncio.run(answers())


@dataclass
class Scene:
    engine: Engine
    fleet: DeviceFleet
    threads: Threads

    @property
    def status(self) -> PipelineStatus:
        runner = self.engine.runner
        assert isinstance(runner, SplitRunner)
        return runner.pipeline

    @property
    def devices(self) -> list[str]:
        return [stage.device for stage in self.status.stages]

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(int(SECONDS / 0.02)):
            if condition():
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"it never became true: {self.status}")


@asynccontextmanager
async def split_engine(
    folder: Path,
    *plans: Sequence[int],
    fleet: DeviceFleet | None = None,
    make: Callable[[WorkerPlace], Worker] = Worker,
    blocks: int = 200,
    **limits: Any,
) -> AsyncIterator[Scene]:
    fleet, threads = fleet or fleet_of(len(plans[0])), Threads(make)
    load = replace(EXACT, cache=replace(EXACT.cache, block_count=blocks))

    def runner() -> SplitRunner:
        return SplitRunner(model_of(folder, load), fleet, by_hand(folder, *plans), PATIENT, threads)

    engine = Engine(runner, options=EngineOptions(**limits))
    await engine.load()
    try:
        yield Scene(engine, fleet, threads)
    finally:
        assert await engine.close()
        assert all(worker.wait(0) for worker in threads.started), "a worker is left"


@pytest.mark.parametrize("counts", [(1, 3), (1, 2, 1), (1, 1, 1, 1)], ids=str)
async def test_1_answers_are_those_of_one_device(
    folder: Path, alone: list[list[list[int]]], counts: tuple[int, ...]
) -> None:
    """Too few blocks, shared prefixes, guesses, several samples, and clients that leave; several steps under way. Then
    what the links have carried is known: one trip around the ring a step (6), and no weights (15)."""
    async with split_engine(folder, counts, blocks=20, step_tokens=16, mixed_step_tokens=9) as scene:
        await ids_of(scene.engine, asked(SHARED))
        leaving = [asyncio.create_task(ids_of(scene.engine, request, stop_after=3)) for request in LEAVING]
        found = await asyncio.gather(*(ids_of(scene.engine, request) for request in REQUESTS))
        await asyncio.gather(*leaving)
        await scene.until(lambda: scene.engine.stats().cancelled == 2)
        stats = scene.engine.stats()
        links = len(counts) + 1
        await scene.until(lambda: scene.status.hops == scene.status.steps * links)
        status = scene.status
    assert found == alone[:-1]
    assert stats.preemptions and stats.cached_prompt_tokens and stats.accepted_drafts
    sent = {link.source: link.sent_bytes for link in status.links}
    assert sent["head"] < sum(stage.weights_bytes for stage in status.stages) / 4


async def test_12_nobody_spins_while_there_is_nothing_to_do(folder: Path) -> None:
    async with split_engine(folder, (2, 2)) as scene:
        await ids_of(scene.engine, REQUESTS[0])
        used, began = time.process_time(), time.monotonic()
        await asyncio.sleep(0.5)
        # Half of one core, however long that was; who spins takes all of it.
        assert time.process_time() - used < (time.monotonic() - began) / 2


@dataclass
class Faults:
    """What the second stage does instead of computing, as long as there is something in the list."""

    left: list[Exception] = field(default_factory=list)

    def make(self, place: WorkerPlace) -> Worker:
        worker = Worker(place)
        seating = worker.seating

        def faulty(take: Any, loaded: Any) -> Any:
            part = seating(take, loaded)
            compute = part.compute

            def computed(message: Any, hidden: Any) -> Any:
                if take.stage == 1 and self.left:
                    raise self.left.pop()
                return compute(message, hidden)

            return _Part(part, computed)

        worker.seating = faulty
        return worker


class _Part:
    def __init__(self, part: Any, compute: Callable[[Any, Any], Any]) -> None:
        self._part, self.compute = part, compute

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


@pytest.mark.parametrize("error", [RuntimeError("a kernel failed"), MemoryError("full")], ids=["error", "memory"])
async def test_13_a_failure_of_a_stage_is_an_error_of_its_step_alone(
    folder: Path, alone: list[list[list[int]]], error: Exception
) -> None:
    faults = Faults()
    async with split_engine(folder, (2, 2), make=faults.make, step_tokens=16) as scene:
        await ids_of(scene.engine, REQUESTS[0])
        before = scene.status.replans
        faults.left.append(error)
        found = await asyncio.gather(*(ids_of(scene.engine, request) for request in REQUESTS))
        assert (found, faults.left) == (alone[:-1], [])
        assert scene.status.replans == before
        assert [one.losses for one in scene.fleet.devices] == [0, 0]


def test_7_one_step_at_a_time_is_an_answer() -> None:
    """And one that others must beat clearly: they cost latency."""
    measured = {Trial(8, 1): 95.0, Trial(8, 2): 75.0, Trial(32, 1): 100.0, Trial(32, 2): 104.0}
    assert choose(measured)[0] == 1
    assert choose({Trial(8, 1): 100.0, Trial(8, 2): 103.0})[0] == 1
    assert choose({Trial(8, 1): 100.0, Trial(8, 2): 170.0, Trial(8, 3): 171.0})[0] == 2


def test_16_only_this_user_reaches_the_workers_and_no_list_of_processes_shows_the_token(folder: Path) -> None:
    seen: list[WorkerWords] = []
    modes: list[int] = []

    def start(words: WorkerWords) -> WorkerProcess:
        assert isinstance(words.place, str), "a path of a Unix socket"
        seen.append(words)
        modes.append(stat.S_IMODE(Path(words.place).parent.stat().st_mode))
        return threads(words)

    threads = Threads()
    runner = SplitRunner(model_of(folder), fleet_of(2), by_hand(folder, (2, 2)), PATIENT, start)
    runner.close()
    assert modes == [0o700, 0o700]
    assert all(len(words.token) == 32 and words.token not in repr(words) for words in seen)
    assert not Path(str(seen[0].place)).parent.exists()


@pytest.mark.parametrize(
    ("listed", "environ", "expected"),
    [
        ("cuda:1", {}, {"CUDA_VISIBLE_DEVICES": "1"}),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, {"CUDA_VISIBLE_DEVICES": "GPU-b"}),
        ("rocm:2:1GiB", {}, {"HIP_VISIBLE_DEVICES": "2"}),
        ("xpu:0", {}, {"ZE_AFFINITY_MASK": "0"}),
        ("cpu:1GiB", {"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "3"}),
    ],
)
def test_19_a_worker_sees_its_own_device(listed: str, environ: dict[str, str], expected: dict[str, str]) -> None:
    found = surroundings(parse_devices(listed)[0], environ)
    assert expected.items() <= found.items()


def test_20_every_script_that_a_page_names_for_its_figures_is_there() -> None:
    root = TESTS.parent
    for page in ("README.md", "docs/split.md", "docs/architecture.md", "docs/gpu-node.md", "bench/README.md"):
        for script in set(re.findall(r"bench/[a-z_]+\.py", (root / page).read_text())):
            assert (root / script).exists(), (page, script)
