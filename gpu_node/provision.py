"""One model's way from its source to a runner: fetched and described first, loaded in the engine's thread afterwards.

Fetching happens in a process of its own, so that the node answers meanwhile and stops when it is told to.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
from pathlib import Path

from gpu_node.engine.step import ModelRunner
from gpu_node.errors import ModelError
from gpu_node.fetching import fetch_in_child
from gpu_node.host import LARGEST_DEFAULT_CONTEXT, UNSTATED_CONTEXT, Progress
from gpu_node.load_wish import LoadWish
from gpu_node.model_folder import ModelDescription
from gpu_node.model_source import ModelSource
from gpu_node.model_store import ModelStore


class Provision:
    def __init__(self, store: ModelStore, source: ModelSource, asked: str, cache: Path) -> None:
        """`asked` is what the fetching process is told, `cache` where it puts things."""
        self._store, self._source, self._asked, self._cache = store, source, asked, cache
        self._folder: Path | None = None

    async def prepare(self) -> ModelDescription:
        folder = await asyncio.to_thread(self._store.find, self._source)
        if folder is None:
            await fetch_in_child(self._asked, self._cache)
            folder = await asyncio.to_thread(self._store.find, self._source)
        if folder is None:
            raise ModelError(f"{self._source.name} was fetched but is not there")
        self._folder = folder
        return await asyncio.to_thread(self._store.describe, self._source, folder)

    def load(self, description: ModelDescription, wish: LoadWish, progress: Progress) -> ModelRunner:
        """In the engine's thread: importing torch takes seconds."""
        import_for_good("gpu_node.engine.loader")
        from gpu_node.engine.cache_size import CacheOptions
        from gpu_node.engine.loader import LoadOptions, load_runner

        assert self._folder is not None, "prepared before"
        cache = CacheOptions(
            block_tokens=wish.block_tokens,
            block_count=wish.kv_blocks or None,
            size_bytes=wish.kv_bytes or None,
            max_running=wish.max_running,
            context=min(wish.context or LARGEST_DEFAULT_CONTEXT, description.context_length or UNSTATED_CONTEXT),
        )
        options = LoadOptions(
            device=wish.device,
            dtype=wish.dtype,
            threads=wish.threads,
            template=description.template,
            weights=wish.weights,
            kernels=wish.kernels,
            kernel_folder=self._cache / "kernels",
            cache=cache,
            progress=progress,
        )
        return load_runner(self._folder, options)


def import_for_good(module: str) -> None:
    """Whatever lives once it is imported is never looked through for garbage again.

    torch and transformers are hundreds of thousands of objects: without this every model that leaves would stop the
    whole node, its event loop too, for as long as a collection of them takes: a third of a second and more. Only at
    the first import, when there is no model yet that could be garbage one day.
    """
    if module not in sys.modules:
        importlib.import_module(module)
        gc.freeze()
