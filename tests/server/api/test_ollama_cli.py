"""What the `ollama` command sends, as it was recorded, replayed against the gateway over fake phones: it all works."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.fakes.phone import FakeModel, FakePhone, PhoneSettings
from tests.server.api.gateway import until
from tests.server.live_gateway import live_gateway

RECORDINGS = Path(__file__).parents[2] / "recordings" / "cli"
MODEL = "smollm2:135m"


@dataclass(frozen=True)
class Exchange:
    command: str
    method: str
    path: str
    body: str
    status: int
    answer: str

    @property
    def sent(self) -> Any:
        return json.loads(self.body) if self.body else {}

    def __str__(self) -> str:
        return f"{self.command}: {self.method} {self.path}"


def exchanges(version: str) -> list[Exchange]:
    found, command = [], ""
    for line in (RECORDINGS / f"{version}.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "command" in record:
            command = record["command"]
        else:
            values = {name: record[name] for name in ("method", "path", "body", "status", "answer")}
            found.append(Exchange(command, **values))
    return found


def first_record(answer: str) -> dict[str, Any]:
    """The first JSON object of a recorded answer; recordings are cut at some length."""
    record: dict[str, Any] = json.JSONDecoder().raw_decode(answer)[0]
    return record


@pytest.mark.parametrize("version", ["0.24", "0.33"])
async def test_every_command_works(version: str, tmp_path: Path):
    recorded = exchanges(version)
    assert len(recorded) > 25
    phones = [FakePhone(PhoneSettings(version=f"{version}.0")) for _ in range(2)]
    async with phones[0], phones[1], live_gateway(tmp_path, *phones, probe_interval_s=0.1) as live:
        nodes = live.gateway.services.registry
        http = httpx.AsyncClient(base_url=live.address, timeout=60)
        async with http:
            for exchange in recorded:
                if exchange.path == "/api/ps":  # between commands a person lets the probes see what they did
                    await until(lambda: all(node.resident for node in nodes.fleet.nodes.values()))
                answer = await http.request(exchange.method, exchange.path, content=exchange.body)
                check(exchange, answer)
                check_phones(exchange, phones)
    assert not [line for line in live.log if line["level"] == "error"]


def check(exchange: Exchange, answer: httpx.Response) -> None:
    """The gateway's answer is what the command would understand just as well."""
    if exchange.path == "/api/pull":  # the model was unknown; recorded without a network
        assert (answer.status_code, list(answer.json())) == (501, ["error"])
        return
    assert answer.status_code == exchange.status, (str(exchange), answer.text)
    if not exchange.answer:
        assert answer.content == b""
        return
    told = [orjson.loads(line) for line in answer.content.splitlines()]
    if exchange.path in ("/api/version", "/api/tags", "/api/ps", "/api/show"):
        check_listing(exchange, told[0])
    elif exchange.status == 200:
        wanted = first_record(exchange.answer)
        assert set(told[0]) == set(wanted), str(exchange)
        assert told[0]["model"] == wanted["model"]
        assert told[-1]["done"] is True
        assert told[-1]["done_reason"] == (wanted.get("done_reason") or told[-1]["done_reason"])
    else:
        assert told == [first_record(exchange.answer)]


def check_listing(exchange: Exchange, told: dict[str, Any]) -> None:
    if exchange.status != 200:
        assert told == first_record(exchange.answer)
    elif exchange.path == "/api/version":
        assert told["version"].startswith("0.")
    elif exchange.path == "/api/show":
        assert {"details", "model_info", "template", "modelfile"} <= set(told)
    else:
        assert all({"name", "model", "size", "digest", "details"} <= set(model) for model in told["models"])
        names = [model["name"] for model in told["models"]]
        assert names == [MODEL], "two phones, one model, named once"
        if exchange.path == "/api/ps":
            assert told["models"][0]["expires_at"]
            assert told["models"][0]["nodes"] == ["phone-0", "phone-1"]


def check_phones(exchange: Exchange, phones: list[FakePhone]) -> None:
    """Loading and unloading have reached every phone, with the words of the command."""
    sent = exchange.sent
    if exchange.path != "/api/generate" or sent.get("prompt") != "":
        return
    for phone in phones:
        (last,) = [seen for seen in phone.log if seen.path == "/api/generate"][-1:]
        assert last.json["model"] == MODEL
        assert last.json.get("prompt", "") == ""
        assert last.json.get("keep_alive") == sent.get("keep_alive")


async def test_a_model_that_one_phone_has_is_loaded_there_only(tmp_path: Path):
    one = FakePhone(PhoneSettings(models=(FakeModel(), FakeModel(name="other:1b"))))
    two = FakePhone()
    async with (
        one,
        two,
        live_gateway(tmp_path, one, two) as live,
        httpx.AsyncClient(base_url=live.address, timeout=60) as http,
    ):
        answer = await http.post("/api/generate", json={"model": "other:1b", "prompt": ""})
        assert answer.json()["done_reason"] == "load"
        assert [seen for seen in one.log if seen.path == "/api/generate"]
        assert not [seen for seen in two.log if seen.path == "/api/generate"]
