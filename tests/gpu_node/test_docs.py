"""The page about the node names every setting, flag, route and option that the code has."""

from __future__ import annotations

import re
from pathlib import Path

from gpu_node.__main__ import parser
from gpu_node.api.app import build_app
from gpu_node.api.models import LoadBody
from gpu_node.api.openai_fields import ChatCompletionBody, CompletionBody, EmbeddingsBody
from gpu_node.api.schemas import OPTION_KINDS
from gpu_node.manifest import KnownModel
from gpu_node.metrics import NodeMetrics
from gpu_node.settings import KEYS_NAME, PREFIX, TOKEN_NAME, NodeSettings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gpu-node.md").read_text()
MODELS_PAGE = (ROOT / "models" / "README.md").read_text()


def test_every_setting_and_flag_is_documented_and_nothing_else() -> None:
    names = {PREFIX + field.upper() for field in NodeSettings.model_fields if field != "api_keys"} | {KEYS_NAME}
    assert f"`{TOKEN_NAME}`" in PAGE
    assert set(re.findall(r"`(POTLUCK_[A-Z_]*[A-Z])`", PAGE)) == names
    flags = {option for action in parser()._actions for option in action.option_strings} - {"-h", "--help", "--version"}
    assert set(re.findall(r"`(--[a-z-]+)`", PAGE)) == flags
    assert {flag.strip("-").replace("-", "_") for flag in flags} <= set(NodeSettings.model_fields)


def test_every_default_is_the_one_in_the_code() -> None:
    for flag, default in re.findall(r"\| `--([a-z-]+)` \| `[A-Z_]+` \| `([^`]+)` \|", PAGE):
        field = NodeSettings.model_fields[flag.replace("-", "_")]
        assert str(field.default) == {"5m": "300.0", "30s": "30.0"}.get(default, default), flag


def test_every_route_is_documented() -> None:
    source = Path(build_app.__code__.co_filename).read_text()
    routes = re.findall(r'"(/[a-z0-9/{}]*)": \("(GET|POST|DELETE)"', source)
    assert len(routes) == 33
    for path, method in routes:
        assert f"`{method} {path}`" in PAGE


def test_every_sampling_option_is_mentioned() -> None:
    hints = {"main_gpu", "use_mlock", "low_vram", "numa", "penalize_newline", "mirostat_tau", "mirostat_eta"}
    for name in set(OPTION_KINDS) - hints - {"draft_num_predict"}:
        assert f"`{name}`" in PAGE, name


def test_every_field_of_the_manifest_is_documented() -> None:
    for name in KnownModel.model_fields:
        if name != "description":
            assert f"`{name}`" in MODELS_PAGE, name


def test_every_field_of_the_openai_dialect_is_mentioned() -> None:
    for body in (ChatCompletionBody, CompletionBody, EmbeddingsBody):
        for name in body.model_fields:
            assert f"`{name}`" in PAGE, name


def test_every_option_of_a_loading_is_mentioned() -> None:
    for name in LoadBody.model_fields:
        assert f"`{name}`" in PAGE, name


def test_every_metric_is_documented_and_nothing_else() -> None:
    metrics = NodeMetrics(lambda: (), lambda: (), ())
    endings = {"counter": "_total", "info": "_info"}
    names = {family.name + endings.get(family.type, "") for family in metrics.families()}
    assert set(re.findall(r"`(potluck_node_[a-z_]+)`", PAGE)) == names
