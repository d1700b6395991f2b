"""STATS as a probe's report and in the shapes of listings."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from server.backends.relay_listing import gpu_record, loaded_record, models_record, progress_record
from server.backends.relay_report import MOST_SLOTS, listed, parameters_of, report_of
from server.placement import entry_of, free_bytes
from tests.server.backends.relay_asking import REPORT
from wire.messages_stats import DeviceRecord, ModelRecord, ResidentRecord, Stats
from wire.messages_work import Loaded, Phase, Progress

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def test_a_report():
    report = report_of(REPORT, NOW)
    tiny, other = report.models
    assert tiny.listing["details"]["context_length"] == 256 and "context_length" not in other.listing["details"]
    (resident,) = report.resident
    assert resident.expires_at == "2030-01-01T00:01:00.000000Z"
    assert resident.listing == {
        "name": "tiny", "model": "tiny", "size": 1500, "digest": "aa11", "size_vram": 1500, "context_length": 256,
        "expires_at": resident.expires_at,
        "details": {
            "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "1M",
            "quantization_level": "Q4_0",
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("told", "slots"), [(3, 3), (0, None), (-1, None), (10**9, MOST_SLOTS), ("3", None), (True, None)]
)
def test_slots_are_not_believed_unseen(told: object, slots: int | None):
    assert report_of(Stats((("slots", told),)), NOW).slots == slots  # type: ignore[arg-type]
    assert report_of(Stats(), NOW).version == ""


def test_what_stays_for_ever_and_what_nobody_can_write_as_a_date():
    stats = Stats(residents=(ResidentRecord("a", "ready"), ResidentRecord("b", "ready", seconds_left=1e300)))
    first, second = report_of(stats, NOW).resident
    assert first.expires_at == second.expires_at and str(first.expires_at).startswith("2321-")
    assert first.context_length is None and first.listing["size_vram"] == 0
    assert listed(ModelRecord("a", modified_s=1e300))["modified_at"].startswith("9999-12-31")


def test_parameters_by_the_name_that_is_compared():
    assert parameters_of(Stats(models=(ModelRecord("Tiny:latest", parameters=(("top_k", 3),)),))) == {
        "tiny": {"top_k": 3}
    }


def test_models_as_a_gpu_node_lists_them_over_http():
    told = models_record(REPORT)
    tiny = entry_of(told, "tiny")  # type: ignore[arg-type]
    assert tiny is not None
    assert (tiny["state"], tiny["slots"], tiny["in_flight"], tiny["idle_seconds_left"]) == ("ready", 32, 2, 60.0)
    assert (tiny["memory_bytes"], tiny["weights_bytes"], tiny["cache"]) == (1500, 1000, {"bytes": 500})
    other, gone = told["models"][1:]
    assert (other["name"], other["state"], other["available"]) == ("other:1b", "empty", True)
    assert (gone["name"], gone["state"], gone["available"]) == ("gone", "leaving", False)


def test_devices():
    told = gpu_record(REPORT)
    assert [(gpu["name"], gpu["free_bytes"]) for gpu in told["gpus"]] == [("cuda", 8000)]
    assert [account["models"] for account in told["accounts"]] == [
        {"tiny": {"weights_bytes": 1000, "cache_bytes": 500}}, {},
    ]  # fmt: skip
    assert (free_bytes(told, "cuda"), free_bytes(told, "cpu"), free_bytes(told, None)) == (8000, 20_000, 20_000)


def test_models_that_are_split_are_in_the_account_of_all_devices():
    devices = (DeviceRecord("devices", "devices", 300, 100, 200), DeviceRecord("cpu", "cpu", 900, 900, 0))
    resident = ResidentRecord("tiny", "ready", device="cpu:0, cpu:1", device_bytes=200, cache_bytes=50)
    told = gpu_record(Stats(devices=devices, residents=(resident,)))
    assert [(account["device"], list(account["models"])) for account in told["accounts"]] == [
        ("devices", ["tiny"]), ("cpu", [])
    ]  # fmt: skip
    assert free_bytes(told, None) == 100


def test_steps_of_a_loading():
    assert progress_record("m", Progress(Phase.READING, 1, 2), 1.26) == {
        "model": "m", "status": "loading", "elapsed_seconds": 1.3, "completed": 1, "total": 2,
    }  # fmt: skip
    assert progress_record("m", Progress(Phase.FETCHING), 0.0)["status"] == "fetching"
    told = loaded_record(Loaded("Tiny", 128, facts=(("dtype", "bfloat16"), ("layers", 2))), REPORT, 1.5)
    assert (told["status"], told["load_seconds"], told["slots"], told["device"]) == ("success", 1.5, 32, "cuda:0")
    assert (told["context_length"], told["dtype"], "state" in told) == (128, "bfloat16", False)
    assert loaded_record(Loaded("new", 128), REPORT, 1.5)["model"] == "new", "gone again before it was looked at"
