"""/v1/responses of Ollama, whole answers only: one more translation around the same session."""

from __future__ import annotations

import random
import time
from typing import Any

from tests.fakes.phone_answering import gather, session_for
from tests.fakes.phone_ollama import go_json
from tests.fakes.phone_openai import JSON_LINE, chat_call, refuse_stream, usage_of
from tests.fakes.phone_requests import parse_json
from tests.fakes.phone_telling import Telling


async def responses(telling: Telling, body: bytes) -> None:
    fields = parse_json(body, "ResponsesRequest")
    refuse_stream(fields)
    given = fields.get("input") or []
    listed = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if fields.get("instructions"):
        listed = [{"role": "system", "content": fields["instructions"]}, *listed]
    call = chat_call(fields, telling.state.settings, listed)
    started = int(time.time())
    async with session_for(telling.state, call) as session:
        text = await gather(session, telling)
        usage = usage_of(session)
        output = {
            "id": f"msg_{random.randrange(1_000_000)}",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
        }
        answer: dict[str, Any] = {
            "id": f"resp_{random.randrange(1_000_000)}",
            "object": "response",
            "created_at": started,
            "completed_at": int(time.time()),
            "status": "completed",
            "incomplete_details": None,
            "model": telling.name(call.asked_name),
            "previous_response_id": None,
            "instructions": fields.get("instructions"),
            "output": [output],
            "error": None,
            "tools": fields.get("tools") or [],
            "tool_choice": "auto",
            "truncation": "disabled",
            "parallel_tool_calls": True,
            "text": {"format": {"type": "text"}},
            "top_p": fields.get("top_p", 1),
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": fields.get("temperature", 1),
            "reasoning": None,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "output_tokens": usage["completion_tokens"],
                "total_tokens": usage["total_tokens"],
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            },
            "max_output_tokens": fields.get("max_output_tokens"),
            "max_tool_calls": None,
            "store": False,
            "background": False,
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }
        await telling.whole(200, go_json(answer) + b"\n", JSON_LINE)
        telling.state.counters.answers += 1
