"""The Ollama backend's short questions: probes, renderings, descriptions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.backends.base import Call
from server.backends.node_http import NodeHttp
from server.backends.ollama import OllamaBackend
from server.errors import NodeBroken, NodeError, NodeRefused, NodeStalled, NodeUnreachable
from tests.fakes.phone import FakePhone
from tests.fakes.phone_faults import Fault
from tests.fakes.phone_settings import FakeModel, PhoneSettings
from tests.server.backends.ollama_asking import CALL, MODEL, ask, read, spec_of
from tests.server.backends.played_node import Play, played, recorded, streamed, whole

PATIENCE_SECONDS = 60.0  # with whoever answers, on a busy machine


@pytest.fixture
async def backend() -> AsyncIterator[OllamaBackend]:
    backend = OllamaBackend(NodeHttp(), {"KEY": "secret"})
    yield backend
    await backend.aclose()


@pytest.mark.parametrize(("version", "can_render"), [("0.6.8", False), ("0.24.0", True), ("0.33.0-rc2", True)])
async def test_a_probe_tells_version_models_and_what_is_loaded(backend: OllamaBackend, version: str, can_render: bool):
    settings = PhoneSettings(version=version, models=(FakeModel(), FakeModel("other:1b")))
    async with FakePhone(settings) as phone:
        report = await backend.probe(spec_of(phone), PATIENCE_SECONDS)
        assert (report.version, report.renders, report.resident) == (version, can_render, ())
        assert [model.name for model in report.models] == [model.full_name for model in settings.models]
        await read(backend, spec_of(phone), ask(phone))
        report = await backend.probe(spec_of(phone), PATIENCE_SECONDS)
        assert [model.name for model in report.resident] == [settings.models[0].full_name]
        assert phone.counters.connections == 1


@pytest.mark.parametrize(
    ("fault", "paths", "error_type"),
    [
        (Fault.hang(), "tags", NodeStalled),
        (Fault.hang(), "ps", NodeStalled),
        (Fault.error(), "tags", NodeBroken),
        (Fault.error(404, "404 page not found"), "tags", NodeRefused),
        (Fault.reset(), "version", NodeUnreachable),
    ],
)
async def test_a_probe_that_fails(backend: OllamaBackend, fault: Fault, paths: str, error_type: type[NodeError]):
    async with FakePhone(PhoneSettings()) as phone:
        phone.fail(fault, paths=paths)
        with pytest.raises(error_type):
            await backend.probe(spec_of(phone), 0.2 if error_type is NodeStalled else PATIENCE_SECONDS)


async def test_a_listing_or_description_that_could_not_be_passed_on_is_none(backend: OllamaBackend):
    deep = b'{"version":"1","models":[{"name":"m","details":' + b"[" * 300 + b"]" * 300 + b"}]}"
    async with played(Play([whole(200, deep)], then="stay")) as node:
        with pytest.raises(NodeBroken, match="nested too deeply"):
            await backend.probe(node.spec(), PATIENCE_SECONDS)
    async with played(Play([whole(200, deep)], then="stay")) as node:
        with pytest.raises(NodeBroken, match="nested too deeply"):
            await backend.show(node.spec(), "m", PATIENCE_SECONDS)


async def test_the_time_limit_of_a_probe_is_that_of_all_its_questions(backend: OllamaBackend):
    slow = Play([whole(200, b'{"version":"1","models":[]}')], then="stay", pause=0.0)
    late = Play([b"", whole(200, b'{"version":"1","models":[]}')], then="stay", pause=0.15)
    async with played(late, late, late, slow) as node:
        with pytest.raises(NodeStalled):
            await backend.probe(node.spec(), 0.35)


async def test_a_node_without_ps_is_an_old_one(backend: OllamaBackend):
    async with played(
        Play([whole(404, b"404 page not found")], then="stay"),
        Play([whole(200, b'{"models":[{"name":"llama2:7b"}]}')], then="stay"),
        Play([whole(404, b"404 page not found")], then="stay"),
    ) as node:
        report = await backend.probe(node.spec(), PATIENCE_SECONDS)
    assert (report.version, report.models[0].name, report.resident) == ("", "llama2:7b", ())


@pytest.mark.parametrize("body", [b"<html>", b'{"models":7}', b"7"])
async def test_what_is_no_ollama_is_broken(backend: OllamaBackend, body: bytes):
    async with played(Play([whole(200, b"{}")], then="stay"), Play([whole(200, body)], then="stay")) as node:
        with pytest.raises(NodeBroken):
            await backend.probe(node.spec(), PATIENCE_SECONDS)


async def test_a_listing_without_end_is_not_read_to_its_end(backend: OllamaBackend):
    chunk = b"x" * (1024 * 1024)
    async with played(Play(streamed(*[chunk] * 12))) as node:
        with pytest.raises(NodeBroken, match="more than"):
            await backend.probe(node.spec(), PATIENCE_SECONDS)


@pytest.mark.parametrize("operation", ["chat", "generate"])
async def test_a_rendered_prompt_is_told_without_generating(backend: OllamaBackend, operation: Any):
    async with FakePhone(PhoneSettings(version="0.24.0", template="open")) as phone:
        name = phone.settings.models[0].full_name
        call = Call(operation, name, messages=[{"role": "user", "content": "hello"}], prompt="hello")
        if operation == "generate":
            call = Call("generate", name, prompt="hello")
        text = await backend.render(spec_of(phone), call, PATIENCE_SECONDS)
        assert "hello" in text and phone.log[-1].json["_debug_render_only"] is True


async def test_a_recorded_rendering_is_unescaped(backend: OllamaBackend):
    async with played(recorded("0.33", "chat-render")) as node:
        text = await backend.render(node.spec(), CALL, PATIENCE_SECONDS)
        assert text.startswith("<|im_start|>user\nWhat is the capital of France?")
        assert node.body() | {"stream": False, "_debug_render_only": True} == node.body()


async def test_a_node_that_generates_instead_of_rendering_is_broken(backend: OllamaBackend):
    async with played(recorded("0.33", "chat-whole")) as node:
        with pytest.raises(NodeBroken, match="does not render"):
            await backend.render(node.spec(), CALL, PATIENCE_SECONDS)


async def test_a_rendering_that_hangs_is_a_stall_of_its_own_phase(backend: OllamaBackend):
    async with FakePhone(PhoneSettings()) as phone:
        phone.fail(Fault.hang(), paths="render")
        with pytest.raises(NodeStalled) as caught:
            await backend.render(spec_of(phone), ask(phone), 0.1)
        assert caught.value.phase == "render"


async def test_show_describes_a_model_and_refuses_an_unknown_one(backend: OllamaBackend):
    async with FakePhone(PhoneSettings()) as phone:
        found = await backend.show(spec_of(phone), phone.settings.models[0].full_name, PATIENCE_SECONDS)
        assert "template" in found and "model_info" in found
        assert "verbose" not in phone.log[-1].json
        await backend.show(spec_of(phone), phone.settings.models[0].full_name, PATIENCE_SECONDS, verbose=True)
        assert phone.log[-1].json["verbose"] is True
        with pytest.raises(NodeRefused) as caught:
            await backend.show(spec_of(phone), "nothing:1b", PATIENCE_SECONDS)
        assert caught.value.status == 404


async def test_a_description_that_is_no_object_is_broken(backend: OllamaBackend):
    async with played(Play([whole(200, b"[]")])) as node:
        with pytest.raises(NodeBroken):
            await backend.show(node.spec(), MODEL, PATIENCE_SECONDS)
