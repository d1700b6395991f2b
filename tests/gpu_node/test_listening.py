"""Where the node listens: taken ports, and addresses that want a token."""

from __future__ import annotations

import logging
import socket

import pytest

from gpu_node.errors import UsageError
from gpu_node.listening import bind, bind_relay, is_loopback_socket
from gpu_node.settings import NodeSettings, read_settings

LONG = "0123456789abcdef"


def settings(token: str = "", **flags: object) -> NodeSettings:
    return read_settings({"VRM_API_TOKEN": token}, flags)


def test_the_relay_listens_from_the_first_moment() -> None:
    listener = bind_relay(settings(relay_port=0))
    assert listener is not None
    with listener, socket.create_connection(listener.getsockname()):
        assert is_loopback_socket(listener)


def test_what_is_no_name_of_a_host_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match=r"^cannot listen on a\.\.b: that is no name of a host$"):
        bind("a..b", 0)


def test_there_need_be_no_relay() -> None:
    assert bind_relay(settings(no_relay=True)) is None


def test_a_port_that_was_asked_for_must_be_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="Address already in use"):
        bind_relay(settings(relay_port=taken.getsockname()[1]))


def test_one_that_was_not_is_left_to_whoever_has_it(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        unasked = settings().model_copy(update={"relay_port": port})
        unasked.model_fields_set.discard("relay_port")
        listener = bind_relay(unasked)
        assert listener is not None
        with listener:
            assert listener.getsockname()[1] != port
    assert f"port {port} is taken, so the relay takes" in caplog.text


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_strangers_need_a_token(host: str) -> None:
    with pytest.raises(UsageError, match=r"only with a token: set POTLUCK_NODE_TOKEN .* or start with --no-relay"):
        bind_relay(settings(host=host, relay_port=0))
    listener = bind_relay(settings(LONG, host=host, relay_port=0))
    assert listener is not None
    with listener:
        assert not is_loopback_socket(listener)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_none(host: str) -> None:
    listener = bind_relay(settings(host=host, relay_port=0))
    assert listener is not None
    listener.close()


@pytest.mark.parametrize(
    ("token", "more", "warns"),
    [("short", {}, True), (LONG, {}, False), ("short", {"tls_certificate": "/c.pem"}, False)],
)
def test_a_token_that_can_be_guessed_is_warned_of(
    token: str, more: dict[str, object], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    listener = bind_relay(settings(token, host="0.0.0.0", relay_port=0, **more))
    assert listener is not None
    listener.close()
    assert ("can guess it" in caplog.text) is warns
    assert token not in caplog.text


def test_an_address_that_is_not_ours_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 300\.1\.2\.3"):
        bind("300.1.2.3", 0)
