"""docs/http-api.md says what the code does: routes, fields, codes, and the shape of /health."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server.api.app import route_table
from server.api.ask import ASK_FIELDS
from server.api.openai_fields import CHAT_FIELDS, COMPLETION_FIELDS
from server.api.options import OPTION_CHECKS
from server.errors import GatewayError, InternalError
from tests.server.api.gateway import gateway, get, post

PAGE = (Path(__file__).parents[3] / "docs" / "http-api.md").read_text()


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> dict[str, str]:
    """First column to second, of tables whose first column is code."""
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", text, re.M))


def examples(text: str) -> list[Any]:
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.S)]


def test_every_route_with_its_methods():
    written = {
        re.sub(r"\{.*", "", path): sorted(methods.split(", "))
        for path, methods in rows(PAGE.partition("\n## ")[0]).items()
    }
    assert written == {path: sorted(methods) for path, methods in route_table(gateway().services).items()}


def test_every_field_of_our_own_api():
    assert set(rows(section("Our own API"))) == {*ASK_FIELDS, "stream"}
    named = set(re.findall(r"`(\w+)`", section("Our own API")))
    assert set(OPTION_CHECKS) <= named


def test_every_parameter_that_is_not_plainly_honoured_is_explained():
    named = set(re.findall(r"`([\w.]+)`", section("OpenAI's API")))
    plain = {"model", "messages", "stream", "stream_options", "temperature", "top_p", "seed", "max_tokens", "prompt"}
    plain |= {"stop", "presence_penalty", "frequency_penalty", "max_completion_tokens", "top_logprobs", "suffix"}
    plain |= {"response_format", "tools", "parallel_tool_calls", "reasoning_effort"}
    assert {*CHAT_FIELDS, *COMPLETION_FIELDS} - plain <= named


def leaves(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
    for leaf in kind.__subclasses__():
        yield leaf
        yield from leaves(leaf)


def test_every_code_with_its_status():
    written = {
        code: {int(status) for status in statuses.split(", ")} for code, statuses in rows(section("Errors")).items()
    }
    assert written.pop("unauthorized") == {401}
    assert written.pop("invalid_request") == {400, 408, 415, 422}
    assert InternalError.code == "internal"
    ours = [leaf for leaf in leaves(GatewayError) if leaf.__module__.startswith("server")]
    assert written == {leaf.code: {leaf.status} for leaf in ours if leaf.code != "invalid_request"}


async def test_the_examples_have_the_fields_of_real_answers():
    (answer,) = examples(section("Our own API"))
    app = gateway().app
    real = (await post(app, "/ask", {"prompt": "hi"})).json()
    assert shape(answer) == shape(real)
    (health,) = examples(section("Health"))
    told = (await get(app, "/health")).json()
    assert list(health) == list(told)
    assert list(health["nodes"][0]) == list(told["nodes"][0])
    assert list(health["cache"]) == list(told["cache"])
    assert list(health["queue"]) == list(told["queue"])
    assert list(health["fleet_file"]) == list(told["fleet_file"])


def shape(value: Any) -> Any:
    match value:
        case dict():
            return {name: shape(item) for name, item in value.items()}
        case list():
            return [shape(item) for item in value[:1]]
        case _:
            return type(value)
