"""Kernels by name: compiled when first asked for, kept on disk, their addresses given out.

A kernel's file holds a checksum and machine code; its name holds everything the code depends on: this package's own
sources, LLVM, processor and features. So a damaged, foreign or outdated file is never run, and nothing needs clearing.
A folder that cannot be written, or is another user's to write, is as good as none: then every start compiles anew.
Invariant: an address lives as long as the library. Must not know what a kernel computes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from llvmlite import binding

from gpu_node.engine.products.kernels.availability import Target, native_target

logger = logging.getLogger(__name__)

# Writes the text of a module with one function of the given name for the target.
Writer = Callable[[str, Target], str]
DIGEST_BYTES = 32


class KernelLibrary:
    """Safe to use from several threads."""

    def __init__(self, writers: Mapping[str, Writer], folder: Path | None = None, target: Target | None = None) -> None:
        """`folder`: where machine code is kept between starts; None: nowhere."""
        self.target = target or native_target()
        self.compile_seconds = 0.0  # spent so far, for people
        self.compiled = 0
        self._writers = writers
        self._folder = folder if folder is not None and _is_safe(folder) else None
        self._lock = threading.Lock()
        self._addresses: dict[str, int] = {}
        self._code: list[object] = []  # resource trackers: they keep the code in memory
        machine = binding.Target.from_triple(self.target.triple)
        self._machine = machine.create_target_machine(
            cpu=self.target.processor, features=self.target.features, opt=3, reloc="pic", codemodel="small", jit=True
        )
        self._linker = binding.create_lljit_compiler(self._machine)

    def address(self, name: str) -> int:
        """Of the kernel `name`. Raises `KeyError` for a kernel that there is none of."""
        with self._lock:
            if name not in self._addresses:
                self._addresses[name] = self._linked(name, self._kept(name) or self._compiled(name))
            return self._addresses[name]

    def assembly(self, name: str) -> str:
        """For people who tune kernels."""
        return str(self._machine.emit_assembly(self._optimised(name)))

    def _linked(self, name: str, code: bytes) -> int:
        builder = binding.JITLibraryBuilder().add_object_img(code).add_current_process().export_symbol(name)
        tracker = builder.link(self._linker, name)
        self._code.append(tracker)
        return int(tracker[name])

    def _compiled(self, name: str) -> bytes:
        started = time.perf_counter()
        code: bytes = self._machine.emit_object(self._optimised(name))
        self.compiled += 1
        self.compile_seconds += time.perf_counter() - started
        self._keep(name, code)
        return code

    def _optimised(self, name: str) -> binding.ModuleRef:
        module = binding.parse_assembly(self._writers[name](name, self.target))
        module.data_layout = str(self._machine.target_data)
        options = binding.create_pipeline_tuning_options(speed_level=3)
        # Kernels come unrolled and in vectors already; doing it again only makes them long.
        options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
        passes = binding.create_pass_builder(self._machine, options)
        passes.getModulePassManager().run(module, passes)
        return module

    def _kept(self, name: str) -> bytes | None:
        if self._folder is None:
            return None
        try:
            content = self._path(name).read_bytes()
        except OSError:
            return None
        digest, code = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        return code if _digest(code) == digest else None

    def _keep(self, name: str, code: bytes) -> None:
        if self._folder is None:
            return
        written = self._folder / f"{name}-{secrets.token_hex(8)}.new"
        try:
            written.write_bytes(_digest(code) + code)
            os.replace(written, self._path(name))  # so another process never reads half of it
        except OSError as error:
            written.unlink(missing_ok=True)
            logger.warning("compiled kernels cannot be kept in %s: %s", self._folder, error)
            self._folder = None

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        target = (self.target.triple, self.target.processor, self.target.features, self.target.dots)
        key = _digest("\n".join((*target, str(binding.llvm_version_info), _sources(), name)).encode())
        return self._folder / f"{name}-{key.hex()[:24]}.o"


def _is_safe(folder: Path) -> bool:
    """Whether the folder can be made, and nobody else may put code there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        logger.warning("compiled kernels cannot be kept in %s: %s", folder, error)
        return False
    owner = getattr(os, "getuid", lambda: status.st_uid)()  # systems without it have no such bits either
    return bool(status.st_uid == owner) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@cache
def _sources() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return _digest(b"".join(file.read_bytes() for file in files)).hex()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
