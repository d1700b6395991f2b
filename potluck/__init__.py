"""Potluck's Python client: `from potluck import Gateway`.

Names are imported at first use, so that the `potluck` command starts fast; what is imported then is httpx and nothing
else that is heavy. This package never imports the server, the GPU node or torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .answers import Answer, BatchItem, NodeShare, Queued, Thinking, Timings, Token, Usage
    from .asking import AskOptions, Message
    from .errors import (
        AnswerCutShort,
        AnswerTimeout,
        DeadlinePassed,
        GatewayFailed,
        GatewayUnreachable,
        InvalidRequest,
        KeyRefused,
        Misuse,
        ModelUnknown,
        NoNodes,
        PotluckError,
        QueueFull,
        RequestRefused,
        UnexpectedAnswer,
    )
    from .fleet import CacheFacts, EmbeddedFacts, FleetFile, Health, NodeHealth, QueueFacts
    from .gateway import AsyncGateway, Gateway
    from .streams import AsyncBatchStream, AsyncStream, BatchStream, Stream
    from .timeouts import Timeouts

__all__ = [
    "Answer",
    "AnswerCutShort",
    "AnswerTimeout",
    "AskOptions",
    "AsyncBatchStream",
    "AsyncGateway",
    "AsyncStream",
    "BatchItem",
    "BatchStream",
    "CacheFacts",
    "DeadlinePassed",
    "EmbeddedFacts",
    "FleetFile",
    "Gateway",
    "GatewayFailed",
    "GatewayUnreachable",
    "Health",
    "InvalidRequest",
    "KeyRefused",
    "Message",
    "Misuse",
    "ModelUnknown",
    "NoNodes",
    "NodeHealth",
    "NodeShare",
    "PotluckError",
    "QueueFacts",
    "QueueFull",
    "Queued",
    "RequestRefused",
    "Stream",
    "Thinking",
    "Timeouts",
    "Timings",
    "Token",
    "UnexpectedAnswer",
    "Usage",
    "__version__",
]

_MODULES: dict[str, tuple[str, ...]] = {
    "answers": ("Answer", "BatchItem", "NodeShare", "Queued", "Thinking", "Timings", "Token", "Usage"),
    "asking": ("AskOptions", "Message"),
    "errors": (
        "AnswerCutShort",
        "AnswerTimeout",
        "DeadlinePassed",
        "GatewayFailed",
        "GatewayUnreachable",
        "InvalidRequest",
        "KeyRefused",
        "Misuse",
        "ModelUnknown",
        "NoNodes",
        "PotluckError",
        "QueueFull",
        "RequestRefused",
        "UnexpectedAnswer",
    ),
    "fleet": ("CacheFacts", "EmbeddedFacts", "FleetFile", "Health", "NodeHealth", "QueueFacts"),
    "gateway": ("AsyncGateway", "Gateway"),
    "streams": ("AsyncBatchStream", "AsyncStream", "BatchStream", "Stream"),
    "timeouts": ("Timeouts",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
