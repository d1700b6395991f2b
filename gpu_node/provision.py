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
from gpu_node.splitting import Splitting, Wanted
from gpu_node.vram import Claim


class Provision:
    def __init__(
        self, store: ModelStore, source: ModelSource, asked: str, cache: Path, splitting: Splitting | None = None
    ) -> None:
        """`asked` is what the fetching process is told, `cache` where it puts things. With `splitting` the model may
        lie on several devices; without it lies on one, in this process."""
        self._store, self._source, self._asked, self._cache = store, source, asked, cache
        self._splitting = splitting
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
        """In the engine's thread: importing torch takes seconds. Raises as `load_runner` and `Splitting.load` do."""
        import_for_good("gpu_node.engine.loader")
        from gpu_node.engine.cache_size import CacheOptions
        from gpu_node.engine.loader import LoadOptions, load_runner

        assert self._folder is not None, "prepared before"
        cache = CacheOptions(
            block_tokens=wish.block_tokens,
            block_count=wish.kv_blocks or None,
            size_bytes=wish.kv_bytes or None,
            max_running=wish.max_running,
            context=context_of(description, wish),
        )
        options = LoadOptions(
            device=wish.device if self._splitting is None else "auto",
            dtype=wish.dtype,
            threads=wish.threads,  # of all stages together
            template=description.template,
            weights=wish.weights,
            kernels=wish.kernels,
            kernel_folder=self._cache / "kernels",
            cache=cache,
            progress=progress,
        )
        if self._splitting is not None:
            return self._splitting.load(self._wanted(description, wish), self._folder, options)
        return load_runner(self._folder, options)

    def claim(self, description: ModelDescription, wish: LoadWish) -> Claim:
        """Of a model that is split; raises `DoesNotFit`."""
        assert self._splitting is not None, "only what is split is sized beforehand"
        return self._splitting.claim(self._wanted(description, wish))

    def _wanted(self, description: ModelDescription, wish: LoadWish) -> Wanted:
        return Wanted(self._source.name, description, wish, context_of(description, wish))


def context_of(description: ModelDescription, wish: LoadWish) -> int:
    """The longest of a request, as far as it is known before loading."""
    return min(wish.context or LARGEST_DEFAULT_CONTEXT, description.context_length or UNSTATED_CONTEXT)


def import_for_good(module: str) -> None:
    """Whatever lives once it is imported is never looked through for garbage again.

    torch and transformers are hundreds of thousands of objects: without this every model that leaves would stop the
    whole node, its event loop too, for as long as a collection of them takes: a third of a second and more. Only at
    the first import, when there is no model yet that could be garbage one day.
    """
    if module not in sys.modules:
        importlib.import_module(module)
        gc.freeze()
