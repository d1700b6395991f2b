"""PATCH /api/phones/ID about memory: what is written, what is refused, and that the file stays one that can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.nodes import NodeId
from tests.server.api.gateway import Answer, ask, get
from tests.server.api.test_phones import app_of
from tests.server.phones.stand import ID, Stand


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


async def patch(stand: Stand, **body: Any) -> Answer:
    return await ask(app_of(stand), "PATCH", f"/api/phones/{ID}", body)


async def test_what_a_phone_holds_is_written_and_told(stand: Stand) -> None:
    await stand.joined()
    told = (await patch(stand, warm_up="qwen2.5:0.5b", keep_alive="1h")).json()
    assert (told["warm_up"], told["keep_alive"], told["name"]) == ("qwen2.5:0.5b", "1h", "Pixel 5")
    assert (stand.entries[0]["warm_up"], stand.entries[0]["keep_alive"]) == ("qwen2.5:0.5b", "1h")
    node = stand.registry.node(NodeId(ID))
    assert node is not None and (node.spec.warm_up, node.spec.keep_alive) == (("qwen2.5:0.5b",), "1h")
    assert (await patch(stand, warm_up=False)).json()["warm_up"] is False
    told = (await patch(stand, warm_up="auto", keep_alive="auto", name="Kitchen")).json()
    assert (told["warm_up"], told["keep_alive"], told["name"]) == ("auto", "auto", "Kitchen")
    assert {"warm_up", "keep_alive"} & set(stand.entries[0]) == set()
    (listed,) = (await get(app_of(stand), "/api/phones")).json()["phones"]
    assert (listed["warm_up"], listed["keep_alive"], listed["resident"]) == ("auto", "auto", [])


@pytest.mark.parametrize(
    "body",
    [{}, {"warm_up": True}, {"warm_up": []}, {"warm_up": ""}, {"keep_alive": 0}, {"keep_alive": "soon"}, {"x": 1},
     {"keep_alive": [1]}, {"name": "", "warm_up": False}],
)  # fmt: skip
async def test_what_nobody_can_mean_changes_nothing(stand: Stand, body: Any) -> None:
    await stand.joined()
    before = stand.path.read_text()
    assert (await patch(stand, **body)).status == 422
    assert stand.path.read_text() == before


async def test_a_change_of_nothing_says_what_can_be_changed(stand: Stand) -> None:
    await stand.joined()
    refused = await patch(stand, keep_alive=None)
    assert refused.status == 422 and "keep_alive" in refused.json()["error"]["message"]


async def test_a_model_that_it_may_not_serve(stand: Stand) -> None:
    stand.path.write_text(f'[{{"host": "192.168.1.20", "id": "{ID}", "model": "a:1b"}}]')
    stand.fleet_file.reload()
    refused = await patch(stand, warm_up=["a:1b", "b:1b"])
    assert (refused.status, refused.json()["error"]["field"]) == (422, "warm_up")
    assert (await patch(stand, warm_up="A:1b")).status == 200
