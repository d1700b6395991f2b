from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

pytest.importorskip("llvmlite")

from gpu_node.engine.products.kernels.catalogue import catalogue
from gpu_node.engine.products.kernels.kernels import Kernels
from gpu_node.engine.products.kernels.library import KernelLibrary


def gates(library: KernelLibrary) -> list[float]:
    kernels = Kernels(library)
    x = torch.ones(1, 8)
    kernels.run(kernels.gate(torch.full((1, 8), 30.0), x, x))
    return x[0].tolist()


def test_a_second_start_compiles_nothing(tmp_path):
    first, second = (KernelLibrary(catalogue(), tmp_path / "kernels") for _ in range(2))
    assert gates(first) == [30.0] * 8
    assert first.compiled == 2  # the gate, and what runs programs
    assert gates(second) == [30.0] * 8
    assert second.compiled == 0


def test_a_damaged_file_is_compiled_anew(tmp_path):
    folder = tmp_path / "kernels"
    gates(KernelLibrary(catalogue(), folder))
    for number, file in enumerate(sorted(folder.iterdir())):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] if number else content[:-1] + bytes([content[-1] ^ 1]))
    again = KernelLibrary(catalogue(), folder)
    assert gates(again) == [30.0] * 8
    assert again.compiled == 2
    assert gates(KernelLibrary(catalogue(), folder)) == [30.0] * 8


def test_code_for_another_processor_is_not_run(tmp_path):
    first = KernelLibrary(catalogue(), tmp_path)
    gates(first)
    other = KernelLibrary(catalogue(), tmp_path, replace(first.target, processor="x86-64", features=""))
    other.address("gate_silu")
    assert other.compiled == 1


def test_a_folder_that_others_may_write_is_not_trusted(tmp_path):
    """Whoever can put a file there could run code of theirs in this program."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    os.chmod(folder, 0o777)
    assert gates(KernelLibrary(catalogue(), folder)) == [30.0] * 8
    assert list(folder.iterdir()) == []


def test_a_place_that_cannot_be_a_folder_costs_only_the_cache(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert gates(KernelLibrary(catalogue(), tmp_path / "file" / "kernels")) == [30.0] * 8


def test_a_folder_that_vanishes_costs_only_the_cache(tmp_path):
    library = KernelLibrary(catalogue(), tmp_path / "kernels")
    (tmp_path / "kernels").rmdir()
    assert gates(library) == [30.0] * 8


def test_unknown_kernels_are_an_error(tmp_path):
    with pytest.raises(KeyError):
        KernelLibrary(catalogue()).address("dense_f64")
