"""Flags before environment before defaults; a wrong or unknown name is one sentence that names it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from gpu_node.errors import UsageError
from gpu_node.load_wish import LoadWish
from gpu_node.settings import NodeSettings, read_settings
from gpu_node.split import SplitWish


def test_defaults() -> None:
    settings = read_settings({"HOME": "/home/x"}, {})
    assert (settings.model, settings.host, settings.port) == ("default", "127.0.0.1", 5000)
    assert settings.keep_alive == 300
    assert settings.max_body_bytes == 4 * 1024 * 1024
    assert settings.cache == Path.home() / ".cache/potluck"


def test_every_setting_comes_from_the_environment() -> None:
    environ = {
        "POTLUCK_NODE_MODEL": "m", "POTLUCK_NODE_HOST": "::1", "POTLUCK_NODE_PORT": "0", "POTLUCK_NODE_DEVICE": "cpu",
        "POTLUCK_NODE_DTYPE": "float32", "POTLUCK_NODE_THREADS": "2", "POTLUCK_NODE_CONTEXT": "512",
        "POTLUCK_NODE_KEEP_ALIVE": "-1", "POTLUCK_NODE_CACHE": "/c", "POTLUCK_NODE_MAX_QUEUE": "3",
        "POTLUCK_NODE_MAX_BODY_BYTES": "2048", "POTLUCK_NODE_ALLOWED_HOSTS": "a, b",
        "POTLUCK_NODE_ALLOWED_ORIGINS": "o",
        "POTLUCK_NODE_WEIGHTS": "int8", "POTLUCK_NODE_KERNELS": "torch", "POTLUCK_NODE_SPECULATION": "off",
        "POTLUCK_NODE_MEMORY": "8GB", "POTLUCK_NODE_KV_MEMORY": "512MiB", "POTLUCK_NODE_KV_BLOCKS": "9",
        "POTLUCK_NODE_BLOCK_TOKENS": "32", "POTLUCK_NODE_MAX_RUNNING": "5", "POTLUCK_NODE_STEP_TOKENS": "100",
        "POTLUCK_NODE_MIXED_STEP_TOKENS": "50", "POTLUCK_NODE_KEEP_MAIN": "true",
        "POTLUCK_NODE_EXIT_WITH_PARENT": "true", "POTLUCK_NODE_ANNOUNCE_PORT": "1", "POTLUCK_API_KEYS": "anna:k1,k2",
        "POTLUCK_NODE_NO_RELAY": "false", "POTLUCK_NODE_RELAY_PORT": "9000", "POTLUCK_NODE_TOKEN": "a token",
        "POTLUCK_NODE_TLS_CERTIFICATE": "/c.pem", "POTLUCK_NODE_TLS_KEY": "~/k.pem",
        "POTLUCK_NODE_SESSION_IDLE": "-1", "POTLUCK_NODE_SESSION_GRACE": "1m", "POTLUCK_NODE_ANNOUNCE": "on",
        "POTLUCK_NODE_NAME": "attic", "POTLUCK_NODE_NO_PUSH": "1", "POTLUCK_NODE_PUSH_LIMIT": "100GB",
        "POTLUCK_NODE_DEVICES": "auto", "POTLUCK_NODE_SPLIT": "profiled", "POTLUCK_NODE_SPLIT_GOAL": "throughput",
        "POTLUCK_NODE_SPLIT_LAYERS": "", "POTLUCK_NODE_LEND_RATIO": "0.25", "POTLUCK_NODE_RECLAIM_THRESHOLD": "1",
    }  # fmt: skip
    assert {f"POTLUCK_NODE_{name.upper()}" for name in NodeSettings.model_fields} - set(environ) == {
        "POTLUCK_NODE_API_KEYS"
    }
    settings = read_settings(environ, {})
    assert (settings.model, settings.host, settings.port, settings.device) == ("m", "::1", 0, "cpu")
    assert (settings.dtype, settings.threads, settings.context) == ("float32", 2, 512)
    assert math.isinf(settings.keep_alive)
    assert (settings.cache, settings.max_queue, settings.max_body_bytes) == (Path("/c"), 3, 2048)
    assert (settings.allowed_hosts, settings.allowed_origins) == (("a", "b"), ("o",))
    assert settings.exit_with_parent and settings.announce_port and settings.keep_main
    assert settings.memory == 8 * 10**9
    assert settings.wish == LoadWish("cpu", "float32", "int8", "torch", 2, 512, 32, 512 << 20, 9, 5, 100, 50, "off")
    assert settings.api_keys == ("anna:k1", "k2")
    assert (settings.no_relay, settings.relay_port, settings.token) == (False, 9000, "a token")
    assert (settings.tls_certificate, settings.tls_key) == (Path("/c.pem"), Path.home() / "k.pem")
    assert (math.isinf(settings.session_idle), settings.session_grace) == (True, 60)
    assert (settings.announce, settings.name, settings.no_push) == ("on", "attic", True)
    assert settings.push_limit == 100 * 10**9
    assert (settings.listed_devices, settings.split_wish) == ((), SplitWish("profiled", "throughput"))
    assert (settings.lend_ratio, settings.reclaim_threshold) == (0.25, 1.0)


def test_a_list_of_devices_and_a_split_by_hand() -> None:
    settings = read_settings({"POTLUCK_NODE_DEVICES": " cpu:2GiB, cpu:1GiB@0.5"}, {"split_layers": "20, 10"})
    assert [(one.name, one.budget_bytes, one.speed) for one in settings.listed_devices] == [
        ("cpu:0", 2 << 30, None), ("cpu:1", 1 << 30, 0.5)
    ]  # fmt: skip
    assert settings.split_wish == SplitWish(counts=(20, 10))


def test_lending_is_known_by_its_own_names_and_ours_are_stronger() -> None:
    assert read_settings({}, {}).lend_ratio == 0.7 and read_settings({}, {}).reclaim_threshold == 0.8
    told = {"VRM_LEND_RATIO": "0", "VRM_RECLAIM_THRESHOLD": "0.5"}
    settings = read_settings(told, {"reclaim_threshold": "0.6"})
    assert (settings.lend_ratio, settings.reclaim_threshold) == (0, 0.6)
    assert read_settings({**told, "POTLUCK_NODE_LEND_RATIO": "0.1"}, {}).lend_ratio == 0.1
    assert read_settings({"VRM_LEND_RATIO": ""}, {}).lend_ratio == 0.7


def test_flags_win() -> None:
    settings = read_settings({"POTLUCK_NODE_PORT": "1"}, {"port": "2", "keep_alive": "90s", "cache": "~/c"})
    assert (settings.port, settings.keep_alive, settings.cache) == (2, 90, Path.home() / "c")


def test_the_cache_follows_the_desktops_rule() -> None:
    assert read_settings({"XDG_CACHE_HOME": "/x"}, {}).cache == Path("/x/potluck")


def test_names_of_the_gateway_do_not_disturb() -> None:
    settings = read_settings({"POTLUCK_EMBEDDED_NODE": "on", "POTLUCK_PHONES_FILE": "x", "PORT": "80"}, {})
    assert settings.port == 5000


@pytest.mark.parametrize("name", ["POTLUCK_NODE_PROT", "POTLUCK_NODE_API_KEYS"])
def test_an_unknown_name_is_told_with_the_nearest(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        read_settings({name: "1"}, {})
    with pytest.raises(UsageError, match="did you mean POTLUCK_NODE_PORT"):
        read_settings({"POTLUCK_NODE_PROT": "1"}, {})


@pytest.mark.parametrize(
    ("environ", "flags", "told"),
    [
        ({"POTLUCK_NODE_PORT": "70000"}, {}, "POTLUCK_NODE_PORT"),
        ({}, {"port": "many"}, "--port"),
        ({}, {"device": "tpu"}, "--device"),
        ({"POTLUCK_NODE_BLOCK_TOKENS": "7"}, {}, "a block has one of 8, 16, 32, 64, 128, 256 slots"),
        ({}, {"memory": "much"}, '--memory: "much" is no size'),
        ({}, {"max_running": "0"}, "--max-running"),
        ({"POTLUCK_NODE_WEIGHTS": "int2"}, {}, "POTLUCK_NODE_WEIGHTS"),
        ({}, {"keep_alive": "soon"}, "--keep-alive: \"soon\" is no duration"),
        ({"POTLUCK_API_KEYS": "anna:"}, {}, "POTLUCK_API_KEYS"),
        ({"VRM_API_TOKEN": "a\nb"}, {}, "VRM_API_TOKEN: a token is one line"),
        ({"POTLUCK_NODE_TOKEN": "a\nb", "VRM_API_TOKEN": "good"}, {}, "POTLUCK_NODE_TOKEN: a token is one line"),
        ({}, {"session_idle": "0"}, "--session-idle: a session needs a second"),
        ({}, {"session_grace": "-1"}, "--session-grace: a session that was cut off is kept for an hour at most"),
        ({}, {"tls_key": "/k.pem"}, "--tls-key: a key needs its certificate"),
        ({}, {"announce": "on", "no_relay": True}, "--announce: there is nothing to announce"),
        ({}, {"announce": "often"}, "--announce"),
        ({}, {"name": "a\nb"}, "--name: a name has at most 63 bytes"),
        ({}, {"relay_port": "65536"}, "--relay-port"),
        ({}, {"push_limit": "much"}, '--push-limit: "much" is no size'),
        ({"POTLUCK_NODE_DEVICES": "gpu"}, {}, 'POTLUCK_NODE_DEVICES: "gpu" names no device'),
        ({}, {"devices": "cpu:1GB", "device": "cpu"}, "--devices: a list of devices leaves nothing to choose"),
        ({}, {"devices": "cpu:1GB", "memory": "1GB"}, "--devices: each device of a list has a budget of its own"),
        ({}, {"split": "even"}, "--split"),
        ({}, {"split_goal": "latency"}, "--split-goal: only a profiled split"),
        ({}, {"split_layers": "10,20"}, "--split-layers: layers are given to devices that are listed"),
        ({}, {"devices": "cpu:1GB", "split_layers": "10,20"}, "--split-layers: 2 counts of layers are more than the 1"),
        ({}, {"devices": "cpu:1GB", "split_layers": "x"}, '--split-layers: "x" is no split by hand'),
        ({"VRM_LEND_RATIO": "1.5"}, {}, "VRM_LEND_RATIO"),
        ({}, {"lend_ratio": "nan"}, "--lend-ratio"),
        ({"VRM_LEND_RATIO": "0.5", "POTLUCK_NODE_LEND_RATIO": "-1"}, {}, "POTLUCK_NODE_LEND_RATIO"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_where_it_was_given(environ: dict[str, str], flags: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_settings(environ, flags)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_are_frozen_and_do_not_show_keys() -> None:
    settings = read_settings({"POTLUCK_API_KEYS": "anna:secret", "VRM_API_TOKEN": "secret-too"}, {})
    assert "secret" not in repr(settings)
    assert settings.token == "secret-too"
    with pytest.raises(ValidationError):
        settings.port = 1


def test_the_nodes_own_token_comes_before_the_shared_one() -> None:
    assert read_settings({"VRM_API_TOKEN": "shared", "POTLUCK_NODE_TOKEN": "own"}, {}).token == "own"
    assert read_settings({"VRM_API_TOKEN": "shared", "POTLUCK_NODE_TOKEN": ""}, {}).token == "shared"
    assert read_settings({"VRM_API_TOKEN": ""}, {}).token == ""


def test_a_wrong_token_is_told_without_showing_it() -> None:
    with pytest.raises(UsageError) as caught:
        read_settings({"VRM_API_TOKEN": " very-secret"}, {})
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "announces"),
    [
        ({}, True),
        ({"announce": "off"}, False),
        ({"no_relay": True}, False),
        ({"exit_with_parent": True}, False),
        ({"exit_with_parent": True, "announce": "on"}, True),
    ],
)
def test_a_node_is_announced_unless_it_is_somebodys_own(flags: dict[str, object], announces: bool) -> None:
    assert read_settings({}, flags).announces is announces


def test_whether_the_relays_port_was_asked_for() -> None:
    assert not read_settings({}, {}).asks_for_relay_port
    assert read_settings({"POTLUCK_NODE_RELAY_PORT": "8765"}, {}).asks_for_relay_port
