"""What the relay counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from prometheus_client.core import Metric

from gpu_node.api.operations import session_record
from gpu_node.relay_metrics import relay_families
from tests.gpu_node.relay.relayed import TOKEN, scripted
from tests.gpu_node.serving import serving, until_true
from transport.errors import Refused, WrongToken
from wire.messages_memory import Alloc
from wire.messages_stats import Stats
from wire.messages_work import Load
from wire.tensors import DType


def samples(families: Iterable[Metric]) -> dict[tuple[str, str], float]:
    found = {}
    for family in families:
        for sample in family.samples:
            found[sample.name.removeprefix("potluck_node_relay_"), next(iter(sample.labels.values()), "")] = (
                sample.value
            )
    return found


async def test_clients_sessions_requests_and_faults_are_counted() -> None:
    async with scripted(token=TOKEN) as (here, _):
        with pytest.raises(WrongToken):
            await here.connect(**{"token": "another"})
        link = await here.connect()
        await link.ask(Stats())
        await link.ask(Alloc(1, DType.FLOAT32, (1000,)))
        with pytest.raises(Refused):
            await link.ask(Load("nothing"))
        await until_true(lambda: here.server.figures.connections == 1)
        told = samples(relay_families(here.server))
        await here.cut(link)
        cut = samples(relay_families(here.server))
        await here.connect(link.welcome.session_key)
        back = samples(relay_families(here.server))
    assert told["connections", ""] == 1
    assert (told["accepted_connections_total", ""], told["refused_connections_total", ""]) == (2, 0)
    assert told["faults_total", "wrong_proof"] == 1
    assert (told["requests_total", "stats"], told["requests_total", "load"]) == (1, 1)
    assert told["failures_total", "model_not_found"] == 1
    assert (told["buffers", ""], told["buffer_bytes", ""]) == (1, 4000)
    assert told["received_bytes_total", ""] > 0 and told["sent_bytes_total", ""] > 0
    assert [told["sessions", state] for state in ("live", "idle", "cut")] == [0, 1, 0]
    assert [cut["sessions", state] for state in ("live", "idle", "cut")] == [0, 0, 1]
    assert cut["received_bytes_total", ""] >= told["received_bytes_total", ""]
    assert (back["resumed_sessions_total", ""], back["sessions", "idle"], back["buffer_bytes", ""]) == (1, 1, 4000)


async def test_sessions_are_told_over_http_too() -> None:
    async with serving() as served:
        told = (await served.client.get("/api/sessions")).json()
    assert told == {"relay": False, "connections": 0, "sessions": []}
    async with scripted() as (here, _):
        link = await here.connect(name="anna")
        await link.ask(Alloc(1, DType.UINT8, (5,)))
        (session,) = here.sessions.all
        await until_true(lambda: session.state == "idle")
        assert session_record(session) == {
            "session": 1, "name": "anna", "state": "idle", "models": [], "buffers": 1, "buffer_bytes": 5, "running": 0,
        }  # fmt: skip


def test_without_a_relay_every_name_is_told_all_the_same() -> None:
    told = samples(relay_families(None))
    assert {name for name, _ in told} >= {"connections", "streams", "sessions", "buffer_bytes", "sent_bytes_total"}
    assert set(told.values()) == {0}
