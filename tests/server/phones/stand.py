"""Joining over a fleet file in a folder and phones that a script plays, with a clock that the test sets."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.errors import NodeError, NodeUnreachable
from server.nodes import ModelCopy, NodeId, ProbeReport
from server.phones import Joining, Registration
from server.phones_watch import FleetFile
from server.registry import Registry

ID, OTHER = "a" * 32, "b" * 32
HOST = "192.168.1.20"
FOUND = ProbeReport("0.31.1", (ModelCopy("qwen2.5:0.5b"),))


def phone(phone_id: str = ID, name: str = "Pixel 5", port: int = 11434, **details: Any) -> Registration:
    return Registration(NodeId(phone_id), name, port, {"chip": "SM8550", **details})


@dataclass
class Stand:
    """`there` is who answers; `looked` is whom the gateway has called; `names` is what name servers say."""

    folder: Path
    now: float = 1_000.0
    there: dict[tuple[str, int], ProbeReport | NodeError] = field(default_factory=lambda: {(HOST, 11434): FOUND})
    looked: list[tuple[str, int]] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.registry = Registry()
        self.path = self.folder / "phones.json"
        self.fleet_file = FleetFile(self.path, self.registry.emit, lambda: self.now)
        self.fleet_file.reload()
        self.joining = self.started()

    def started(self) -> Joining:
        """As a gateway that starts has it."""
        return Joining(self.registry, self.fleet_file, self.look, lambda: self.now, resolve=self.resolve)

    async def look(self, host: str, port: int) -> ProbeReport:
        self.looked.append((host, port))
        found = self.there.get((host, port)) or NodeUnreachable(f"cannot connect to {host}:{port}")
        if isinstance(found, NodeError):
            raise found
        return found

    async def resolve(self, name: str) -> list[str]:
        if name not in self.names:
            raise OSError(f"no address for {name}")
        return self.names[name]

    @property
    def entries(self) -> list[dict[str, Any]]:
        return json.loads(self.path.read_text())

    def invited(self) -> str:
        return self.joining.invite(15, None)[0]

    async def joined(self, **changes: Any) -> str:
        """A phone that has joined; its own token."""
        token = (await self.joining.join(self.invited(), phone(**changes), HOST)).phone_token
        assert token is not None
        return token
