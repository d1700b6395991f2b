"""How phones come in over HTTP: the script, the invitation, the phone's own token, and what is never told."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from server.api.join import BODY_LIMIT_BYTES, condition_of, find_script, signal_of
from server.logs import RequestLog
from server.nodes import NodeId
from server.phones.joining import WRONG_TOKENS
from tests.server.api.gateway import Answer, Gateway, ask, gateway, get, post
from tests.server.phones.stand import HOST, ID, Stand

FROM_PHONE: dict[str, Any] = {
    "client": (HOST, 40_000),
    "server": ("192.168.1.2", 8000),
    "headers": {"host": "192.168.1.2:8000"},
}
BODY = {
    "id": ID, "name": 'Pixel "5"', "port": 11434, "chip": "SM8550", "ram_bytes": 5713 * 1048576, "android": "11",
    "termux": "0.118.3", "ollama": "0.31.1", "mode": "native", "model": "qwen2.5:0.5b", "tokens_per_second": 12.5,
    "address": "10.66.66.66",
}  # fmt: skip


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


def made(stand: Stand, **settings: Any) -> Gateway:
    return gateway(joining=stand.joining, registry=stand.registry, **settings)


async def join(app: Any, body: dict[str, Any], bearer: str = "", **more: Any) -> Answer:
    headers = FROM_PHONE["headers"] | ({"authorization": f"Bearer {bearer}"} if bearer else {})
    return await post(app, "/api/phones/join", body, **{**FROM_PHONE, "headers": headers, **more})


async def test_the_plain_script_is_open() -> None:
    answer = await get(gateway(api_keys="a:secret").app, "/join", **FROM_PHONE)
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/x-shellscript")
    assert answer.body == find_script()


async def test_the_invited_script_knows_where_it_came_from(stand: Stand) -> None:
    app, (token, _) = made(stand, api_keys="a:secret").app, stand.joining.invite(15, "smollm2:135m")
    answer = await get(app, f"/join/{token}", **FROM_PHONE)
    head = f"POTLUCK_GATEWAY=http://192.168.1.2:8000\nPOTLUCK_TOKEN={token}\nPOTLUCK_MODEL=smollm2:135m\n"
    assert answer.body == head.encode() + (find_script() or b"")
    assert answer.headers["cache-control"] == "no-store"
    assert (await get(app, f"/join/{token}", **FROM_PHONE)).status == 200  # a download that broke off


async def test_a_look_at_the_head_fetches_nothing(stand: Stand) -> None:
    app, token = made(stand).app, stand.invited()
    head = await ask(app, "HEAD", f"/join/{token}", **FROM_PHONE)
    assert head.status == 200
    assert [one.begun_at for one in stand.joining.invitations] == [None]
    whole = await get(app, f"/join/{token}", **FROM_PHONE)
    assert head.headers["content-length"] == whole.headers["content-length"] == str(len(whole.body))
    assert [one.begun_at for one in stand.joining.invitations] == [stand.now]
    assert (await ask(app, "HEAD", "/join/wrong", **FROM_PHONE)).status == 404


@pytest.mark.parametrize("host", ["a';touch x;'", "a b", "$(id)", "a\tb", "[::1", "x" * 300, "a:b", ""])
async def test_no_header_becomes_a_command(stand: Stand, host: str) -> None:
    app, (token, _) = made(stand, allowed_hosts="*").app, stand.joining.invite(15, None)
    answer = await get(app, f"/join/{token}", **{**FROM_PHONE, "headers": {"host": host}})
    assert answer.body.startswith(b"POTLUCK_GATEWAY=http://192.168.1.2:8000\n")


@pytest.mark.parametrize("token", ["unknown", "x" * 5000, "a/b", "%00", "';id;'"])
async def test_a_bad_invitation_is_a_script_that_says_so(stand: Stand, token: str) -> None:
    answer = await get(made(stand).app, f"/join/{token}", **FROM_PHONE)
    assert answer.status == 404
    run = await asyncio.to_thread(subprocess.run, ["bash"], input=answer.body, capture_output=True)
    assert run.returncode == 1 and run.stderr == b"This invitation is not known here; ask for a new one.\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"client": ("100.64.0.7", 5)}, b"A phone can only join from a private network; "),
        ({"client": ("203.0.113.7", 5)}, b"A phone can only join from a private network; "),
        ({"headers": {"host": "192.168.1.2", "via": "1.1 proxy"}}, b"A phone cannot join through a proxy; "),
    ],
)
async def test_who_could_not_join_is_told_before_the_downloads(stand: Stand, changes: Any, words: bytes) -> None:
    parts, token = made(stand), stand.invited()
    answer = await get(parts.app, f"/join/{token}", **{**FROM_PHONE, **changes})
    run = await asyncio.to_thread(subprocess.run, ["bash"], input=answer.body, capture_output=True)
    assert answer.status == 422 and run.returncode == 1 and run.stderr.startswith(words)
    assert token.encode() not in answer.body
    assert [incoming.caller for incoming in parts.noted.seen] == [f"ip:{changes.get('client', (HOST, 0))[0]}"]


async def test_from_this_machine_the_script_may_be_looked_at(stand: Stand) -> None:
    answer = await get(made(stand).app, f"/join/{stand.invited()}", **{**FROM_PHONE, "client": ("127.0.0.1", 5)})
    assert answer.status == 200


async def test_who_guesses_too_often_is_told_by_a_script_as_well(stand: Stand) -> None:
    app = made(stand).app
    for _ in range(WRONG_TOKENS):
        await get(app, "/join/wrong", **FROM_PHONE)
    answer = await get(app, f"/join/{stand.invited()}", **FROM_PHONE)
    assert answer.status == 429 and answer.headers["retry-after"]
    run = await asyncio.to_thread(subprocess.run, ["bash"], input=answer.body, capture_output=True)
    assert run.returncode == 1 and run.stderr == b"Too many tries from this address; try again in 60 s.\n"


async def test_the_gateway_is_no_phone_of_its_own(stand: Stand) -> None:
    own = {"client": ("192.168.1.2", 40_000)}
    answer = await join(made(stand).app, {"token": stand.invited(), **BODY, "port": 8000}, **own)
    assert answer.status == 422 and stand.looked == []


async def test_from_the_invitation_to_the_fleet(stand: Stand) -> None:
    app, token = made(stand, api_keys="a:secret").app, stand.invited()
    answer = await join(app, {"token": token, **BODY})
    assert answer.status == 200 and answer.headers["cache-control"] == "no-store"
    told = answer.json()
    assert (told["id"], told["name"]) == (ID, 'Pixel "5"')
    assert told["report_url"] == "http://192.168.1.2:8000/api/phones/report"
    assert stand.looked == [(HOST, 11434)], "the address in the body is nobody's word"
    (entry,) = stand.entries
    kept = {name: BODY[name] for name in BODY if name not in ("id", "name", "port", "address")}
    assert entry["details"] == kept
    again = await join(app, BODY, told["phone_token"])
    assert again.status == 200 and "phone_token" not in again.json()
    report = {"battery": {"percentage": 55, "status": "DISCHARGING", "temperature": 39.5}, "wifi": {"rssi": -61}}
    sent = {**FROM_PHONE, "headers": FROM_PHONE["headers"] | {"authorization": f"Bearer {told['phone_token']}"}}
    assert (await post(app, "/api/phones/report", report, **sent)).status == 204
    node = stand.registry.fleet.nodes[NodeId(ID)]
    assert node.condition.level == 55.0 and node.condition.temperature_c == 39.5
    assert stand.joining.news[NodeId(ID)].signal_dbm == -61


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"port": 80}, 422), ({"port": 65536}, 422), ({"port": "11434"}, 422), ({"port": None}, 422),
        ({"id": "A" * 32}, 422), ({"id": "../x"}, 422), ({"id": None}, 422), ({"mode": "usb"}, 422),
        ({"mode": "other"}, 422), ({"ram_bytes": -1}, 422), ({"tokens_per_second": 1e9}, 422), ({"name": 5}, 422),
        ({"token": "wrong"}, 403), ({"token": None}, 401),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_refused_before_anybody_is_called(stand: Stand, changes: Any, status: int) -> None:
    answer = await join(made(stand).app, {"token": stand.invited(), **BODY, **changes})
    assert answer.status == status and answer.json()["error"]["message"]
    assert stand.looked == [] and not stand.path.exists()


@pytest.mark.parametrize("peer", ["127.0.0.1", "::ffff:127.0.0.1", "203.0.113.7", "fe80::1"])
async def test_only_phones_of_the_network_join(stand: Stand, peer: str) -> None:
    answer = await join(made(stand).app, {"token": stand.invited(), **BODY}, client=(peer, 40_000))
    assert answer.status == 422 and stand.looked == []


@pytest.mark.parametrize("name", ["x-forwarded-for", "forwarded", "x-real-ip", "via", "x-forwarded-proto"])
async def test_no_proxy_speaks_for_a_phone(stand: Stand, name: str) -> None:
    headers = {**FROM_PHONE["headers"], name: "192.168.1.66"}
    for path in ("/api/phones/join", "/api/phones/report"):
        answer = await post(
            made(stand).app, path, {**BODY, "token": stand.invited()}, **{**FROM_PHONE, "headers": headers}
        )
        assert answer.status == 422 and stand.looked == []


async def test_no_page_does(stand: Stand) -> None:
    headers = {**FROM_PHONE["headers"], "origin": "http://192.168.1.2:8000"}
    answer = await join(made(stand).app, {"token": stand.invited(), **BODY}, headers=headers)
    assert answer.status == 403 and stand.looked == []


async def test_bodies_are_small(stand: Stand) -> None:
    answer = await join(made(stand).app, {"token": "x", **BODY, "name": "x" * BODY_LIMIT_BYTES})
    assert answer.status == 413


@pytest.mark.parametrize("bearer", ["", "wrong"])
async def test_reports_of_strangers(stand: Stand, bearer: str) -> None:
    headers = FROM_PHONE["headers"] | ({"authorization": f"Bearer {bearer}"} if bearer else {})
    answer = await post(made(stand).app, "/api/phones/report", {}, **{**FROM_PHONE, "headers": headers})
    assert answer.status == 401


@pytest.mark.parametrize("path", ["/join/{}", "/join/{}/more", "//join/{}", "/JOIN/{}", "/x/join/{}", "/join//{}"])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
async def test_a_token_in_a_path_never_reaches_the_log(stand: Stand, path: str, method: str) -> None:
    out, parts, token = io.StringIO(), made(stand), stand.invited()
    answer = await ask(parts.app, method, path.format(token), **FROM_PHONE)
    log, noted = RequestLog(out, "json"), parts.noted
    for incoming, error in zip(noted.seen, noted.refusals, strict=True):
        log.refused(incoming, error)
        log.failed(incoming, RuntimeError("fault"))
    assert (answer.status == 200) != bool(noted.seen) or path.count("/") > 2
    assert token not in out.getvalue() + json.dumps(noted.finished)


def test_what_a_report_tells() -> None:
    assert condition_of({}, 5.0).tells_anything is False
    told = condition_of({"battery": {"percentage": 50}, "thermal": {"status": 3}}, 5.0)
    assert (told.level, told.thermal_status, told.at) == (50.0, 3, 5.0)
    for status in (-1, 7, "3", True, None):
        assert condition_of({"thermal": {"status": status}}, 5.0).thermal_status is None
    warm = condition_of({"thermal": {"status": "light", "zones": {"battery": 41000, "cpu0": 88000}}}, 5.0)
    assert (warm.temperature_c, warm.thermal_status) == (41.0, 1)
    both = {"battery": {"temperature": 40.2}, "thermal": {"zones": {"battery": 45000}}}
    assert condition_of(both, 5.0).temperature_c == 40.2, "the battery's own word goes before a zone's"
    for rssi in (0, 5, -127, -200, "-60", None, True):
        assert signal_of({"wifi": {"rssi": rssi}}) is None
    assert signal_of({"wifi": {"rssi": -60}}) == -60
