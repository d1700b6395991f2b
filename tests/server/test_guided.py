"""Answers of a given form: every dialect asks for it, every kind of node is asked in its own words, and no answer is
glued together from two grammars.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from server.errors import AnswerBroken, RequestInvalid
from tests.fakes.phone import FakePhone, Fault, PhoneSettings, expected_answer, fake_fleet
from tests.server.gateway_parts import MODEL, Bench, gateway_over
from tests.server.live_gateway import live_gateway

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array"}},
    "required": ["zone", "age"],
}
FORMS = ["json", SCHEMA, {}]
KINDS: Mapping[str, Mapping[str, Any]] = {
    "before rendering": {"version": "0.6.8"},
    "renders closed": {"version": "0.24.0"},
    "renders open": {"version": "0.24.0", "template": "open"},
    "newest": {"version": "0.33.0", "template": "open"},
}
MESSAGES = [{"role": "user", "content": "Tell me about the sea."}]
WARM = {"temperature": 0.8}


def settings(**changes: Any) -> PhoneSettings:
    return PhoneSettings(**{"burst": 1, "answer_tokens": (12, 20), **changes})


def whole(form: Any, phone: PhoneSettings) -> str:
    return expected_answer(MESSAGES, settings=phone, options={"temperature": 0}, format=form).text


def pieces_of(form: Any, phone: PhoneSettings) -> int:
    return len(expected_answer(MESSAGES, settings=phone, options={"temperature": 0}, format=form).pieces)


def is_form(text: str, form: Any) -> bool:
    jsonschema.validate(json.loads(text), {"type": "object"} if form == "json" else form)
    return True


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_broken_answer_is_told_again_and_what_was_told_is_skipped(form: Any, kind: str) -> None:
    phone = settings(**KINDS[kind])
    right = whole(form, phone)
    for told in {1, 2, pieces_of(form, phone) // 2, pieces_of(form, phone) - 1} - {0}:
        async with fake_fleet(2, phone) as phones, gateway_over(phones) as bench:
            phones[0].fail(Fault.cut(told), paths=("chat", "generate"))
            answered = await bench.ask(bench.request(fields={"format": form}))
            assert answered.text == right
            assert [share.way for share in answered.done.nodes] == ["first", "replay"]
            again = phones[1].log[-1].json
            assert (again["format"], again["messages"]) == (form, MESSAGES)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
async def test_where_it_would_come_out_otherwise_nothing_is_added_to_the_beginning(form: Any, kind: str) -> None:
    phone = settings(**KINDS[kind])
    async with fake_fleet(2, phone) as phones, gateway_over(phones) as bench:
        phones[0].fail(Fault.cut(1), paths=("chat", "generate"))
        answered = await bench.ask(bench.request(fields={"format": form}, options=WARM))
        assert isinstance(answered.failed.error, AnswerBroken)
        assert not bench.witness.resumed and answered.text and phones[1].counters.tokens_sent == 0


@pytest.mark.parametrize("form", FORMS)
async def test_nothing_told_yet_is_a_plain_retry_at_any_temperature(form: Any) -> None:
    async with fake_fleet(2, settings()) as phones, gateway_over(phones) as bench:
        phones[0].fail(Fault.cut(0), paths="chat")
        answered = await bench.ask(bench.request(fields={"format": form}, options=WARM))
        assert is_form(answered.text, form)
        assert answered.done.attempts == 2


async def over_openai(bench: Bench, phones: list[FakePhone], **spec: Any) -> None:
    for number, phone in enumerate(phones):
        await bench.list_phone(phone, kind="openai", name=f"server-{number}", **spec)


@pytest.mark.parametrize("form", FORMS)
async def test_servers_that_continue_a_message_do_not_continue_a_grammar(form: Any) -> None:
    async with fake_fleet(2, settings()) as phones, gateway_over([]) as bench:
        await over_openai(bench, phones, continues_final_message=True)
        phones[0].fail(Fault.cut(1), paths="v1")
        answered = await bench.ask(bench.request(fields={"format": form}))
        assert answered.text == whole(form, settings())
        assert [way for _, way in bench.witness.resumed] == ["replay"] * len(bench.witness.resumed)
        assert all(
            "continue_final_message" not in seen.json
            for phone in phones
            for seen in phone.log
            if seen.path == "/v1/chat/completions"
        )


@pytest.mark.parametrize(
    ("said", "passed_on"),
    [
        ("'response_format.type' must be 'json_schema' or 'text'", True),
        ("The provided JSON schema contains features not supported by xgrammar.", True),
        ("max_tokens must be at least 1", False),
    ],
)
async def test_a_server_that_cannot_hold_a_form_is_passed_over(said: str, passed_on: bool) -> None:
    async with fake_fleet(2, settings()) as phones, gateway_over([]) as bench:
        await over_openai(bench, phones[:1])
        await bench.list_phone(phones[1], name="phone")
        phones[0].fail(Fault.error(400, said), paths="v1")
        formed = await bench.ask(bench.request(fields={"format": "json"}))
        if passed_on:
            assert formed.done.node == "phone" and is_form(formed.text, "json")
        else:
            assert isinstance(formed.failed.error, RequestInvalid)
        assert not any(load.failed for load in bench.registry.loads.values())
        plain = await bench.ask(bench.request("without a form"))
        assert plain.events


async def test_where_nobody_can_hold_it_the_reason_is_told() -> None:
    said = 'the schema cannot be followed: Unimplemented keys: ["not"]'
    async with fake_fleet(2, settings()) as phones, gateway_over(phones) as bench:
        for phone in phones:
            phone.fail(Fault.error(400, said), paths="chat")
        error = (await bench.ask(bench.request(fields={"format": {"not": {}}}))).failed.error
        assert isinstance(error, RequestInvalid) and (error.message, error.http_status) == (said, 400)
        assert {phone.counters.requests.get("chat") for phone in phones} == {1}


def asked(form: Any) -> list[tuple[str, dict[str, Any]]]:
    """The same wish in every dialect."""
    wrapped: dict[str, Any] = {"type": "json_object"}
    if isinstance(form, dict):
        wrapped = {"type": "json_schema", "json_schema": {"name": "sea", "schema": form, "strict": True}}
    prompt = MESSAGES[0]["content"]
    greedy = {"options": {"temperature": 0}, "stream": False}
    return [
        ("/ask", {"prompt": prompt, "temperature": 0, "format": form}),
        ("/api/chat", {"model": MODEL, "messages": MESSAGES, "format": form, **greedy}),
        ("/api/generate", {"model": MODEL, "prompt": prompt, "format": form, **greedy}),
        ("/v1/chat/completions", {"model": MODEL, "messages": MESSAGES, "temperature": 0, "response_format": wrapped}),
        ("/v1/completions", {"model": MODEL, "prompt": prompt, "temperature": 0, "response_format": wrapped}),
    ]


def text_of(body: dict[str, Any]) -> str:
    if "choices" in body:
        choice = body["choices"][0]
        return str(choice["message"]["content"] if "message" in choice else choice["text"])
    return str(body["message"]["content"] if "message" in body else body["response"])


@pytest.mark.parametrize("form", FORMS)
async def test_every_dialect_asks_for_a_form(form: Any, tmp_path: Path) -> None:
    async with (
        FakePhone(settings()) as phone,
        live_gateway(tmp_path, phone) as live,
        httpx.AsyncClient(timeout=60) as http,
    ):
        for path, body in asked(form):
            answer = await http.post(f"{live.address}{path}", json=body)
            assert answer.status_code == 200, (path, answer.text)
            assert is_form(text_of(answer.json()), form), path
        posted = [seen.json["format"] for seen in phone.log if seen.path in ("/api/chat", "/api/generate")]
        assert posted == [form] * len(posted)
        assert len(posted) >= 3


async def test_properties_come_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    """The cache takes part at temperature 0, and must not answer one order with the other."""
    turned = {**SCHEMA, "properties": dict(reversed(SCHEMA["properties"].items()))}
    async with (
        FakePhone(settings()) as phone,
        live_gateway(tmp_path, phone) as live,
        httpx.AsyncClient(timeout=60) as http,
    ):
        for form in (SCHEMA, turned):
            answer = await http.post(f"{live.address}/ask", json={"prompt": "hi", "temperature": 0, "format": form})
            assert list(json.loads(answer.json()["response"])) == list(form["properties"])
            assert not answer.json()["cached"]
        again = await http.post(f"{live.address}/ask", json={"prompt": "hi", "temperature": 0, "format": SCHEMA})
        assert again.json()["cached"] and list(json.loads(again.json()["response"])) == list(SCHEMA["properties"])
