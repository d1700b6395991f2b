"""Invitations over HTTP: one is made, those that are open are listed, and any of them is withdrawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from server.api.invitations import addresses_of, qr_svg
from server.errors import CallerRefused, LoopbackOnly
from tests.server.api.gateway import ask, gateway, get, post
from tests.server.phones.stand import HOST, Stand, phone

HEADERS = {"host": "192.168.1.2:8000"}
FROM_PAGE: dict[str, Any] = {"client": ("192.168.1.7", 40_000), "server": ("192.168.1.2", 8000), "headers": HEADERS}
PATH = "/api/phones/invitations"


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


def app_of(stand: Stand, **settings: Any) -> Any:
    return gateway(joining=stand.joining, registry=stand.registry, **settings).app


async def test_an_invitation_by_the_address_that_listens(stand: Stand) -> None:
    answer = await post(app_of(stand, host="192.168.1.2"), "/api/phones/invite", {"minutes": 30}, **FROM_PAGE)
    assert answer.status == 200 and answer.headers["cache-control"] == "no-store"
    told = answer.json()
    url = f"http://192.168.1.2:8000/join/{told['token']}"
    assert told["links"][0]["url"] == url and told["links"][0]["address"] == "192.168.1.2"
    assert told["command"] == f"curl -sSL '{url}' | bash"
    assert told["qr_svg"] == told["links"][0]["qr_svg"] == qr_svg(told["command"])
    assert told["expires_at"] == "1970-01-01T00:46:40Z"
    stand.joining.begin(told["token"], None)


async def test_on_loopback_it_says_how_to_start(stand: Stand) -> None:
    answer = await post(app_of(stand), "/api/phones/invite", {})
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (409, "loopback_only")
    assert "potluck serve --host 0.0.0.0" in error["hint"]


async def test_a_host_name_is_the_addresses_that_it_has() -> None:
    assert set(await addresses_of("localhost")) <= {"127.0.0.1", "::1"}
    for host in ("", "::", "10.0.0.2", "fe80::1%eth0"):
        assert await addresses_of(host) == (host,)
    for host in ("a" * 300, "a..b"):  # no name server needs to be asked
        with pytest.raises(LoopbackOnly, match="a name that has no address"):
            await addresses_of(host)


@pytest.mark.parametrize(("headers", "scheme"), [({}, "https"), ({"x-forwarded-proto": "https"}, "http")])
async def test_links_lead_to_the_gateways_own_port(stand: Stand, headers: dict[str, str], scheme: str) -> None:
    app = app_of(stand, host="192.168.1.2")

    async def by_tls(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "scheme": "https"}, receive, send)

    answer = await post(
        by_tls,
        "/api/phones/invite",
        {},
        client=("192.168.1.7", 40_000),
        server=("192.168.1.2", 8000),
        headers={**HEADERS, **headers},
    )
    assert answer.json()["links"][0]["url"].startswith(f"{scheme}://192.168.1.2:8000/join/")


async def test_under_another_server_the_place_of_the_call_tells_where_it_listens(stand: Stand) -> None:
    answer = await post(app_of(stand), "/api/phones/invite", {}, **FROM_PAGE)
    assert answer.status == 200 and answer.json()["links"][0]["address"] == "192.168.1.2"


@pytest.mark.parametrize(
    "body",
    [{"minutes": 0}, {"minutes": 1e9}, {"minutes": "5"}, {"model": ""}, {"model": "a b"}, {"model": "$(id)"}, {"x": 1}],
)
async def test_odd_wishes_are_refused(stand: Stand, body: Any) -> None:
    answer = await post(app_of(stand, host="192.168.1.2"), "/api/phones/invite", body, **FROM_PAGE)
    assert answer.status == 422


async def test_open_ones_are_listed_without_their_tokens(stand: Stand) -> None:
    app = app_of(stand, host="192.168.1.2")
    made = (await post(app, "/api/phones/invite", {"model": "smollm2:135m"}, **FROM_PAGE)).json()
    stand.now += 60
    other, _ = stand.joining.invite(30, None)
    used = stand.invited()
    stand.joining.begin(other, HOST)
    await stand.joining.join(used, phone(), HOST)
    answer = await get(app, PATH, **FROM_PAGE)
    first, second = answer.json()["invitations"]
    assert first == {
        "id": made["id"],
        "made_at": made["made_at"],
        "expires_at": made["expires_at"],
        "seconds_left": 14 * 60,
        "fetched": False,
        "model": "smollm2:135m",
    }
    assert made["made_at"] == "1970-01-01T00:16:40Z" and len(made["id"]) == 8
    assert (second["fetched"], second["seconds_left"], second["expires_at"]) == (True, 7200, "1970-01-01T02:17:40Z")
    assert "model" not in second
    assert made["token"] not in answer.body.decode() and other not in answer.body.decode()


async def test_a_withdrawn_one_brings_nobody_in(stand: Stand) -> None:
    app = app_of(stand, host="192.168.1.2")
    made, stays = (await post(app, "/api/phones/invite", {}, **FROM_PAGE)).json(), stand.invited()
    stand.joining.begin(made["token"], HOST)
    gone = await ask(app, "DELETE", f"{PATH}/{made['id']}", **FROM_PAGE)
    assert (gone.status, gone.body) == (204, b"")
    assert made["id"] not in [one["id"] for one in (await get(app, PATH, **FROM_PAGE)).json()["invitations"]]
    told = await get(app, f"/join/{made['token']}", **{**FROM_PAGE, "client": (HOST, 5)})
    assert told.status == 404 and b"This invitation was withdrawn; ask for a new one." in told.body
    for joining in (stand.joining, stand.started()):  # also by a gateway that has started anew
        with pytest.raises(CallerRefused, match="was withdrawn"):
            await joining.join(made["token"], phone(), HOST)
    assert stand.looked == []
    again = await ask(app, "DELETE", f"{PATH}/{made['id']}", **FROM_PAGE)
    assert again.status == 404 and again.json()["error"]["code"] == "invitation_not_found"
    await stand.joining.join(stays, phone(), HOST)


@pytest.mark.parametrize("name", ["", "/", "00000000", "zz", "%00", "x" * 5000])
async def test_what_is_no_invitation_is_not_withdrawn(stand: Stand, name: str) -> None:
    token = stand.invited()
    answer = await ask(app_of(stand), "DELETE", f"{PATH}/{name}", **FROM_PAGE)
    assert answer.status in (404, 405) and len(answer.body) < 500
    assert len(stand.joining.invitations) == 1
    await stand.joining.join(token, phone(), HOST)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/phones/invite"), ("GET", PATH), ("DELETE", f"{PATH}/{{}}")]
)
async def test_where_keys_are_these_calls_need_one(stand: Stand, method: str, path: str) -> None:
    stand.invited()
    path = path.format(stand.joining.invitations[0].id)
    assert (await ask(app_of(stand, api_keys="a:secret"), method, path, {}, **FROM_PAGE)).status == 401
    outside = {**FROM_PAGE, "client": ("203.0.113.7", 1)}
    assert (await ask(app_of(stand), method, path, {}, **outside)).status == 403
    elsewhere = {**FROM_PAGE, "headers": {**HEADERS, "origin": "http://evil.example"}}
    assert (await ask(app_of(stand), method, path, {}, **elsewhere)).status == 403
    assert len(stand.joining.invitations) == 1


def test_the_code_is_a_picture_and_nothing_else() -> None:
    picture = ElementTree.fromstring(qr_svg("curl -sSL 'http://192.168.1.2:8000/join/x' | bash"))
    assert picture.tag.endswith("svg") and "viewBox" in picture.attrib
    assert {child.tag.rpartition("}")[2] for child in picture} == {"path"}
