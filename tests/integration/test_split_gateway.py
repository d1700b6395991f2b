"""`scripts/run --devices …` as a client sees it: the default model over two budgets, neither of which could hold it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpu_node.manifest import models_folder
from gpu_node.model_store import ModelStore, default_cache
from gpu_node.progress import Progress
from tests.gpu_node.test_node import is_alive
from tests.server.live_gateway import program, started

CACHE = Path(os.environ.get("POTLUCK_NODE_CACHE") or default_cache(os.environ))
STORE = ModelStore(CACHE, models_folder(), Progress(io.StringIO()))
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.skipif(
        STORE.find(STORE.resolve("default")) is None,
        reason="the default model is not there: python -m gpu_node.model_store fetch default",
    ),
]
MIB = 1 << 20
CONTEXT = 2048
SETTINGS = {
    "POTLUCK_EMBEDDED_NODE": "auto",
    "POTLUCK_EMBEDDED_DEVICES": "cpu:220MiB,cpu:180MiB",
    "POTLUCK_DISCOVERY": "off",
    "POTLUCK_ADB": "off",
    "POTLUCK_NODE_CACHE": str(CACHE),
    "POTLUCK_NODE_CONTEXT": str(CONTEXT),
    "POTLUCK_NODE_WEIGHTS": "full",  # 258 MiB
    "POTLUCK_NODE_THREADS": "2",
    "HF_HUB_OFFLINE": "1",
}
CHAT = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "stream": False,
    "options": {"temperature": 0, "num_predict": 12},
}


@pytest.mark.timeout(900)
async def test_the_default_model_over_two_budgets_serves_and_is_shown(tmp_path: Path) -> None:
    async with program(tmp_path, **SETTINGS) as gateway:
        await started(gateway)
        reading = asyncio.create_task(gateway.end(800))
        async with httpx.AsyncClient(base_url=gateway.address, timeout=600) as http:
            reply = await http.post("/api/chat", json=CHAT)
            assert "Paris" in reply.json()["message"]["content"], reply.text
            (node,) = (await http.get("/api/pipeline/status")).json()["nodes"]
        shown(node)
        below = descendants(gateway.process.pid)
        assert len(below) >= 3, "the node and its two workers"
        gateway.send(signal.SIGTERM)
        assert await reading in (0, -signal.SIGTERM)  # uvicorn ends by the signal that it was sent
    while any(map(is_alive, below)):  # noqa: ASYNC110 - other processes: they see the end a moment later
        await asyncio.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """Of whatever thread of it; those that ended meanwhile are left out."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def shown(node: dict[str, Any]) -> None:
    """As the page has it."""
    (model,) = node["models"].values()
    assert (model["split"], model["context_length"]) == (True, CONTEXT)
    stages: list[dict[str, Any]] = model["stages"]
    assert [(stage["device"], stage["budget_bytes"] // MIB) for stage in stages] in (
        [("cpu:0", 220), ("cpu:1", 180)],
        [("cpu:1", 180), ("cpu:0", 220)],
    )
    assert [stage["first_layer"] for stage in stages] == [0, stages[0]["behind_layer"]]
    assert stages[1]["behind_layer"] == 30
    held = [stage["weights_bytes"] + stage["cache_bytes"] for stage in stages]
    assert all(0 < size <= stage["budget_bytes"] for size, stage in zip(held, stages, strict=True))
    assert sum(held) > 220 * MIB, "one of them alone could not hold it"
