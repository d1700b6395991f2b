"""The child that provides a model: its words reach us, its failure becomes our sentence, it ends with us."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from gpu_node.errors import ModelError
from gpu_node.fetching import fetch_in_child
from gpu_node.manifest import models_folder
from gpu_node.model_store import ModelStore
from gpu_node.progress import Progress


async def test_a_file_is_made_ready_in_the_child(
    tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    await fetch_in_child(str(tiny_gguf), tmp_path)
    store = ModelStore(tmp_path, models_folder(), Progress(sys.stderr))
    assert store.find(store.resolve(str(tiny_gguf))) is not None
    assert f"{store.resolve(str(tiny_gguf)).name} is ready in" in capsys.readouterr().err


async def test_its_last_line_is_the_reason(tmp_path: Path) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"torn\.gguf is not a whole GGUF file"):
        await fetch_in_child(str(torn), tmp_path)


async def test_it_ends_when_nobody_waits_any_more(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless.gguf")  # reading it waits for ever
    fetching = asyncio.create_task(fetch_in_child(str(tmp_path / "endless.gguf"), tmp_path))
    await asyncio.sleep(0.3)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):  # a child that lives on fails the test
        await fetching
