"""A plan of one device at the start: the model in this process, within the device's budget, as nobody splits it."""

from __future__ import annotations

from dataclasses import replace

from gpu_node.devices import Device
from gpu_node.engine.loader import LoadOptions, PartOptions, load_runner
from gpu_node.engine.runner import Runner
from gpu_node.pipeline.process import TORCH_KINDS
from gpu_node.pipeline.split_model import SplitModel


def load_inside(model: SplitModel, device: Device) -> Runner:
    """In the thread that will run it. Raises `ModelError` and `DeviceOutOfMemory`."""
    return load_runner(model.folder, inside_options(model.options, device, len(model.shape.layers)))


def inside_options(options: LoadOptions, device: Device, layers: int) -> LoadOptions:
    """Without a budget, on the first card of its kind, they are those of a model that is not split."""
    name = (
        device.kind if device.kind in ("cpu", "mps") else f"{TORCH_KINDS.get(device.kind, device.kind)}:{device.number}"
    )
    options = replace(options, device="cpu" if device.kind == "cpu" else "auto", parts=())
    if device.budget_bytes is None and name in ("cpu", "cuda:0"):
        return options
    return replace(options, parts=(PartOptions(layers, device.budget_bytes, name),))
