"""The backends by the kind of node they talk to. A kind's module is imported when its first node is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from server.backends.base import Backend
from server.backends.node_http import NodeHttp
from server.backends.operations import NodeOperations, Operations, OperationsByKind
from server.nodes import NodeKind

__all__ = ["KINDS", "Backends"]

# kind -> module and class; the class takes (NodeHttp, secrets)
KINDS: Mapping[NodeKind, tuple[str, str]] = {
    "ollama": ("server.backends.ollama", "OllamaBackend"),
    "openai": ("server.backends.openai", "OpenAIBackend"),
    "relay": ("server.backends.relay", "RelayBackend"),
}


class Backends(Mapping[NodeKind, Backend]):
    """One backend of each kind, made on first use over one pool of connections.

    `secrets` maps the names in `api_key_env` to keys; it may be filled later (the embedded node's key is).
    """

    def __init__(self, secrets: Mapping[str, str], http: NodeHttp | None = None) -> None:
        self._secrets = secrets
        self._http = http or NodeHttp()
        self._made: dict[NodeKind, Backend] = {}
        # of our own GPU nodes, whatever kind their entry has
        self.operations: Operations = OperationsByKind(NodeOperations(self._http, secrets), self._relay_operations)

    def __getitem__(self, kind: NodeKind) -> Backend:
        if kind not in self._made:
            module, name = KINDS[kind]
            self._made[kind] = getattr(import_module(module), name)(self._http, self._secrets)
        return self._made[kind]

    def __iter__(self) -> Iterator[NodeKind]:
        return iter(KINDS)

    def __len__(self) -> int:
        return len(KINDS)

    async def aclose(self) -> None:
        """Close all connections to all nodes."""
        for backend in self._made.values():
            await backend.aclose()
        await self._http.aclose()

    def _relay_operations(self) -> Operations:
        relay = self["relay"]
        assert hasattr(relay, "operations"), "a backend of kind relay has them"
        operations: Operations = relay.operations
        return operations
