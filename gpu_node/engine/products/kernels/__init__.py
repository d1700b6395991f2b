"""Compiled kernels for processors: products with few rows, norms, rotary positions, gates and paged attention.

Optional: they are written in LLVM's language by this package and compiled by llvmlite at first use, without a compiler
on the machine. `available` tells whether that works here; callers without it use torch. Importing this package does
not import llvmlite. Must not know models or layers, which plug the operations together.
"""

from gpu_node.engine.products.kernels.availability import available, reason

__all__ = ["available", "reason"]
