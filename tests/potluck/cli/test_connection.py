import pytest

from potluck.cli.connection import chosen_key, chosen_url
from potluck.errors import Misuse


@pytest.mark.parametrize(
    ("flag", "environment", "url"),
    [
        (None, {}, "http://127.0.0.1:8000"),
        (None, {"POTLUCK_URL": ""}, "http://127.0.0.1:8000"),
        (None, {"POTLUCK_URL": "http://pi:8000"}, "http://pi:8000"),
        ("10.0.0.5:9000", {"POTLUCK_URL": "http://pi:8000"}, "http://10.0.0.5:9000"),
        ("https://home.example/llm", {}, "https://home.example/llm"),
    ],
)
def test_flag_then_environment_then_default(flag, environment, url):
    assert chosen_url(flag, environment) == url


def test_a_key_comes_from_a_file_or_the_environment(tmp_path):
    path = tmp_path / "key"
    path.write_text("from-file\n")
    assert chosen_key(path, {"POTLUCK_API_KEY": "from-environment"}) == "from-file"
    assert chosen_key(None, {"POTLUCK_API_KEY": " from-environment "}) == "from-environment"
    assert chosen_key(None, {}) is None
    assert chosen_key(None, {"POTLUCK_API_KEY": ""}) is None


@pytest.mark.parametrize("content", [None, b"", b"  \n", b"\xff\xfe"])
def test_a_key_file_without_a_key(tmp_path, content):
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Misuse, match="key"):
        chosen_key(path, {"POTLUCK_API_KEY": "not this one"})
