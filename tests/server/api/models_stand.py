"""A gateway over two GPU nodes and two phones, all scripted: for tests of the fleet's models and devices."""

from __future__ import annotations

from typing import Any

from server.nodes import NodeId, NodeSpec, ProbeReport, ResidentModel
from server.registry import ProbeFailed, Registry
from tests.server.api.gateway import MODEL, Answer, fleet, gateway, post, report, spec
from tests.server.api.scripted_backend import ScriptedBackend
from tests.server.api.scripted_operations import GPU, LOAD, MODELS, UNLOAD, ScriptedOperations, gpu, listed, loaded

TWO: dict[tuple[str, str], Any] = {
    ("alpha", GPU): gpu(500),
    ("alpha", MODELS): listed("m:1b"),
    ("alpha", LOAD): loaded("m:1b", device="cpu"),
    ("beta", GPU): gpu(900),
    ("beta", MODELS): listed("m:1b"),
    ("beta", LOAD): loaded("m:1b", device="cuda:0"),
}


def mixed(**changes: Any) -> Registry:
    """Two GPU nodes and two phones, one of which has the GPU nodes' model too."""
    return fleet(
        (spec("alpha", **changes), report("m:1b", slots=32, gpu_node=True)),
        (spec("beta"), report("m:1b", slots=32, gpu_node=True)),
        (spec("kitchen"), report(MODEL, "m:1b", resident=(ResidentModel(MODEL),))),
        (spec("attic"), report(MODEL)),
    )


class Stand:
    def __init__(self, said: dict[tuple[str, str], Any] | None = None, registry: Registry | None = None, **more: Any):
        self.operations = ScriptedOperations({**TWO, **(said or {})})
        self.backend = ScriptedBackend()
        self.registry = registry or mixed()
        backends: Any = {"ollama": self.backend, "openai": self.backend}
        self.made = gateway(registry=self.registry, backends=backends, operations=self.operations, **more)

    async def load(self, **body: Any) -> Answer:
        return await post(self.made.app, LOAD, {"model": "m:1b", **body})

    async def unload(self, **body: Any) -> Answer:
        return await post(self.made.app, UNLOAD, {"model": "m:1b", **body})

    def silence(self, *names: str) -> None:
        for name in names:
            for moment in range(3):
                self.registry.emit(ProbeFailed(NodeId(name), "no answer", 2_000.0 + moment))


def gpu_nodes() -> list[tuple[NodeSpec, ProbeReport]]:
    return [(spec(name), report("m:1b", slots=32, gpu_node=True)) for name in ("alpha", "beta")]
