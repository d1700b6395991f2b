"""A whole GPU node over the tiny model, in a process of its own, for tests that want nothing played."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.process import client_of, running


@dataclass(frozen=True)
class RealNode:
    place: str  # of its relay
    model: str
    folder: Path


@contextmanager
def real_node(folder: Path) -> Iterator[RealNode]:
    """Ready to answer."""
    tiny = write_tiny_model(folder / "tiny-llama")
    with running(tiny, folder / "cache") as (_, event), client_of(event) as http:
        [model] = [record["name"] for record in http.get("/api/tags").json()["models"]]
        yield RealNode(f"{event.get('relay_host', '127.0.0.1')}:{event['relay_port']}", model, tiny)
