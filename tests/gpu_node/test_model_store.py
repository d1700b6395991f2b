"""Fetched, checked and prepared once; half-finished things are never used; the second time is quick and offline."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpu_node.errors import ModelError, UsageError
from gpu_node.model_folder import ORIGIN_FILE, model_files
from gpu_node.model_store import ModelStore, default_cache, file_digest, main
from gpu_node.progress import Progress


def manifest_for(models: Path, gguf: Path, sha256: str | None = None) -> None:
    """A models folder that knows the tiny model under a name, side-loaded: nothing is to be downloaded."""
    models.mkdir()
    shutil.copy(gguf, models / "tiny.gguf")
    entry = {
        "name": "tiny:1m", "aliases": ["tiny"], "licence": "Apache-2.0", "wheel": "no-such-wheel==0",
        "file_in_wheel": "tiny.gguf", "file": "tiny.gguf", "download_bytes": 1, "size_bytes": gguf.stat().st_size,
        "sha256": sha256 or file_digest(gguf), "context_length": 256, "parameters": {"temperature": 0.2},
        "template": "{{ messages }}",
    }  # fmt: skip
    (models / "manifest.json").write_text(json.dumps({"default": "tiny:1m", "models": [entry]}))


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def store(tmp_path: Path, tiny_gguf: Path, log: io.StringIO) -> ModelStore:
    manifest_for(tmp_path / "models", tiny_gguf)
    return ModelStore(tmp_path / "cache", tmp_path / "models", Progress(log))


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").iterdir() if not path.name.startswith(".lock"))


def test_a_known_model_is_checked_prepared_and_remembered(store: ModelStore, tmp_path: Path, tiny_gguf: Path) -> None:
    source = store.resolve("default")
    assert store.find(source) is None
    folder = store.provide(source)
    assert store.find(source) == folder == store.provide(source)
    model = store.describe(source, folder)
    assert model.digest == hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    assert model.template == "{{ messages }}"
    assert (model.licence, model.parameters, model.quantisation) == ("Apache-2.0", {"temperature": 0.2}, "F32")
    assert left_in(tmp_path / "cache") == [folder.name]
    assert model_files(folder).weights == tmp_path / "models/tiny.gguf", "a file that lies there is not copied"
    assert not list(folder.glob("*.safetensors"))


def test_a_file_of_ones_own_is_prepared_once(store: ModelStore, tiny_gguf: Path, tmp_path: Path) -> None:
    source = store.resolve(str(tiny_gguf))
    folder = store.provide(source)
    stamp = (folder / ORIGIN_FILE).stat().st_mtime_ns
    assert store.provide(source) == folder
    assert (folder / ORIGIN_FILE).stat().st_mtime_ns == stamp
    assert folder.name.startswith("tiny-llama.f32-")


def test_a_folder_is_used_where_it_lies(store: ModelStore, tiny_folder: Path) -> None:
    assert store.provide(store.resolve(str(tiny_folder))) == tiny_folder


def test_a_file_that_has_moved_is_found_again(store: ModelStore, tiny_gguf: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a/m.gguf", tmp_path / "b/m.gguf"
    for path in (first, second):
        path.parent.mkdir()
    shutil.copy(tiny_gguf, first)
    folder = store.provide(store.resolve(str(first)))
    first.rename(second)
    source = store.resolve(str(second))
    assert store.find(source) is None
    assert store.provide(source) == folder
    assert model_files(folder).weights == second


@pytest.mark.parametrize("change", ["gone", "shorter", "other"])
def test_a_file_that_is_no_longer_the_one_that_was_checked_is_not_used(
    store: ModelStore, tmp_path: Path, change: str
) -> None:
    source = store.resolve("tiny")
    store.provide(source)
    path = tmp_path / "models/tiny.gguf"
    data = path.read_bytes()
    path.write_bytes({"gone": b"", "shorter": data[:-1], "other": data[:-1] + bytes([data[-1] ^ 1])}[change])
    if change == "gone":
        path.unlink()
    assert store.find(source) is None


def test_the_folder_of_an_older_version_makes_room(store: ModelStore, tmp_path: Path) -> None:
    """They held weights that were converted."""
    folder = store.provide(store.resolve("tiny"))
    (folder / ORIGIN_FILE).write_text(json.dumps({"file": "tiny.gguf", "digest": "d" * 64}))
    (folder / "model.safetensors").write_bytes(b"x")
    assert store.find(store.resolve("tiny")) is None
    assert store.provide(store.resolve("tiny")) == folder
    assert not (folder / "model.safetensors").exists()


def test_a_file_of_an_unknown_architecture_is_refused_before_anything_is_kept(
    store: ModelStore, tiny_gguf: Path, tmp_path: Path
) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(tiny_gguf.read_bytes().replace(b"llama", b"lemma"))
    with pytest.raises(ModelError, match="architecture 'lemma' are not supported; known: gemma2"):
        store.provide(store.resolve(str(path)))
    assert left_in(tmp_path / "cache") == []


def test_a_wrong_checksum_is_never_used(tmp_path: Path, tiny_gguf: Path, log: io.StringIO) -> None:
    manifest_for(tmp_path / "models", tiny_gguf, sha256="0" * 64)
    store = ModelStore(tmp_path / "cache", tmp_path / "models", Progress(log))
    with pytest.raises(ModelError, match=r"tiny\.gguf is not the file that the manifest names: its SHA-256"):
        store.provide(store.resolve("tiny"))
    assert left_in(tmp_path / "cache") == []


def test_what_a_killed_process_left_is_cleared_and_never_used(store: ModelStore, tmp_path: Path) -> None:
    folder = store.provide(store.resolve("tiny"))
    (folder / ORIGIN_FILE).unlink()  # the mark of a whole folder
    stale = folder.parent / f".partial-{folder.name}-abc"
    stale.mkdir()
    assert store.find(store.resolve("tiny")) is None
    assert store.provide(store.resolve("tiny")) == folder
    assert left_in(tmp_path / "cache") == [folder.name]


def test_two_processes_wait_for_each_other(store: ModelStore, tmp_path: Path, log: io.StringIO) -> None:
    folder = store.provide(store.resolve("tiny"))
    kept = shutil.copytree(folder, tmp_path / "kept")
    shutil.rmtree(folder)
    with (folder.parent / f".lock-{folder.name}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found: list[Path] = []
        waiter = threading.Thread(target=lambda: found.append(store.provide(store.resolve("tiny"))))
        waiter.start()
        while "another process" not in log.getvalue():
            waiter.join(0.01)
        shutil.copytree(kept, folder)
        before = log.getvalue()
    waiter.join(60)
    assert found == [folder]
    assert log.getvalue() == before, "the other process had done the work"


def test_a_file_that_is_no_gguf_is_one_sentence(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        store.provide(store.resolve(str(tmp_path / "x.gguf")))
    assert left_in(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, tiny_gguf: Path, log: io.StringIO) -> None:
    manifest_for(tmp_path / "models", tiny_gguf)
    (tmp_path / "cache").write_text("a file where the folder should be")
    store = ModelStore(tmp_path / "cache", tmp_path / "models", Progress(log))
    with pytest.raises(ModelError, match="cannot be used"):
        store.provide(store.resolve("tiny"))


def test_a_hub_model_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    """In a child: the hub's client reads its settings when it is imported."""
    environ = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    run = fetch("organisation/name", tmp_path, environ)
    assert run.returncode == 1
    assert "organisation/name cannot be fetched from the hub" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr


def fetch(model: str, cache: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gpu_node.model_store", "fetch", model, "--cache", str(cache)]
    return subprocess.run(command, capture_output=True, text=True, env=environ, check=False)


def test_the_command_is_quick_and_needs_no_torch_when_all_is_there(
    store: ModelStore, tiny_gguf: Path, tmp_path: Path
) -> None:
    store.provide(store.resolve(str(tiny_gguf)))
    code = (
        "import sys; from gpu_node.model_store import main;"
        f"code = main(['fetch', {str(tiny_gguf)!r}, '--cache', {str(tmp_path / 'cache')!r}], {{}});"
        "print(code, [m for m in ('torch', 'transformers', 'gguf', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout.strip(), run.stderr) == ("0 []", "")


def test_mistakes_are_one_sentence_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "no-such-model"], {"POTLUCK_NODE_CACHE": str(tmp_path)}) == 2
    (tmp_path / "torn.gguf").write_bytes(b"GGUF")
    assert main(["fetch", str(tmp_path / "torn.gguf")], {"POTLUCK_NODE_CACHE": str(tmp_path)}) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "'no-such-model' is unknown" in lines[0]
    assert "torn.gguf is not a whole GGUF file" in lines[-1]


def test_the_cache_folder(tmp_path: Path) -> None:
    assert default_cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/potluck")
    assert default_cache({}) == Path.home() / ".cache/potluck"


def test_an_unknown_model_is_a_usage_error(store: ModelStore) -> None:
    with pytest.raises(UsageError):
        store.resolve("nothing-like-it")
