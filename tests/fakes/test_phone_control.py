"""`/_control`: the knobs of a phone from outside its process."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.phone import FakePhone, PhoneSettings
from tests.fakes.phone_wire import WireAnswer, ask

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
CHAT: dict[str, Any] = {"model": "smollm2:135m", "messages": MESSAGES, "options": {"temperature": 0}}


async def chat(phone: FakePhone, **changes: Any) -> WireAnswer:
    return await ask(phone.port, "POST", "/api/chat", {**CHAT, "stream": False, **changes})


async def test_control_is_off_unless_asked_for() -> None:
    async with FakePhone() as phone:
        assert (await ask(phone.port, "GET", "/_control")).status == 404
        assert (await ask(phone.port, "POST", "/_control", {"time_scale": 2})).status == 404


async def test_control_changes_settings_and_faults() -> None:
    async with FakePhone(PhoneSettings(control=True)) as phone:
        change = {
            "template": "open",
            "answer_tokens": [3, 3],
            "models": [{"name": "new:1b", "capabilities": ["completion", "tools"]}],
            "faults": [{"kind": "cut", "after_tokens": 1, "times": 1, "paths": ["answers"]}],
        }
        assert (await ask(phone.port, "POST", "/_control", change)).json == {"ok": True}
        assert (await chat(phone, model="new:1b", stream=True)).last_chunk_seen is False
        assert (await chat(phone, model="new:1b")).json["eval_count"] == 4
        seen = (await ask(phone.port, "GET", "/_control")).json
        assert seen["counters"]["requests"] == {"chat": 2}
        assert seen["counters"]["faults"] == {"cut": 1}
        assert seen["settings"]["template"] == "open"
        await ask(phone.port, "POST", "/_control", {"faults": [{"kind": "status"}], "forget": True})
        assert phone.resident() == []
        assert (await chat(phone, model="new:1b")).status == 500
        await ask(phone.port, "POST", "/_control", {"heal": True})
        assert (await chat(phone, model="new:1b")).status == 200


@pytest.mark.parametrize("change", [{"tempo": 1}, {"faults": [{"kind": "no"}]}, {"faults": [{"kind": "cut", "x": 1}]}])
async def test_control_refuses_what_it_does_not_know_and_changes_nothing(change: dict[str, Any]) -> None:
    async with FakePhone(PhoneSettings(control=True)) as phone:
        answer = await ask(phone.port, "POST", "/_control", {"template": "open", **change})
        assert answer.status == 400
        assert phone.settings.template == "closed"
        assert (await ask(phone.port, "POST", "/_control", b"{")).status == 400
