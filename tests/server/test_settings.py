"""Settings: which source wins, what a wrong one is told, that keys are never shown, and that the page lists all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.settings import Settings, SettingsError, parse_aliases, read_settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def error(environ: dict[str, str], **arguments: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        read_settings(environ, arguments)
    return str(caught.value)


def test_nothing_set_means_the_defaults():
    assert read_settings({}) == Settings()
    assert read_settings({"HOME": "/root", "PATH": "/bin"}) == Settings()


def test_the_stronger_source_wins(tmp_path: Path):
    (tmp_path / "potluck.toml").write_text("queue_limit = 1\ncache_entries = 1\ndrain_s = 1")
    found = read_settings({"POTLUCK_QUEUE_LIMIT": "2", "POTLUCK_CACHE_ENTRIES": "2"}, {"queue_limit": 3})
    assert (found.queue_limit, found.cache_entries, found.drain_s) == (3, 2, 1.0)


def test_the_file_takes_both_spellings_lists_and_tables(tmp_path: Path):
    (tmp_path / "potluck.toml").write_text(
        'POTLUCK_STRATEGY = "fastest"\naffinity = false\napi_keys = ["a:1", "b:2"]\n[model_aliases]\nsmall = "x:1b"'
    )
    found = read_settings({})
    assert (found.strategy, found.affinity, found.api_keys) == ("fastest", False, "a:1,b:2")
    assert found.model_aliases == {"small": "x:1b"}


def test_another_file_can_be_named_and_must_exist_then(tmp_path: Path):
    other = tmp_path / "other.toml"
    assert "which does not exist" in error({"POTLUCK_CONFIG": str(other)})
    other.write_text("queue_limit = 7")
    assert read_settings({"POTLUCK_CONFIG": str(other)}).queue_limit == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("queue_limt = 1", "did you mean queue_limit?"),
        ("queue_limit = ", "is no TOML"),
        ("[server]\nport = 1", "server in potluck.toml is no setting"),
        (
            "queue_limit = 5\nPOTLUCK_QUEUE_LIMIT = 6",
            "sets queue_limit twice: as queue_limit and as POTLUCK_QUEUE_LIMIT",
        ),
        ("queue_limit = 'many'", "queue_limit in potluck.toml must be a valid integer, not 'many'"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, words: str):
    (tmp_path / "potluck.toml").write_text(text)
    assert words in error({})


@pytest.mark.parametrize("text", [b"\xff", b"queue_limit = \xff"])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, text: bytes):
    (tmp_path / "potluck.toml").write_bytes(text)
    assert "is no TOML" in error({})


def test_a_folder_is_no_file_of_settings(tmp_path: Path):
    assert "cannot be read" in error({"POTLUCK_CONFIG": str(tmp_path)})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("POTLUCK_QUEUE_LIMIT", "many", "POTLUCK_QUEUE_LIMIT must be a valid integer, not 'many'"),
        ("POTLUCK_QUEUE_LIMIT", "-1", "POTLUCK_QUEUE_LIMIT must be greater than or equal to 0, not '-1'"),
        ("POTLUCK_AFFINITY", "perhaps", "POTLUCK_AFFINITY must be a valid boolean, not 'perhaps'"),
        (
            "POTLUCK_STRATEGY",
            "random",
            "POTLUCK_STRATEGY must be 'weighted_round_robin', 'least_busy' or 'fastest', not 'random'",
        ),
        ("POTLUCK_PROBE_TIMEOUT_S", "inf", "POTLUCK_PROBE_TIMEOUT_S must be a finite number, not 'inf'"),
        ("POTLUCK_PROBE_TIMEOUT_S", "0", "POTLUCK_PROBE_TIMEOUT_S must be greater than 0, not '0'"),
        ("PORT", "tcp://10.0.0.1", "PORT must be a valid integer, not 'tcp://10.0.0.1'"),
        ("POTLUCK_PORT", "70000", "POTLUCK_PORT must be less than or equal to 65535, not '70000'"),
        (
            "POTLUCK_MODEL_ALIASES",
            "a=b,c",
            "POTLUCK_MODEL_ALIASES must be alias=model,alias=model or a JSON object, not 'a=b,c'",
        ),
        ("POTLUCK_EMBEDDED_NODE", "maybe", "POTLUCK_EMBEDDED_NODE must be 'auto', 'on' or 'off', not 'maybe'"),
        ("POTLUCK_HOST", " . ", None),
        ("POTLUCK_EMBEDDED_MODEL", " \t", None),
        (
            "POTLUCK_BREAKER_REST_S",
            "999",
            "POTLUCK_BREAKER_REST_S must not be more than POTLUCK_BREAKER_LONGEST_REST_S",
        ),
        (
            "POTLUCK_SILENCE_CEILING_S",
            "1",
            "POTLUCK_FIRST_TOKEN_FLOOR_S must not be more than POTLUCK_SILENCE_CEILING_S",
        ),
    ],
)
def test_a_wrong_value_is_one_sentence_with_its_name(name: str, value: str, sentence: str | None):
    if sentence is None:  # white space alone is as good as not set
        read_settings({name: value})
    else:
        assert error({name: value}) == sentence


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("POTLUCK_QUEUE_LIMT", "POTLUCK_QUEUE_LIMIT"),
        ("POTLUCK_STATEGY", "POTLUCK_STRATEGY"),
        ("POTLUCK_API_KEYSS", "POTLUCK_API_KEYS"),
        ("POTLUCK_queue_limit", "POTLUCK_QUEUE_LIMIT"),
        ("potluck_drain_s", "POTLUCK_DRAIN_S"),
        ("Potluck_Drain_S", "POTLUCK_DRAIN_S"),
    ],
)
def test_an_unknown_name_stops_the_start_with_the_nearest_one(name: str, nearest: str):
    told = error({name: "1"})
    assert told == f"{name} is no setting of the gateway; did you mean {nearest}?"


def test_an_unknown_name_far_from_all_points_to_the_page():
    assert "docs/settings.md lists them all" in error({"POTLUCK_XYZZY": "1"})


def test_an_unknown_argument_is_named_too():
    assert "did you mean queue_limit?" in error({}, quee_limit=1)


def test_names_of_others_are_left_alone():
    environ = {
        "POTLUCK_NODE_MODEL": "x",
        "POTLUCK_URL": "http://x",
        "POTLUCK_API_KEY": "k",
        "VRM_LEND_RATIO": "0.5",
        "VRM_RECLAIM_THRESHOLD": "0.1",
    }
    assert read_settings(environ) == Settings()


def test_names_without_the_prefix():
    found = read_settings({"ENABLE_LRU_CACHE": "false", "HOST": "0.0.0.0", "PORT": "9000"})
    assert (found.enable_lru_cache, found.host, found.port) == (False, "0.0.0.0", 9000)
    assert read_settings({"PORT": "9000", "POTLUCK_PORT": "9001"}).port == 9001


def test_an_empty_variable_is_not_set():
    assert read_settings({"POTLUCK_QUEUE_LIMIT": "", "PORT": "", "POTLUCK_CONFIG": ""}) == Settings()


@pytest.mark.parametrize(
    ("environ", "keys"),
    [
        ({"VRM_API_TOKEN": "t"}, "vrm:t"),
        ({"VRM_API_TOKEN": "t", "POTLUCK_API_KEYS": "a:1"}, "a:1,vrm:t"),
        ({"VRM_API_TOKEN": " ", "POTLUCK_API_KEYS": "a:1"}, "a:1"),
    ],
)
def test_the_token_is_one_more_key(environ: dict[str, str], keys: str):
    assert read_settings(environ).api_keys == keys


def test_the_token_beside_a_list_of_keys_in_the_file(tmp_path: Path):
    (tmp_path / "potluck.toml").write_text('api_keys = ["a:1"]')
    assert read_settings({"VRM_API_TOKEN": "t"}).api_keys == "a:1,vrm:t"


def test_keys_are_never_shown(tmp_path: Path):
    found = read_settings({"POTLUCK_API_KEYS": "alice:secret-1", "VRM_API_TOKEN": "secret-2"})
    assert "secret" not in f"{found} {found!r}"
    assert "secret" not in error({"VRM_API_TOKEN": "secret,3"})
    (tmp_path / "potluck.toml").write_text('api_keys = { alice = "secret-4" }')
    assert "secret" not in error({})
    (tmp_path / "potluck.toml").write_text('api_keys = ["a:secret,5", "b"]')
    assert "secret" not in error({})


def test_they_cannot_be_changed():
    with pytest.raises(ValidationError):
        Settings().queue_limit = 5  # type: ignore[misc]


def test_the_home_folder_in_a_path():
    assert read_settings({"POTLUCK_PHONES_FILE": "~/phones.json"}).phones_file == Path.home() / "phones.json"


@pytest.mark.parametrize(
    ("text", "aliases"),
    [
        ("a=b", {"a": "b"}),
        (" a = b:1 , c=d ,", {"a": "b:1", "c": "d"}),
        ('{"a": "b"}', {"a": "b"}),
        ("", {}),
    ],
)
def test_aliases_in_both_forms(text: str, aliases: dict[str, str]):
    assert parse_aliases(text) == aliases


@pytest.mark.parametrize("text", ["a=b,a=c", '{"a": "b", "a": "c"}'])
def test_an_alias_has_one_meaning(text: str):
    assert error({"POTLUCK_MODEL_ALIASES": text}).startswith("POTLUCK_MODEL_ALIASES names the alias 'a' twice")


@pytest.mark.parametrize("text", ["a", "=b", "a=", '{"a": 1}', '{"a"'])
def test_aliases_that_are_none(text: str):
    with pytest.raises(ValueError):
        parse_aliases(text)


def test_devices_want_the_embedded_node():
    listed = {"POTLUCK_EMBEDDED_DEVICES": " cpu:2GiB,cpu:1GiB "}
    assert (read_settings(listed).embedded_devices, read_settings(listed).embedded_mode) == ("cpu:2GiB,cpu:1GiB", "on")
    assert (read_settings({}).embedded_mode, read_settings({"POTLUCK_EMBEDDED_NODE": "off"}).embedded_mode) == (
        "auto",
        "off",
    )
    assert "POTLUCK_EMBEDDED_NODE is off" in error({**listed, "POTLUCK_EMBEDDED_NODE": "off"})


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"POTLUCK_CARE_COOLED_C": "43"}, "POTLUCK_CARE_COOLED_C must be less than POTLUCK_CARE_HOT_C"),
        ({"POTLUCK_CARE_HOT_C": "30"}, "POTLUCK_CARE_WARM_C must be less than POTLUCK_CARE_HOT_C"),
        ({"POTLUCK_CARE_LOW_BATTERY": "30"}, "POTLUCK_CARE_LOW_BATTERY must be less than POTLUCK_CARE_CHARGED"),
        ({"POTLUCK_ADB_READ_S": "180"}, "POTLUCK_ADB_READ_S must be less than POTLUCK_CARE_STALE_S"),
        ({"POTLUCK_CARE_STALE_S": "59"}, "POTLUCK_CARE_STALE_S must be greater than or equal to 60"),
        ({"POTLUCK_CARE_HOT_C": "111"}, "POTLUCK_CARE_HOT_C must be less than 100"),
    ],
)
def test_marks_of_care_that_contradict_each_other(environment: dict[str, str], words: str):
    assert words in error(environment)


# -- the page ----------------------------------------------------------------------------------------------------------


def documented() -> dict[str, str]:
    rows = re.findall(r"^\| `POTLUCK_(\w+)` \| (.+?) \| .+ \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == len({name for name, _ in rows}), "a setting stands twice"
    return {name.lower(): default for name, default in rows}


def shown(value: object) -> str:
    """How the page shows a default."""
    if value in ("", {}):
        return "none"
    if isinstance(value, bool):
        return "`on`" if value else "`off`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def test_the_page_lists_every_setting_with_its_default():
    defaults = {name: shown(value) for name, value in Settings()}
    assert documented() == defaults


def test_the_page_names_what_is_known_without_the_prefix():
    page = PAGE.read_text()
    for name in ("ENABLE_LRU_CACHE", "HOST", "PORT", "VRM_API_TOKEN", "VRM_LEND_RATIO", "VRM_RECLAIM_THRESHOLD"):
        assert f"`{name}`" in page


@pytest.mark.parametrize("wrong", ["192.168.1.7:5037", "127.0.0.1", "localhost:0", "localhost:x", "127.0.0.1:70000"])
def test_the_adb_server_is_one_of_this_machine(wrong: str):
    with pytest.raises(SettingsError, match=r"POTLUCK_ADB_SERVER must be 127\.0\.0\.1 and a port"):
        read_settings({"POTLUCK_ADB_SERVER": wrong})
    assert read_settings({"POTLUCK_ADB_SERVER": "localhost:15037"}).adb_server == "127.0.0.1:15037"
