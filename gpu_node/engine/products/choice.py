"""Which product holds which weight: the one place that knows them all.

Invariants: a weight that nobody asked to quantise is never quantised; compiled kernels are used where installed
and wanted, and asking for them where they are missing is an error. Must not know models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpu_node.engine.products.base import Lookup, Numerics, Product, QuantisedWeight, joined
from gpu_node.engine.products.compiled import CompiledProduct
from gpu_node.engine.products.dense import DenseProduct, TableLookup
from gpu_node.engine.products.int4 import Int4Product, fits_int4
from gpu_node.engine.products.int8 import Int8Product
from gpu_node.engine.products.kernels.availability import available, reason
from gpu_node.engine.products.kernels.weights import GROUP, Unsuitable, dense_weight, packed_weight
from gpu_node.engine.products.panel_lookup import PanelLookup
from gpu_node.engine.products.quantise import INT8_GROUP, quantised_groups, quantised_int4, quantised_int8
from gpu_node.engine.products.quantised_lookup import QuantisedLookup
from gpu_node.engine.products.stacked import StackedProduct
from gpu_node.engine.products.wide import WideProduct
from gpu_node.errors import ModelError

if TYPE_CHECKING:
    from gpu_node.engine.products.kernels.kernels import Kernels

HALVES = (torch.bfloat16, torch.float16)


def with_kernels(numerics: Numerics) -> Numerics:
    """With compiled kernels open, where they are wanted and can be had; whoever asks closes them.

    Raises `ModelError` when they are insisted on and cannot be had."""
    if numerics.kernels == "torch" or numerics.compiled is not None:
        return numerics
    opened = None
    if numerics.device.type == "cpu" and numerics.compute is torch.float32 and available():
        from gpu_node.engine.products.kernels.kernels import open_kernels  # llvmlite is optional

        opened = open_kernels(numerics.kernel_folder, torch.get_num_threads())
    if opened is None and numerics.kernels == "compiled":
        raise ModelError(f"compiled kernels are not to be had: {reason() or 'they compute on CPUs in float32 only.'}")
    return numerics if opened is None else replace(numerics, compiled=opened)


def product_of(weight: Tensor | QuantisedWeight, bias: Tensor | None, numerics: Numerics) -> Product:
    """`weight` [rows, columns] lies on `numerics.device` and may be kept; `bias` [rows] in any floating type."""
    if isinstance(weight, Tensor):
        weight = held(weight, numerics)
    bias = None if bias is None else bias.to(numerics.compute)
    if numerics.compiled is None or numerics.compute is not torch.float32:
        return _torch_product(weight, bias, numerics)
    try:
        return _compiled_product(weight, bias, numerics.compiled, numerics)
    except Unsuitable:
        return _torch_product(weight, bias, numerics)


def product_of_parts(parts: Sequence[Tensor | QuantisedWeight], bias: Tensor | None, numerics: Numerics) -> Product:
    """One product of weights that share their input, in one piece where they are held alike; `bias` [all rows]."""
    quantised = [part for part in parts if isinstance(part, QuantisedWeight)]
    if len(quantised) == len(parts):
        together = joined(quantised)
        if together is not None:
            return product_of(together, bias, numerics)
    biases: Sequence[Tensor | None] = [None] * len(parts)
    if bias is not None:
        biases = torch.split(bias, [part.shape[0] for part in parts])
    return StackedProduct([product_of(part, own, numerics) for part, own in zip(parts, biases, strict=True)])


def lookup_of(table: Tensor | QuantisedWeight, numerics: Numerics) -> Lookup:
    if isinstance(table, QuantisedWeight):
        return QuantisedLookup(table, numerics.compute)
    return TableLookup(table, numerics.compute)


def tied(table: Tensor | QuantisedWeight, numerics: Numerics) -> tuple[Lookup, Product]:
    """Embedding and output layer that share one weight, which is held once where the product allows it."""
    exact = replace(numerics, may_round=False)
    if isinstance(table, Tensor):
        table = held(table, numerics)
    product = product_of(table, None, exact)
    if isinstance(product, CompiledProduct) and product.weight.quantised:
        return PanelLookup(product.weight), product
    if isinstance(product, Int8Product):
        table = product.weight
    return lookup_of(table, numerics), product


def held(weight: Tensor, numerics: Numerics) -> Tensor | QuantisedWeight:
    """The weight in the form that the settings ask for."""
    rows, columns = weight.shape
    if numerics.held_as == "int8":
        return quantised_int8(
            weight, INT8_GROUP if numerics.compiled is not None and columns % INT8_GROUP == 0 else None
        )
    if numerics.held_as == "int4" and columns % 32 == 0 and rows % 16 == 0:
        return quantised_int4(weight)
    return held(weight, replace(numerics, held_as="int8")) if numerics.held_as == "int4" else weight


def _compiled_product(
    weight: Tensor | QuantisedWeight, bias: Tensor | None, kernels: Kernels, numerics: Numerics
) -> Product:
    if isinstance(weight, QuantisedWeight):
        if weight.group % GROUP and weight.shape[1] % GROUP == 0:
            # Q6_K and its like have scales for 16 columns. 8-bit codes for 32 lose no more than one scale a row does,
            # and without them no layer of a Q4_K_M file would be compiled.
            weight = quantised_groups(weight)
        return CompiledProduct(packed_weight(weight, bias), kernels, None)
    # Rounding pays for many rows only where 16-bit products are quick.
    many = _torch_product(weight, bias, replace(numerics, may_round=numerics.may_round and numerics.native_halves))
    return CompiledProduct(dense_weight(weight, bias), kernels, many)


def _torch_product(weight: Tensor | QuantisedWeight, bias: Tensor | None, numerics: Numerics) -> Product:
    if isinstance(weight, QuantisedWeight):
        return _quantised_product(weight, bias, numerics)
    if weight.dtype is numerics.compute:
        return DenseProduct(weight, bias)
    if weight.dtype in HALVES and numerics.compute is torch.float32:
        return WideProduct(weight, bias, may_round=numerics.may_round, native=numerics.native_halves)
    return DenseProduct(weight.to(numerics.compute), bias)


def _quantised_product(weight: QuantisedWeight, bias: Tensor | None, numerics: Numerics) -> Product:
    if fits_int4(weight, numerics.device):
        return Int4Product(weight, bias, numerics.compute)
    return Int8Product(weight, bias, numerics.compute)
