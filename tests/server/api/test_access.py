"""Who may call: every rule of access, with and without keys."""

from __future__ import annotations

import pytest

from server.api.access import (
    AccessRules,
    access_rules,
    given_key,
    host_name,
    is_private,
    own_names,
    read_keys,
)
from server.errors import CallerRefused
from tests.server.api.gateway import ask, gateway, get, post

LOOPBACK = ("127.0.0.1", 5000)
PROMPT = {"prompt": "hi"}


def caller(rules: AccessRules, address: tuple[str, int] | None = LOOPBACK, local: bool = False, **headers: str) -> str:
    raw = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return rules.caller(address, raw, local)


OPEN = access_rules("", "", "")
KEYED = access_rules("anna:s3cret, second-key ,tom:with:colon", "", "")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.7", "169.254.3.4", "::1", "fd00::7", "fe80::1",
     "::ffff:192.168.1.7"],
)  # fmt: skip
def test_private_callers_need_no_key(address: str):
    assert caller(OPEN, (address, 1)) == f"ip:{address}"


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "172.32.0.1", "100.64.0.1", "192.0.2.1", "0.0.0.0", "2001:db8::1", "::ffff:8.8.8.8", "::", "not-one",
     "", "255.255.255.255"],
)  # fmt: skip
def test_all_others_do(address: str):
    assert not is_private(address)
    with pytest.raises(CallerRefused) as caught:
        caller(OPEN, (address, 1))
    assert caught.value.http_status == 403
    assert "POTLUCK_API_KEYS" in (caught.value.hint or "")


def test_a_unix_socket_is_local_unless_a_proxy_stands_before_it():
    assert caller(OPEN, None, local=True) == "ip:unix"
    with pytest.raises(CallerRefused):
        caller(OPEN, None, local=True, x_forwarded_for="8.8.8.8")
    with pytest.raises(CallerRefused):
        caller(OPEN, None, local=False)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "192.168.1.7", "[::1]:8000", "[fd00::7]", "localhost", "LOCALHOST:8000", "app.localhost"]
)
def test_hosts_that_are_addresses_or_local(host: str):
    assert caller(OPEN, host=host)


def test_the_name_of_this_machine_is_a_host():
    for name in own_names():
        assert caller(OPEN, host=f"{name}:8000")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[", "local"])
def test_foreign_hosts_are_refused(host: str):
    with pytest.raises(CallerRefused, match="Host"):
        caller(OPEN, host=host)


def test_settings_welcome_further_hosts():
    rules = access_rules("", "", "potluck.home:8000, other")
    assert caller(rules, host="Potluck.Home:9000")
    assert caller(rules, host="other")
    with pytest.raises(CallerRefused):
        caller(rules, host="third")
    assert caller(access_rules("", "", "*"), host="anything.example")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://192.168.1.7:8000", "192.168.1.7:8000"),
        ("http://192.168.1.7", "192.168.1.7:80"),
        ("https://192.168.1.7", "192.168.1.7:443"),
        ("http://localhost:3000", "127.0.0.1:8000"),
        ("http://127.0.0.1:3000", "127.0.0.1:8000"),
        ("http://[::1]:3000", "127.0.0.1:8000"),
    ],
)
def test_own_pages_may_call(origin: str, host: str):
    assert caller(OPEN, origin=origin, host=host)


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "", "http://192.168.1.9:8000", "http://localhost.evil.example", "file://",
     "http://127.0.0.1@evil.example", "http://[::1", "http://192.168.1.7:8000@evil.example", "ftp://localhost"],
)  # fmt: skip
def test_foreign_pages_may_not(origin: str):
    with pytest.raises(CallerRefused, match="origin"):
        caller(OPEN, origin=origin, host="192.168.1.7:8000")


def test_settings_welcome_further_origins():
    rules = access_rules("", "https://chat.example/, app://x", "")
    assert caller(rules, origin="https://Chat.example", host="127.0.0.1")
    with pytest.raises(CallerRefused):
        caller(rules, origin="http://chat.example", host="127.0.0.1")
    assert caller(access_rules("", "*", ""), origin="https://any.example", host="127.0.0.1")


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer s3cret"},
        {"authorization": "bearer  s3cret "},
        {"x_api_key": "s3cret"},
        {"x_api_token": "s3cret"},
        {"authorization": "Basic Zm9v", "x_api_key": "s3cret"},
    ],
)
def test_a_key_comes_by_three_headers(headers: dict[str, str]):
    assert caller(KEYED, ("8.8.8.8", 1), **headers) == "key:anna"


def test_with_a_key_host_and_origin_do_not_matter():
    assert caller(KEYED, None, host="evil.example", origin="https://evil.example", x_api_key="second-key") == "key:key2"


def test_keys_may_hold_colons():
    assert caller(KEYED, x_api_key="with:colon") == "key:tom"


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer "}, {"authorization": "s3cret"}, {"x_api_key": "s3cre"}, {"x_api_key": "anna"},
     {"x_api_key": "s3cret2"}],
)  # fmt: skip
def test_without_the_right_key_it_is_401(headers: dict[str, str]):
    with pytest.raises(CallerRefused) as caught:
        caller(KEYED, **headers)
    assert caught.value.http_status == 401


def test_every_key_is_looked_at_whatever_comes():
    looked_at = []

    class Keys(dict[bytes, str]):
        def items(self):  # type: ignore[no-untyped-def]
            for item in super().items():
                looked_at.append(item[1])
                yield item

    rules = AccessRules(keys=Keys(read_keys("a:1,b:2,c:3")))
    assert rules.caller(LOOPBACK, {b"x-api-key": b"1"}, False) == "key:a"
    assert looked_at == ["a", "b", "c"]


def test_no_key_text_is_kept_or_told():
    assert "s3cret" not in repr(KEYED)
    with pytest.raises(ValueError, match="entry 2") as caught:
        read_keys("a:hidden,b:")
    assert "hidden" not in str(caught.value)
    with pytest.raises(ValueError, match="twice"):
        read_keys("a:1,a:2")


def test_given_key_prefers_the_standard_header():
    assert given_key({b"authorization": b"Bearer one", b"x-api-key": b"two"}) == b"one"
    assert given_key({}) is None


@pytest.mark.parametrize(
    ("host", "name"),
    [("a:1", "a"), ("a.b.", "a.b"), ("[::1]:80", "::1"), ("fd00::7", "fd00::7"), ("", ""), ("[", "")],
)
def test_host_names(host: str, name: str):
    assert host_name(host) == name


# through the application


async def test_refusals_speak_the_dialect_of_the_path():
    app = gateway(api_keys="anna:s3cret").app
    own = await post(app, "/ask", PROMPT)
    assert (own.status, own.json()["error"]["code"]) == (401, "unauthorized")
    openai = await post(app, "/v1/chat/completions", {})
    assert openai.json()["error"]["code"] == "invalid_api_key"
    ollama = await post(app, "/api/chat", {})
    assert "API key is needed" in ollama.json()["error"]
    assert all(answer.headers["www-authenticate"].startswith("Bearer") for answer in (own, openai, ollama))


async def test_the_caller_reaches_dispatch():
    made = gateway(api_keys="anna:s3cret")
    await post(made.app, "/ask", PROMPT, headers={"X-API-Key": "s3cret"})
    assert made.answer().asked[0].caller == "key:anna"
    made = gateway()
    await post(made.app, "/ask", PROMPT, client=("192.168.1.7", 4000))
    assert made.answer().asked[0].caller == "ip:192.168.1.7"


@pytest.mark.parametrize("path", ["/live", "/", "/dashboard/app.js"])
async def test_open_paths_need_no_key(path: str):
    app = gateway(api_keys="anna:s3cret").app
    assert (await get(app, path, client=("8.8.8.8", 1))).status == 200


@pytest.mark.parametrize("path", ["/health", "/metrics", "/api/tags", "/v1/models", "/nothing", "/dashboard", "/live/"])
async def test_everything_else_does(path: str):
    assert (await get(gateway(api_keys="anna:s3cret").app, path)).status == 401


async def test_welcome_pages_get_cors_headers():
    app = gateway(allowed_origins="https://chat.example").app
    answer = await post(app, "/ask", PROMPT, headers={"Origin": "https://chat.example"})
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://chat.example"
    assert "X-Cache" in answer.headers["access-control-expose-headers"]
    plain = await post(app, "/ask", PROMPT)
    assert "access-control-allow-origin" not in plain.headers


async def test_preflights_are_answered_for_welcome_pages_only():
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    keyed = gateway(api_keys="a:b", allowed_origins="https://chat.example").app
    answer = await ask(keyed, "OPTIONS", "/ask", headers={"Origin": "https://chat.example", **wanted})
    assert answer.status == 204
    assert answer.headers["access-control-allow-headers"] == "authorization"
    assert "POST" in answer.headers["access-control-allow-methods"]
    foreign = await ask(keyed, "OPTIONS", "/ask", headers={"Origin": "https://evil.example", **wanted})
    assert not any(name.startswith("access-control") for name in foreign.headers)
    unkeyed = await ask(gateway().app, "OPTIONS", "/ask", headers={"Origin": "https://evil.example", **wanted})
    assert unkeyed.status == 403


async def test_exposure_without_a_key_is_noted_once():
    made = gateway()
    await get(made.app, "/live")
    await get(made.app, "/health")
    assert made.noted.exposures == []
    for _ in range(2):
        await get(made.app, "/health", server=("192.168.1.2", 8000))
    assert made.noted.exposures == ["192.168.1.2"]
    keyed = gateway(api_keys="a:b")
    await get(keyed.app, "/health", server=("192.168.1.2", 8000), headers={"X-API-Key": "b"})
    assert keyed.noted.exposures == []


def test_one_key_has_one_name_and_is_not_shown():
    with pytest.raises(ValueError, match="'a' and 'b' the same key") as caught:
        read_keys("a:s3cret,b:s3cret")
    assert "s3cret" not in str(caught.value)
