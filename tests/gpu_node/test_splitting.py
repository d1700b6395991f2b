"""How plans of this node are made: what they promise, over what, and beside whom."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from gpu_node.device_fleet import DeviceFleet
from gpu_node.device_profiles import Findings, FoundDevice
from gpu_node.devices import parse_devices
from gpu_node.engine.loader import LoadOptions
from gpu_node.errors import DeviceOutOfMemory, ModelError, NodeError, UsageError
from gpu_node.inventory import Gpu
from gpu_node.load_wish import GPU_STEP_TOKENS, LoadWish
from gpu_node.memory.lending_policy import LendingPolicy
from gpu_node.model_folder import Tensor, describe
from gpu_node.node import beside, devices_of, rules_of_splits
from gpu_node.pipeline.process import WorkerWords
from gpu_node.settings import read_settings
from gpu_node.split import SplitWish
from gpu_node.split_plan import DoesNotFit
from gpu_node.splitting import SplitRules, Splitting, Wanted, demand_of, is_splittable, stage_threads
from gpu_node.vram import POOL, Account
from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.serving import DESCRIPTION

MiB = 1 << 20
LAYERS = 8
LAYER_BYTES, TOKEN_BYTES = 4 * MiB, 2 * 2 * 64 * 2  # keys and values of two heads of 64, in two bytes
BALANCED = SplitWish()
CONFIG = {
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256,
    "vocab_size": 1024,
}  # fmt: skip
DESCRIBED = replace(
    DESCRIPTION,
    config=CONFIG,
    embedding_length=256,
    quantisation="BF16",
    tensors=(
        Tensor("model.embed_tokens.weight", "BF16", (1024, 256)),
        Tensor("model.norm.weight", "BF16", (256,)),
        *(Tensor(f"model.layers.{at}.mlp.up_proj.weight", "BF16", (256, 8192)) for at in range(LAYERS)),
        Tensor("lm_head.weight", "BF16", (1024, 256)),
    ),
)


def wanted(name: str = "m", context: int = 1024, **wish: Any) -> Wanted:
    return Wanted(name, DESCRIBED, LoadWish(**wish), context)


def splitting(text: str, how: SplitWish = BALANCED, **more: Any) -> Splitting:
    return Splitting(DeviceFleet(parse_devices(text)), SplitRules(how), **more)


def counts(found: Splitting, model: Wanted) -> dict[str, int]:
    picture = found.planner(model)(found.fleet.present())
    return {stage.device: stage.layers for stage in picture.plan.stages}


def test_as_many_contexts_are_aimed_at_as_an_unsplit_model_would_get() -> None:
    devices = parse_devices("cpu:1GiB,cpu:1GiB")
    shape = wanted().shape
    assert [layer.cache_token_bytes for layer in shape.layers] == [TOKEN_BYTES] * LAYERS
    assert demand_of(wanted(max_running=32), shape, devices).sequences == 8
    assert demand_of(wanted(max_running=3), shape, devices).wanted_tokens == 3 * 1024
    assert demand_of(wanted(), shape, devices).step_tokens == 512
    assert demand_of(wanted(), shape, parse_devices("cpu:1GiB,cuda:0")).step_tokens == GPU_STEP_TOKENS
    assert demand_of(wanted(step_tokens=64, block_tokens=32), shape, devices).step_tokens == 64


def test_a_cache_that_is_told_is_promised_exactly() -> None:
    devices, shape = parse_devices("cpu:1GiB"), wanted().shape
    for wish in ({"kv_blocks": 5}, {"kv_bytes": 5 * 16 * TOKEN_BYTES * LAYERS + 7}):
        assert demand_of(wanted(**wish), shape, devices).wanted_tokens == 5 * 16
    with pytest.raises(DoesNotFit):
        splitting("cpu:60MiB").claim(wanted(kv_blocks=100_000))


def test_two_budgets_neither_of_which_holds_it_share_it() -> None:
    found = splitting("cpu:40MiB,cpu:30MiB")
    assert counts(found, wanted()) == {"cpu:0": 5, "cpu:1": 3}
    for alone in ("cpu:40MiB", "cpu:30MiB"):
        with pytest.raises(DoesNotFit, match="short by"):
            splitting(alone).claim(wanted())


def test_what_cannot_be_split_lies_on_the_device_with_the_most_room() -> None:
    found = splitting("cpu:60MiB,cpu:70MiB,cpu:20MiB")
    assert len(counts(found, wanted())) > 1
    picture = found.planner(wanted(), whole=True)(found.fleet.present())
    assert [(stage.device, stage.layers) for stage in picture.plan.stages] == [("cpu:1", LAYERS)]
    with pytest.raises(DoesNotFit, match="short by"):
        found.planner(wanted(), whole=True)(parse_devices("cpu:30MiB,cpu:30MiB"))
    with pytest.raises(ModelError, match="no device left"):
        found.planner(wanted(), whole=True)(())


def test_families_with_own_layers_can_be_split(tmp_path: Path) -> None:
    assert is_splittable(write_tiny_model(tmp_path / "own"))
    other = write_tiny_model(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "gpt_neox"}))
    assert not is_splittable(other)
    (tmp_path / "torn").mkdir()
    with pytest.raises(ModelError):
        is_splittable(tmp_path / "torn")


def test_one_device_is_enough_where_all_that_is_wanted_fits() -> None:
    assert counts(splitting("cpu:400MiB,cpu:300MiB"), wanted()) == {"cpu:0": 8}


def test_a_split_by_hand_and_one_that_is_none() -> None:
    assert counts(splitting("cpu:90MiB,cpu:90MiB", SplitWish(counts=(2, 6))), wanted()) == {"cpu:0": 2, "cpu:1": 6}
    with pytest.raises(ModelError, match=r"m cannot be split: .* does not give 8 layers"):
        counts(splitting("cpu:90MiB,cpu:90MiB", SplitWish(counts=(2, 7))), wanted())


def test_a_loading_that_names_a_kind_gets_devices_of_that_kind() -> None:
    found = splitting("cpu:400MiB,cuda:0:3GiB")
    assert counts(found, wanted(device="cpu")) == {"cpu:0": 8}
    assert counts(found, wanted(device="cuda")) == {"cuda:0": 8}
    with pytest.raises(ModelError, match="no cuda device left that could hold a part of m"):
        counts(splitting("cpu:400MiB"), wanted(device="cuda"))


def test_another_model_is_planned_beside_what_is_held() -> None:
    found = splitting("cpu:200MiB,cpu:100MiB")
    assert counts(found, wanted("a", max_running=1)) == {"cpu:0": 8}
    found.fleet.hold("a", {"cpu:0": 180 * MiB})
    assert counts(found, wanted("b", max_running=1)) == {"cpu:1": 8}
    assert counts(found, wanted("a", max_running=1)) == {"cpu:0": 8}, "what it holds itself does not stand in its way"
    found.fleet.hold("a", {})
    assert counts(found, wanted("b", max_running=1)) == {"cpu:0": 8}


def test_what_does_not_fit_beside_others_claims_what_it_needs_alone() -> None:
    found = splitting("cpu:60MiB,cpu:50MiB")
    beside_nobody = found.claim(wanted("b"))
    found.fleet.hold("a", {"cpu:0": 50 * MiB, "cpu:1": 40 * MiB})
    alone = found.claim(wanted("b"))
    assert alone.weights_bytes == 33 * MiB + 512
    assert alone.cache_bytes == 1024 * TOKEN_BYTES * LAYERS < beside_nobody.cache_bytes
    assert alone.total_bytes > found.account.budget_bytes - 90 * MiB, "so that somebody has to leave"


def test_it_says_whether_it_may_fit_once_others_have_left() -> None:
    found = splitting("cpu:30MiB")
    options, folder = cast(Any, None), Path("/nowhere")
    found.fleet.hold("a", {"cpu:0": MiB})
    with pytest.raises(DeviceOutOfMemory, match="short by"):
        found.load(wanted("b"), folder, options)
    found.fleet.hold("a", {})
    with pytest.raises(DoesNotFit) as caught:
        found.load(wanted("b"), folder, options)
    assert caught.value.remedies and caught.value.short_bytes > 0


def card(free: int) -> dict[str, int]:
    return {"cpu": 4 << 30, "cuda:0": free}


def test_of_a_card_without_a_budget_counts_what_is_free_and_what_it_holds_itself() -> None:
    found = splitting("cuda:0")
    plan = found.planner(wanted(max_running=1))
    found.fleet.tick(card(3 << 30))
    assert plan(found.fleet.present()).devices[0].free_bytes == 3 << 30
    found.fleet.hold("m", {"cuda:0": 1 << 30})
    assert plan(found.fleet.present()).devices[0].free_bytes == 3 << 30, "the look is older than the loading"
    found.fleet.tick(card(2 << 30))
    assert plan(found.fleet.present()).devices[0].free_bytes == 3 << 30
    found.fleet.tick(card(1 << 30))
    assert plan(found.fleet.present()).devices[0].free_bytes == 2 << 30, "somebody else has taken a part"


def test_the_account_of_all_devices_follows_them() -> None:
    found = splitting("cpu:60MiB,cuda:0")
    found.fleet.tick(card(1000 * MiB))
    pool = found.account
    assert (pool.device, pool.budget_bytes, pool.gpus, pool.has_gpu) == (POOL, 960 * MiB, 1, True)
    found.fleet.add("cpu:40MiB")
    assert found.sized(pool).budget_bytes == 1000 * MiB
    found.fleet.lost("cuda:0", "gone")
    assert (found.sized(pool).budget_bytes, found.sized(pool).has_gpu) == (100 * MiB, False)
    assert found.sized(Account("cpu", 7)) == Account("cpu", 7)


def found_device(kind: str, rate: float) -> FoundDevice:
    return FoundDevice(cast(Any, kind), 0, "x", "y", "", "", 8 << 30, 2 << 30, rate, rate, 0.0)


class Asked:
    def __init__(self, *devices: FoundDevice) -> None:
        self.times, self._devices = 0, devices

    def __call__(self) -> Findings:
        self.times += 1
        return Findings(self._devices)


def test_a_profiled_split_follows_what_was_measured_and_stated() -> None:
    how = SplitWish("profiled", "throughput")
    asked = Asked(found_device("cpu", 1e9))
    found = splitting("cpu:90MiB@1.0,cpu:90MiB@0.33", how, findings=asked)
    found.look()
    found.look()
    assert asked.times == 1
    layers = counts(found, wanted(max_running=1))
    assert layers["cpu:0"] == 6 and layers["cpu:1"] == 2
    plan = found.planner(wanted(max_running=1))(found.fleet.present()).plan
    assert plan.period_seconds == pytest.approx(6 * LAYER_BYTES / 1e9, rel=0.1), "in measured seconds"


def test_a_profiled_split_without_any_measure_is_one_sentence() -> None:
    found = splitting("cpu:90MiB,cpu:90MiB", SplitWish("profiled"), findings=Asked())
    found.look()
    with pytest.raises(ModelError, match="needs the measured pace of every device"):
        counts(found, wanted())


def test_the_probe_is_left_alone_where_nothing_depends_on_it() -> None:
    asked = Asked(found_device("xpu", 1e9))
    splitting("cpu:90MiB,cpu:90MiB", findings=asked).look()
    assert asked.times == 0
    found = splitting("xpu:0", findings=asked)
    found.look()
    assert asked.times == 1
    assert counts(found, wanted(max_running=1)) == {"xpu:0": 8}, "only the probe knows its memory"


def test_a_card_that_joins_later_is_asked_for_then() -> None:
    asked = Asked(found_device("xpu", 1e9))
    found = splitting("cpu:20MiB", findings=asked)
    with pytest.raises(DoesNotFit):
        counts(found, wanted(max_running=1))
    assert asked.times == 0
    found.fleet.add("xpu:0")
    assert counts(found, wanted(max_running=1))["xpu:0"] > 0


def test_stages_on_one_cpu_share_its_threads() -> None:
    assert stage_threads(parse_devices("cpu:1GiB,cpu:1GiB"), 8) == 4
    assert stage_threads(parse_devices("cpu:1GiB,cpu:1GiB,cpu:1GiB"), 2) == 1
    assert stage_threads(parse_devices("cpu:1GiB,cuda:0"), 8) == 8
    assert stage_threads(parse_devices("cpu:1GiB,cpu:1GiB")) >= 1
    assert stage_threads(parse_devices("cpu:1GiB")) == 0


class Hanging:
    """A worker that says nothing, and never ends by itself."""

    def __init__(self) -> None:
        self.pid, self.ending = None, ""

    def kill(self) -> None:
        self.ending = "killed"

    def wait(self, within_seconds: float) -> bool:
        return bool(self.ending)


def test_a_node_that_stops_in_the_middle_of_a_loading_leaves_nothing(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny", num_hidden_layers=LAYERS)
    started: list[Hanging] = []
    sockets, both = set(), threading.Event()

    def start(words: WorkerWords) -> Hanging:
        sockets.add(Path(str(words.place)).parent)
        started.append(Hanging())
        if len(started) == 2:
            both.set()
        return started[-1]

    split = SplitWish(counts=(4, 4))
    found = splitting("cpu:200MiB,cpu:200MiB", split, start=start)
    model = Wanted("tiny", describe(folder), LoadWish(), 64)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(found.load, model, folder, LoadOptions("cpu"))
        assert both.wait(30.0)
        (folder_of_sockets,) = sockets
        assert folder_of_sockets.is_dir()
        found.stop()
        found.close()
        with pytest.raises(NodeError):
            loading.result(30.0)
    assert [one.ending for one in started] == ["killed", "killed"]
    assert not folder_of_sockets.exists()
    with pytest.raises(OSError, match="shutting down"):
        found.start(WorkerWords("head", 1, parse_devices("cpu:1GiB")[0], "token"))


def settings(**flags: Any) -> Any:
    return read_settings({}, flags)


GPUS = tuple(Gpu(at, f"GPU-{at}", "a GPU", 8 << 30, 8 << 30) for at in range(2))


@pytest.mark.parametrize(
    ("flags", "found", "torch", "names"),
    [
        ({}, (), "2.13.0+cpu", []),
        ({}, GPUS, "2.13.0", ["cuda:0", "cuda:1"]),
        ({}, GPUS[:1], "2.13.0", []),
        ({}, GPUS, "2.13.0+cpu", []),
        ({"device": "cuda"}, GPUS, "2.13.0", []),
        ({"memory": "1GB"}, GPUS, "2.13.0", []),
        ({"devices": "cpu:1GB,cpu:2GB"}, GPUS, "2.13.0+cpu", ["cpu:0", "cpu:1"]),
        ({"devices": "cuda:1"}, GPUS, "2.13.0", ["cuda:1"]),
        ({}, (), "2.13.0+xpu", ["xpu:0", "xpu:1"]),
        ({}, GPUS, "2.13.0+rocm7.0", []),
    ],
)
def test_what_models_are_split_over(
    flags: dict[str, str], found: tuple[Gpu, ...], torch: str, names: list[str]
) -> None:
    asked = Asked(*(replace(found_device("xpu", 1e9), number=at) for at in range(2)))
    assert [one.name for one in devices_of(settings(**flags), found, torch, asked)] == names
    assert asked.times == ("+xpu" in torch or "+rocm" in torch)


def test_lending_is_as_the_settings_say() -> None:
    rules = rules_of_splits(read_settings({"VRM_LEND_RATIO": "0.5"}, {"reclaim_threshold": "0.9", "split": "vram"}))
    assert rules.options.lending == LendingPolicy(ratio=0.5, threshold=0.9)
    assert rules.wish == SplitWish("vram")
    assert rules_of_splits(settings(lend_ratio="0")).options.lending is None


def test_a_listed_device_that_cannot_be_is_told() -> None:
    with pytest.raises(UsageError, match=r"cuda:0 cannot be used: torch 2\.13\.0\+cpu was built for CPUs only"):
        devices_of(settings(devices="cuda:0"), GPUS, "2.13.0+cpu", Findings)
    with pytest.raises(UsageError, match="there is no cuda:2 in this machine; there is cuda:0, cuda:1"):
        devices_of(settings(devices="cuda:2"), GPUS, "2.13.0", Findings)


def test_what_is_not_split_has_the_memory_beside_the_budgets() -> None:
    assert beside(parse_devices("cpu:100MiB,cuda:0:5GiB"), 1000 * MiB) == Account("cpu", 800 * MiB)
    assert beside(parse_devices("cpu:1GiB"), MiB).budget_bytes == 0


def test_workers_are_told_their_card_by_its_name_at_the_driver() -> None:
    """Numbers are a list's, and lists change; and the driver's list is not always torch's."""
    seen: list[WorkerWords] = []

    def start(words: WorkerWords) -> Hanging:
        seen.append(words)
        return Hanging()

    found = splitting("cuda:0:1GiB,cpu:1GiB", start=start)
    found.identify = {"cuda:0": "GPU-a"}.get
    for device in found.fleet.present():
        found.start(WorkerWords("head", 1, device, "token"))
    assert [words.identity for words in seen] == ["GPU-a", None]
    found.close()
