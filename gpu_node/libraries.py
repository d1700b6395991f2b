"""The heavy libraries that only the GPU node wants. A phones-only install lacks them, and is told what to type."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, MutableMapping

from gpu_node.errors import UsageError

NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "gguf", "llguidance")
INSTALL_HINT = "pip install -r requirements.txt (in a checkout) or pip install 'potluck-llm[gpu]'"


def share_the_cpu(environ: MutableMapping[str, str]) -> None:
    """Must come before torch is imported. A setting of the user's own stays.

    OpenMP's threads otherwise spin while they wait for each other. Where another program wants the same cores, that
    made two threads ten times slower than one.
    """
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def require_libraries(find: Callable[[str], object | None] = importlib.util.find_spec) -> None:
    """Looks only; nothing is imported."""
    missing = [name for name in NEEDED if find(name) is None]
    if missing:
        raise UsageError(f"the GPU node needs {', '.join(missing)}; install with: {INSTALL_HINT}")
