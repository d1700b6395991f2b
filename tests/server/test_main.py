"""The composition root: the parts work together, wrong settings are one sentence, and everything ends."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.care import CareLimits
from server.main import Application, create_app, running
from server.nesting import DEEPEST
from server.nodes import NodeId
from server.settings import Settings, SettingsError
from tests.fakes.phone import FakePhone
from tests.server.api.gateway import until
from tests.server.live_gateway import live_gateway, program, started, write_phones


async def test_a_question_goes_all_the_way(tmp_path: Path):
    async with FakePhone() as phone, live_gateway(tmp_path, phone) as live, httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(f"{live.address}/ask", json={"prompt": "hi", "temperature": 0})
        assert answer.status_code == 200
        assert (answer.json()["node"], answer.headers["x-cache"]) == ("phone-0", "miss")
        again = await http.post(f"{live.address}/ask", json={"prompt": "hi", "temperature": 0})
        assert (again.json()["response"], again.headers["x-cache"]) == (answer.json()["response"], "hit")
        health = (await http.get(f"{live.address}/health")).json()
        assert (health["status"], health["cache"]["hits"]) == ("ok", 1)
        assert health["embedded"]["mode"] == "off"
        metrics = (await http.get(f"{live.address}/metrics")).text
        assert 'potluck_requests_total{dialect="ask",model="smollm2:135m",node="phone-0",outcome="done"} 2.0' in metrics
    requests = [line for line in live.log if line["event"] == "request"]
    assert [line["cache"] for line in requests] == ["miss", "hit"]
    assert requests[0]["id"] == answer.headers["x-request-id"]


async def test_the_deepest_body_that_is_taken_gets_through(tmp_path: Path):
    """Digests, translations and the node's own body wrap it in more levels, all of which can be written."""
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(DEEPEST - 2):
        schema = {"a": schema}
    arguments = json.dumps({"a": schema})
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    async with FakePhone() as phone, live_gateway(tmp_path, phone) as live, httpx.AsyncClient(timeout=60) as http:
        for path, body in (
            ("/ask", {"prompt": "hi", "temperature": 0, "format": schema}),
            ("/api/chat", {"messages": messages[:1], "options": {"seed": 1}, "stream": False, "format": schema}),
            ("/v1/chat/completions", {"messages": messages, "seed": 1}),
        ):
            answer = await http.post(f"{live.address}{path}", json=body)
            assert answer.status_code < 500, (path, answer.text)
    assert not [line for line in live.log if line["event"] == "fault"]


async def test_what_a_client_sends_for_the_gateway_reaches_no_node(tmp_path: Path):
    secrets = {
        "Authorization": "Bearer s3cret",
        "X-API-Key": "s3cret",
        "Cookie": "session=1",
        "Referer": "http://chat.example/private",
        "X-Forwarded-For": "192.168.1.9",
    }
    async with FakePhone() as phone, live_gateway(tmp_path, phone, api_keys="test:s3cret") as live:
        async with httpx.AsyncClient(headers={**secrets, "Origin": "http://chat.example"}) as http:
            await http.post(f"{live.address}/ask", json={"prompt": "hi"})
            await http.post(f"{live.address}/api/show", json={"model": "smollm2:135m"})
        assert {seen.path for seen in phone.log} >= {"/api/chat", "/api/show"}
        for seen in phone.log:
            headers = {name.lower(): value for name, value in seen.headers.items()}
            assert not {name.lower() for name in [*secrets, "Origin"]} & set(headers), headers
            assert headers["host"] == f"{phone.host}:{phone.port}"


async def test_the_marks_of_care_are_the_owners(tmp_path: Path):
    marks = {"care": False, "care_warm_c": 30, "care_hot_c": 35, "care_cooled_c": 31}
    marks |= {"care_low_battery": 40, "care_charged": 50, "care_stale_s": 60}
    async with live_gateway(tmp_path, **marks) as live:
        limits = live.gateway.services.registry.care
    assert limits == CareLimits(False, 30.0, 35.0, 31.0, 40.0, 50.0, 60.0)
    assert CareLimits() == CareLimits(*(value for name, value in Settings() if name.startswith("care")))


async def test_a_change_of_the_fleet_file_is_seen(tmp_path: Path):
    async with FakePhone() as one, FakePhone() as two, live_gateway(tmp_path, one) as live:
        write_phones(tmp_path / "phones.json", [one, two])
        nodes = live.gateway.services.registry
        await until(lambda: nodes.node(NodeId(f"127.0.0.1:{two.port}")) is not None)
        (tmp_path / "phones.json").write_text('[{"host": ]')
        await until(lambda: live.gateway.services.fleet_file().error is not None)
        async with httpx.AsyncClient(timeout=60) as http:
            health = (await http.get(f"{live.address}/health")).json()
        assert health["fleet_file"]["error"].startswith("line 1, column ")
        assert len(health["nodes"]) == 2


async def test_a_fleet_file_that_was_named_and_is_missing_is_told(tmp_path: Path):
    path, text = tmp_path / "typo.json", io.StringIO()
    async with running(
        Settings(phones_file=path, embedded_node="off", discovery="off", adb="off"), {}, text
    ) as gateway:
        assert gateway.services.fleet_file().error == "does not exist"
        assert "typo.json does not exist" in text.getvalue()
        write_phones(path, [])
        assert gateway.services.fleet_file().error is None


async def test_no_fleet_file_where_none_was_named_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = io.StringIO()
    async with running(Settings(embedded_node="off", discovery="off", adb="off"), {}, text) as gateway:
        assert gateway.services.fleet_file().error is None
        assert text.getvalue() == ""


async def test_nothing_to_serve_says_what_to_do(tmp_path: Path):
    async with live_gateway(tmp_path) as live, httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(f"{live.address}/ask", json={"prompt": "hi"})
    assert answer.status_code == 503
    assert "potluck phones invite" in str(answer.json())


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"POTLUCK_DRAIN": "1"}, "did you mean POTLUCK_DRAIN_S?"),
        ({"POTLUCK_QUEUE_LIMIT": "many"}, "POTLUCK_QUEUE_LIMIT"),
        ({"POTLUCK_API_KEYS": "a:s3cret,b:"}, "entry 2 of POTLUCK_API_KEYS"),
    ],
)
def test_a_wrong_setting_ends_the_program_with_one_sentence(environ: dict[str, str], words: str):
    with pytest.raises(SystemExit) as caught:
        create_app(environ=environ)
    assert words in str(caught.value)
    assert str(caught.value).count("\n") == 0
    assert "s3cret" not in str(caught.value)


async def test_wrong_keys_are_refused_without_the_command_line_too():
    with pytest.raises(SettingsError, match="twice"):
        async with running(Settings(api_keys="a:1,a:2"), {}):
            raise AssertionError("it started")


async def test_a_wrong_setting_over_uvicorn_is_one_line(tmp_path: Path):
    async with program(tmp_path, POTLUCK_STRATEGY="random") as made:
        assert await made.end() == 1
    assert len(made.lines) == 1, made.lines
    assert made.lines[0].startswith("potluck: POTLUCK_STRATEGY")


# lifespan and other scopes, as raw ASGI


async def lifespan(app: Application, inside: Any = None) -> list[str]:
    told: list[str] = []
    messages: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    messages.put_nowait({"type": "lifespan.startup"})

    async def send(message: Any) -> None:
        told.append(message["type"])
        if message["type"] == "lifespan.startup.complete":
            if inside is not None:
                await inside()
            messages.put_nowait({"type": "lifespan.shutdown"})

    await app({"type": "lifespan"}, messages.get, send)
    return told


async def test_lifespan_starts_and_stops_everything(tmp_path: Path):
    (tmp_path / "phones.json").write_text("[]")
    app = create_app(Settings(phones_file=tmp_path / "phones.json", embedded_node="off"), {})
    names: set[str] = set()

    async def look() -> None:
        names.update(task.get_name() for task in asyncio.all_tasks())

    assert await lifespan(app, look) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert {"health", "fleet file", "embedded node"} <= names
    with pytest.raises(RuntimeError, match="lifespan"):
        await app({"type": "http"}, None, None)  # type: ignore[arg-type]


async def test_a_websocket_is_closed():
    told = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        told.append(message["type"])

    await create_app(Settings(), {})({"type": "websocket"}, receive, send)
    assert told == ["websocket.close"]


async def test_the_program_warns_when_others_can_reach_it_without_a_key(tmp_path: Path):
    for arguments, environment, warned in (
        (["--host", "0.0.0.0"], {}, True),
        (["--host", "0.0.0.0"], {"POTLUCK_API_KEYS": "a:b"}, False),
        (["--host", "127.0.0.1"], {}, False),
    ):
        async with program(tmp_path, arguments=arguments, **environment) as made:
            await started(made)
            lines = [json.loads(line) for line in made.lines if line.startswith("{")]
            assert any("no key is set" in line["event"] for line in lines) is warned, made.lines
            made.process.terminate()
            await made.end()


async def test_phones_on_a_cable_are_followed_as_the_settings_say(tmp_path: Path, unused_tcp_port: int) -> None:
    where = f"localhost:{unused_tcp_port}"
    values = Settings(phones_file=tmp_path / "phones.json", embedded_node="off", discovery="off", adb_server=where)
    async with running(values, {}, io.StringIO()) as gateway:
        status = gateway.services.adb_status
        await until(lambda: "no adb server answers" in status()["problem"])
        told = f"no adb server answers at 127.0.0.1:{unused_tcp_port}"
        assert status() == {"mode": "auto", "server": f"127.0.0.1:{unused_tcp_port}", "problem": told, "phones": []}
