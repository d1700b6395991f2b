"""Which kernels there are: names and the code behind each.

Invariant: a name says everything that its code depends on, except the processor. Must not know torch.
"""

from __future__ import annotations

from functools import partial
from itertools import product

from gpu_node.engine.products.kernels.attention_code import AttentionCode
from gpu_node.engine.products.kernels.availability import Target
from gpu_node.engine.products.kernels.dense_code import DenseCode
from gpu_node.engine.products.kernels.library import Writer
from gpu_node.engine.products.kernels.numbers import KIND_BYTES, Kind
from gpu_node.engine.products.kernels.program import INTERPRETER, write_interpreter
from gpu_node.engine.products.kernels.quantised_code import PanelLayout, QuantisedCode, write_quantiser
from gpu_node.engine.products.kernels.small_code import (
    Activation,
    write_gate,
    write_norm,
    write_rotation,
    write_store,
)

QUANTISER = "quantise"
SCALE_KINDS: tuple[Kind, ...] = ("f16", "f32")
BITS = (4, 8)
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh")


def catalogue() -> dict[str, Writer]:
    writers: dict[str, Writer] = {INTERPRETER: write_interpreter, QUANTISER: write_quantiser}
    writers |= {f"dense_{kind}": partial(_dense, kind) for kind in KIND_BYTES}
    writers |= {f"store_{kind}": partial(write_store, kind) for kind in KIND_BYTES}
    writers |= {f"attend_{kind}": partial(_attention, kind) for kind in KIND_BYTES}
    writers |= {f"gate_{activation}": partial(write_gate, activation) for activation in ACTIVATIONS}
    writers |= {"norm": write_norm, "rotate": write_rotation}
    for bits, minima, scales in product(BITS, (False, True), SCALE_KINDS):
        layout = PanelLayout(bits, minima, scales)
        writers[layout.name] = partial(_packed, layout)
    return writers


def _dense(kind: Kind, name: str, target: Target) -> str:
    return DenseCode(name, kind, target).write()


def _packed(layout: PanelLayout, name: str, target: Target) -> str:
    return QuantisedCode(name, layout, target).write()


def _attention(kind: Kind, name: str, target: Target) -> str:
    return AttentionCode(name, kind, target).write()
