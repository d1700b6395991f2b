"""The gateway's page over a gateway under test, and a drawer of phones to be seen there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.api.app import build_app
from server.care import Condition
from server.nodes import NodeId, NodeSpec
from server.phones import Joining
from server.phones.joining import PhoneNews
from server.registry import NodeCondition, NodeListed, NodeProbed, ProbeFailed, Registry
from tests.fakes.browser import Browser, Chromium
from tests.server.api.gateway import Gateway, gateway, report, served, spec
from tests.server.phones.stand import FOUND, Stand, phone

MARKUP = '<img src=x onerror="window.hacked=1">'


@asynccontextmanager
async def page_of(chromium: Chromium, made: Gateway, **context: Any) -> AsyncIterator[Browser]:
    async with served(made.app) as address, chromium.opened(address, **context) as browser:
        yield browser


@dataclass
class Drawer:
    """Phones that have joined; `adb` is what the tracker tells. Its clock is the real one: the browser has no other."""

    stand: Stand
    adb: dict[str, Any] | None = None

    @classmethod
    def in_folder(cls, folder: Path) -> Drawer:
        return cls(Stand(folder, now=time.time()))

    @property
    def registry(self) -> Registry:
        return self.stand.registry

    @property
    def joining(self) -> Joining:
        return self.stand.joining

    def page(self, **settings: Any) -> Gateway:
        made = gateway(registry=self.registry, joining=self.joining, **{"host": "192.168.1.2", **settings})
        services = replace(made.services, adb_status=lambda: self.adb)
        return replace(made, services=services, app=build_app(services))

    async def add(self, number: int, name: str, token: str | None = None, **details: Any) -> NodeId:
        """A phone joins, with a new invitation or a given one."""
        host, phone_id = f"192.168.1.{number}", f"{number:032x}"
        self.stand.there[(host, 11434)] = FOUND
        await self.joining.join(token or self.stand.invited(), phone(phone_id, name, **details), host)
        return NodeId(phone_id)

    def tell(self, node: NodeId, ago: float = 0.0, signal: int | None = None, **condition: Any) -> None:
        """What the phone told so many seconds ago."""
        at = self.stand.now - ago
        self.joining.news[node] = PhoneNews(at, signal)
        self.registry.emit(NodeCondition(node, Condition(at=at, **condition), at))

    def plug(self, serial: str) -> NodeSpec:
        """A phone on a cable that is a node."""
        place = {"host": "127.0.0.1", "port": 28001, "origin": "adb", "serial": serial}
        node = spec(serial, name=f"plugged {serial}", **place)
        self.registry.emit(NodeListed(node, self.stand.now))
        self.registry.emit(NodeProbed(node.id, report(), self.stand.now))
        return node

    def silence(self, node: NodeId) -> None:
        for _ in range(3):
            self.registry.emit(ProbeFailed(node, "no route to host", self.stand.now))


def cabled(serial: str, problem: str | None, **changes: Any) -> dict[str, Any]:
    """What the tracker tells of a phone on a cable."""
    told = {"serial": serial, "name": serial, "state": "device", "node": None, "local_port": None, "android": None}
    return {**told, "problem": problem, **changes}


def tracker(*phones: dict[str, Any], mode: str = "auto", problem: str | None = None) -> dict[str, Any]:
    return {"mode": mode, "server": "127.0.0.1:5037", "problem": problem, "phones": list(phones)}
