"""Whether kernels can be compiled here, and for which instructions.

llvmlite is optional: without it, or on a processor that nobody has taught these kernels, `reason()` says why and
callers multiply with torch. Invariant: importing this module never imports llvmlite. Must not know any kernel.

Measured: loading llvmlite 0.04 s of processor time; the ten kernels that a model needs take 1.4 s to compile on the
first start and 6 ms on later ones, and 35 KB of disk; llvmlite itself takes 173 MB.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
from dataclasses import dataclass
from typing import Literal

Dots = Literal["portable", "avx2", "vnni"]
PROCESSORS = ("x86_64", "amd64", "aarch64", "arm64")


@dataclass(frozen=True, slots=True)
class Target:
    """What code is written for."""

    triple: str
    processor: str
    features: str
    dots: Dots  # which instructions sum products of 8-bit numbers


def available() -> bool:
    return not reason()


def reason() -> str:
    """Empty when kernels can be compiled. The first call loads llvmlite: 0.1 s."""
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed."
    try:
        importlib.import_module("llvmlite.binding")
    except (ImportError, OSError) as error:  # made for another Python or another system
        return f"llvmlite cannot be loaded: {error}"
    if platform.machine().lower() not in PROCESSORS:
        return f"there are no kernels for {platform.machine()} processors."
    if not converts_halves(platform.machine(), host_features()):
        return "this processor, or the virtual machine's picture of one, lacks instructions for 16-bit numbers (F16C)."
    if sys.byteorder != "little" or sys.maxsize < 1 << 32:
        return "kernels need 64-bit little-endian memory."
    return ""


def converts_halves(machine: str, features: frozenset[str]) -> bool:
    """Without instructions for it code calls a compiler's library, which Python does not bring along."""
    return machine.lower() not in ("x86_64", "amd64") or "f16c" in features


def host_features() -> frozenset[str]:
    """What this processor has. Raises `ImportError` without llvmlite."""
    from llvmlite import binding

    return frozenset(name for name, present in binding.get_host_cpu_features().items() if present)


def native_target() -> Target:
    """This machine's. Raises `ImportError` without llvmlite."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return Target(
        triple=binding.get_process_triple(),
        processor=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        dots=dots_of(host_features()),
    )


def dots_of(features: frozenset[str]) -> Dots:
    """The best that a processor with these features has."""
    if "avxvnni" in features or {"avx512vnni", "avx512vl"} <= features:
        return "vnni"
    return "avx2" if "avx2" in features else "portable"
