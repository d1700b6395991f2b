"""The fake phone's downloads: progress in Ollama's shapes, going on where it stopped, and each bad end."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest

from tests.fakes.phone import FakeModel, FakePhone, Fault, PhoneSettings
from tests.fakes.phone_pulls import SMALL_LAYERS, layers_of

NEW = FakeModel("qwen:1b", size=1_000_000)


async def pull(phone: FakePhone, model: str = "qwen:1b") -> list[dict[str, Any]]:
    """The lines that came, also of a stream that was cut."""
    lines: list[dict[str, Any]] = []
    async with httpx.AsyncClient(timeout=60) as http:
        try:
            async with http.stream("POST", f"{phone.url}/api/pull", json={"model": model}) as response:
                assert response.headers["content-type"] == "application/x-ndjson"
                async for line in response.aiter_lines():
                    lines.append(orjson.loads(line))
        except httpx.RemoteProtocolError:
            pass
    return lines


async def test_a_download_with_progress_of_each_part() -> None:
    async with FakePhone(PhoneSettings(library=(NEW,))) as phone:
        lines = await pull(phone)
        assert lines[0] == {"status": "pulling manifest"}
        assert lines[-3:] == [
            {"status": "verifying sha256 digest"}, {"status": "writing manifest"}, {"status": "success"},
        ]  # fmt: skip
        parts = {line["digest"]: line["total"] for line in lines if "digest" in line}
        assert list(parts.items()) == layers_of(NEW) and list(parts.values()) == [NEW.size, *SMALL_LAYERS]
        weights = [line for line in lines if line.get("total") == NEW.size]
        assert "completed" not in weights[0] and weights[-1]["completed"] == NEW.size
        assert weights[0]["status"] == f"pulling {weights[0]['digest'][7:19]}"
        assert [model.name for model in phone.settings.models] == ["smollm2:135m", "qwen:1b"]
        again = await pull(phone)
        assert all(line["completed"] == line["total"] for line in again if "digest" in line)


async def test_a_newer_copy_takes_the_place_of_the_old() -> None:
    old = FakeModel("qwen:1b", digest="0" * 64)
    async with FakePhone(PhoneSettings(models=(old,), library=(NEW,))) as phone:
        assert (await pull(phone))[-1] == {"status": "success"}
        assert phone.settings.models == (NEW,)


@pytest.mark.parametrize("fault", [Fault.cut(4), Fault.reset(4), Fault.error_line(4, "max retries exceeded: EOF")])
async def test_a_download_that_broke_off_goes_on_where_it_stopped(fault: Fault) -> None:
    async with FakePhone(PhoneSettings(library=(NEW,))) as phone:
        phone.fail(fault, times=1, paths="pull")
        broken = await pull(phone) if fault.kind != "reset" else []
        if fault.kind == "reset":
            with pytest.raises(httpx.ReadError):
                await pull(phone)
        assert {"status": "success"} not in broken
        if fault.kind == "error_line":
            assert broken[-1] == {"error": "max retries exceeded: EOF"}
        await phone.restart()
        weights = [line for line in await pull(phone) if line.get("total") == NEW.size]
        assert weights[0]["completed"] >= 300_000 and weights[-1]["completed"] == NEW.size


async def test_a_full_storage_no_network_and_a_model_that_nobody_has() -> None:
    async with FakePhone(PhoneSettings(library=(NEW,), free_bytes=250_000)) as phone:
        lines = await pull(phone)
        assert lines[-1]["error"].endswith("no space left on device") and lines[-2]["completed"] == 200_000
        assert (await pull(phone, "x:1b"))[-1] == {"error": "pull model manifest: file does not exist"}
        phone.settings.pull_error = "dial tcp: lookup registry: no such host"
        assert (await pull(phone))[-1] == {"error": "pull model manifest: dial tcp: lookup registry: no such host"}
        phone.settings.library = ()
        assert (await pull(phone, "smollm2:135m")) == [{"status": "success"}]


async def test_a_speed_and_a_name_that_is_none() -> None:
    settings = PhoneSettings(library=(NEW,), pull_bytes_per_second=10_000_000, time_scale=0.01)
    async with FakePhone(settings) as phone:
        weights = [line.get("completed", 0) for line in await pull(phone) if line.get("total") == NEW.size]
        assert weights == [0, 600_000, 1_000_000]
        async with httpx.AsyncClient(timeout=60) as http:
            refused = await http.post(f"{phone.url}/api/pull", json={"model": "a b"})
            assert (refused.status_code, refused.json()) == (400, {"error": "invalid model name"})
