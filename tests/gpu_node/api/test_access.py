"""Who may call, case by case."""

from __future__ import annotations

import socket

import pytest

from gpu_node.api.access import AccessRules, host_name, is_near, rules_of

OPEN = rules_of((), ("potluck.home",), ("https://app.example",))
KEYED = rules_of(("anna:first", "second"), (), ())


def status(rules: AccessRules, client: str | None = "127.0.0.1", path: str = "/api/tags", **headers: str) -> int:
    refusal = rules.judge(client, path, {name.replace("_", "-"): value for name, value in headers.items()})
    return refusal.status if refusal else 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first"}, {"authorization": "bearer second"}, {"x_api_key": "first"},
        {"x_api_token": "second"}, {"authorization": "Basic x", "x_api_key": "second"},
    ],
)  # fmt: skip
def test_a_key_opens_from_anywhere_and_by_every_header(headers: dict[str, str]) -> None:
    assert status(KEYED, client="8.8.8.8", host="foreign.example", **headers) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"authorization": "Bearer wrong"}, {"authorization": "first"}, {"x_api_key": "anna:first"},
        {"x_api_key": "anna"}, {"x_api_key": ""}, {"authorization": "Bearer "}, {"x_api_key": "fïrst"},
    ],
)  # fmt: skip
def test_anything_else_does_not_even_from_this_machine(headers: dict[str, str]) -> None:
    assert status(KEYED, **headers) == 401


@pytest.mark.parametrize(
    ("client", "near"),
    [
        ("127.0.0.1", True), ("::1", True), ("192.168.1.5", True), ("10.0.0.1", True), ("172.16.3.4", True),
        ("fe80::1%eth0", True), ("fd00::1", True), ("::ffff:192.168.0.1", True), ("169.254.1.1", True),
        ("8.8.8.8", False), ("2001:4860:4860::8888", False), ("::ffff:8.8.8.8", False), ("", False), (None, False),
    ],
)  # fmt: skip
def test_without_keys_only_neighbours_are_served(client: str | None, near: bool) -> None:
    assert is_near(client) == near
    assert status(OPEN, client=client) == (200 if near else 403)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:5000", True), ("localhost:5000", True), ("[::1]:5000", True), ("192.168.1.5", True), ("", True),
        (f"{socket.gethostname()}:5000", True), (f"{socket.gethostname()}.local", True), ("x.localhost", True),
        ("POTLUCK.home:80", True), ("localhost.", True), ("evil.example", False), ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False), ("evil.example:5000", False),
    ],
)  # fmt: skip
def test_a_host_must_be_an_address_or_a_name_of_this_machine(host: str, allowed: bool) -> None:
    assert status(OPEN, host=host) == (200 if allowed else 403)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True), ("http://127.0.0.1", True), ("http://[::1]:8080", True),
        ("http://192.168.1.5:5000", True), ("https://app.example", True), ("HTTPS://APP.example", True),
        ("https://evil.example", False), ("null", False), ("http://192.168.1.6:5000", False), ("file://", False),
        ("http://localhost.evil.example", False), ("https://app.example.evil", False), ("", False),
        ("http://[", False), ("http://[x]", False),
    ],
)  # fmt: skip
def test_an_origin_must_be_local_our_own_or_named(origin: str, allowed: bool) -> None:
    assert status(OPEN, host="192.168.1.5:5000", origin=origin) == (200 if allowed else 403)


def test_live_is_open_to_all() -> None:
    assert status(KEYED, client="8.8.8.8", path="/live") == 200
    assert status(OPEN, client="8.8.8.8", path="/live", origin="https://evil.example") == 200


def test_keys_do_not_show() -> None:
    assert "first" not in repr(KEYED)


@pytest.mark.parametrize(
    ("host", "name"),
    [("a:1", "a"), ("A", "a"), ("[::1]:5", "::1"), ("::1", "::1"), ("a.:1", "a"), ("", "")],
)
def test_the_name_in_a_host_header(host: str, name: str) -> None:
    assert host_name(host) == name
