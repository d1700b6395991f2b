"""Potluck's Python clients: `from potluck import Gateway`, or `Relay` for a GPU node's own protocol.

Names are imported at first use, so that the `potluck` command starts fast; what is imported then is httpx for the one
and lz4 for the other, and nothing else that is heavy. This package never imports the server, the GPU node or torch;
what needs torch is in `potluck.torch`, which is imported by its name.
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
        NodeFailed,
        NodeUnreachable,
        NoNodes,
        NoRoom,
        PotluckError,
        QueueFull,
        RequestRefused,
        SessionLost,
        UnexpectedAnswer,
    )
    from .fleet import CacheFacts, EmbeddedFacts, FleetFile, Health, NodeHealth, QueueFacts
    from .gateway import AsyncGateway, Gateway
    from .relay import AsyncRelay
    from .relay_answers import (
        Embeddings,
        FoundNode,
        Generation,
        LoadedModel,
        LoadProgress,
        NodeStats,
        Piece,
        TokenChoice,
    )
    from .relay_arrays import TensorData
    from .relay_asking import EmbedOptions, GenerateOptions
    from .relay_blocking import Relay, RelayStream, RemoteTensor
    from .relay_buffer import AsyncRemoteTensor
    from .relay_streams import AsyncRelayStream
    from .streams import AsyncBatchStream, AsyncStream, BatchStream, Stream
    from .timeouts import Timeouts

__all__ = [
    "Answer",
    "AnswerCutShort",
    "AnswerTimeout",
    "AskOptions",
    "AsyncBatchStream",
    "AsyncGateway",
    "AsyncRelay",
    "AsyncRelayStream",
    "AsyncRemoteTensor",
    "AsyncStream",
    "BatchItem",
    "BatchStream",
    "CacheFacts",
    "DeadlinePassed",
    "EmbedOptions",
    "EmbeddedFacts",
    "Embeddings",
    "FleetFile",
    "FoundNode",
    "Gateway",
    "GatewayFailed",
    "GatewayUnreachable",
    "GenerateOptions",
    "Generation",
    "Health",
    "InvalidRequest",
    "KeyRefused",
    "LoadProgress",
    "LoadedModel",
    "Message",
    "Misuse",
    "ModelUnknown",
    "NoNodes",
    "NoRoom",
    "NodeFailed",
    "NodeHealth",
    "NodeShare",
    "NodeStats",
    "NodeUnreachable",
    "Piece",
    "PotluckError",
    "QueueFacts",
    "QueueFull",
    "Queued",
    "Relay",
    "RelayStream",
    "RemoteTensor",
    "RequestRefused",
    "SessionLost",
    "Stream",
    "TensorData",
    "Thinking",
    "Timeouts",
    "Timings",
    "Token",
    "TokenChoice",
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
        "NoRoom",
        "NodeFailed",
        "NodeUnreachable",
        "PotluckError",
        "QueueFull",
        "RequestRefused",
        "SessionLost",
        "UnexpectedAnswer",
    ),
    "fleet": ("CacheFacts", "EmbeddedFacts", "FleetFile", "Health", "NodeHealth", "QueueFacts"),
    "gateway": ("AsyncGateway", "Gateway"),
    "relay": ("AsyncRelay",),
    "relay_answers": (
        "Embeddings",
        "FoundNode",
        "Generation",
        "LoadProgress",
        "LoadedModel",
        "NodeStats",
        "Piece",
        "TokenChoice",
    ),
    "relay_arrays": ("TensorData",),
    "relay_asking": ("EmbedOptions", "GenerateOptions"),
    "relay_blocking": ("Relay", "RelayStream", "RemoteTensor"),
    "relay_buffer": ("AsyncRemoteTensor",),
    "relay_streams": ("AsyncRelayStream",),
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
