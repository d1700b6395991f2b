"""The official Python packages of OpenAI and Ollama as clients of the whole gateway over fake phones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.fakes.phone import FakePhone, Fault, PhoneSettings, expected_answer
from tests.server.live_gateway import Live, live_gateway

MODEL = "smollm2:135m"
PROMPT = "What is the capital of France?"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": PROMPT}]


class Stand:
    """Two phones, the gateway over them, and a client of each package."""

    def __init__(self, live: Live, phones: list[FakePhone], key: str) -> None:
        self.live = live
        self.phones = phones
        self.openai = openai.AsyncOpenAI(base_url=f"{live.address}/v1", api_key=key, max_retries=0)
        self.ollama = ollama.AsyncClient(host=live.address, headers={"Authorization": f"Bearer {key}"})

    async def close(self) -> None:
        await self.openai.close()
        await self.ollama._client.aclose()


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    phones = [FakePhone(PhoneSettings(version="0.24.0")) for _ in range(2)]
    settings: Any = {"model_aliases": {"gpt-4o-mini": MODEL}, "api_keys": "test:s3cret"}
    async with phones[0], phones[1], live_gateway(tmp_path, *phones, **settings) as live:
        made = Stand(live, phones, "s3cret")
        yield made
        await made.close()


# OpenAI


async def test_openai_chat(stand: Stand):
    answer = await stand.openai.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_tokens=12)
    assert answer.model == "gpt-4o-mini"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 12
    assert answer.choices[0].message.content


async def test_openai_chat_streamed_with_usage(stand: Stand):
    text, usage, reasons = "", None, []
    stream = await stand.openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, seed=7, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    whole = await stand.openai.chat.completions.create(model=MODEL, messages=MESSAGES, seed=7)
    assert text == whole.choices[0].message.content
    assert reasons == ["stop"]
    assert usage == whole.usage


async def test_openai_several_choices(stand: Stand):
    answer = await stand.openai.chat.completions.create(model=MODEL, messages=MESSAGES, n=3, max_tokens=8)
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) > 1, "unseeded choices differ"
    parts: dict[int, str] = {}
    async for chunk in await stand.openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, n=2, max_tokens=8, stream=True
    ):
        for choice in chunk.choices:
            parts[choice.index] = parts.get(choice.index, "") + (choice.delta.content or "")
    assert set(parts) == {0, 1}


async def test_openai_logprobs(stand: Stand):
    answer = await stand.openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == answer.choices[0].message.content


async def test_openai_json(stand: Stand):
    answer = await stand.openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, response_format={"type": "json_object"}
    )
    assert (answer.choices[0].message.content or "").startswith("{")
    assert any(seen.json.get("format") == "json" for phone in stand.phones for seen in phone.log if seen.json)


async def test_openai_completions(stand: Stand):
    answer = await stand.openai.completions.create(model=MODEL, prompt=["The sky is", "The sea is"], max_tokens=6)
    assert [choice.index for choice in answer.choices] == [0, 1]
    text = ""
    async for chunk in await stand.openai.completions.create(model=MODEL, prompt="x", max_tokens=6, stream=True):
        text += chunk.choices[0].text
    assert text


async def test_openai_embeddings(stand: Stand):
    packed = await stand.openai.embeddings.create(model=MODEL, input=["hello", "world"])  # base64 on the wire
    plain = await stand.openai.embeddings.create(model=MODEL, input=["hello", "world"], encoding_format="float")
    assert len(packed.data) == 2
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, rel=1e-6)


async def test_openai_models(stand: Stand):
    assert [model.id async for model in stand.openai.models.list()] == [MODEL, "gpt-4o-mini"]
    assert (await stand.openai.models.retrieve("gpt-4o-mini")).id == "gpt-4o-mini"


async def test_openai_errors_become_the_packages_own(stand: Stand):
    with pytest.raises(openai.NotFoundError) as missing:
        await stand.openai.chat.completions.create(model="smollm3:135m", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    assert MODEL in missing.value.message
    with pytest.raises(openai.BadRequestError) as bad:
        await stand.openai.chat.completions.create(model=MODEL, messages=MESSAGES, logit_bias={"5": 1})
    assert bad.value.param == "logit_bias"
    with pytest.raises(openai.AuthenticationError):
        await stand.openai.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        await stand.openai.models.retrieve("nothing")


async def test_openai_hears_of_a_stream_that_cannot_go_on(stand: Stand):
    for phone in stand.phones:
        phone.settings.version = "0.6.0"  # cannot render, and the answer is not deterministic: nothing goes on
        phone.fail(Fault.cut(after_tokens=3), paths="chat")
    with pytest.raises(openai.APIError) as caught:
        async for _ in await stand.openai.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True):
            pass
    assert isinstance(caught.value.body, dict)
    assert caught.value.code == "nodes_failed"


async def test_openai_a_cut_stream_goes_on_at_the_other_phone(stand: Stand):
    stand.phones[0].fail(Fault.cut(after_tokens=5), paths="chat")
    for _ in range(2):  # one of the two questions begins at the phone that fails
        text = ""
        async for chunk in await stand.openai.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, temperature=0, extra_body={"cache": False}
        ):
            text += chunk.choices[0].delta.content or ""
        assert text == expected_answer([dict(message) for message in MESSAGES]).text
    assert stand.phones[0].counters.faults["cut"] == 1


async def test_leaving_an_openai_stream_stops_the_phone(stand: Stand):
    for phone in stand.phones:
        phone.settings.tokens_per_second = 20
    stream = await stand.openai.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    async for _ in stream:
        break
    await stream.close()
    for phone in stand.phones:
        await phone.idle()
    assert sum(phone.counters.cancelled for phone in stand.phones) == 1


# Ollama


async def test_ollama_chat(stand: Stand):
    whole = await stand.ollama.chat(model=MODEL, messages=MESSAGES, options={"seed": 7})
    text = ""
    last: Any = None
    async for part in await stand.ollama.chat(model=MODEL, messages=MESSAGES, options={"seed": 7}, stream=True):
        text += part.message.content or ""
        last = part
    assert text == whole.message.content
    assert (last.done, last.done_reason) == (True, "stop")
    assert last.eval_count == whole.eval_count
    assert last.prompt_eval_count


async def test_ollama_generate_continues_from_its_context(stand: Stand):
    first = await stand.ollama.generate(model=MODEL, prompt=PROMPT, options={"num_predict": 4})
    assert first.context
    second = await stand.ollama.generate(model=MODEL, prompt="Go on.", context=first.context)
    assert second.response


async def test_ollama_lists(stand: Stand):
    models = (await stand.ollama.list()).models
    assert [model.model for model in models] == [MODEL, "gpt-4o-mini"]
    assert models[0].modified_at is not None
    shown = await stand.ollama.show("gpt-4o-mini")
    assert shown.template
    await stand.ollama.generate(model=MODEL, prompt="")
    assert [model.model for model in (await stand.ollama.ps()).models] == [MODEL]


async def test_ollama_embeddings(stand: Stand):
    embedded = await stand.ollama.embed(model=MODEL, input=["hello", "world"])
    assert len(embedded.embeddings) == 2
    assert list((await stand.ollama.embeddings(model=MODEL, prompt="hello")).embedding)


async def test_ollama_load_and_unload_reach_every_phone(stand: Stand):
    await stand.ollama.generate(model=MODEL, prompt="", keep_alive="10m")
    stopped = await stand.ollama.generate(model=MODEL, prompt="", keep_alive=0)
    assert stopped.done_reason == "unload"
    for phone in stand.phones:
        assert [seen.json.get("keep_alive") for seen in phone.log if seen.path == "/api/generate"] == ["10m", 0]


async def test_ollama_errors_become_the_packages_own(stand: Stand):
    with pytest.raises(ollama.ResponseError, match="not found") as missing:
        await stand.ollama.chat(model="no-such-model:1b", messages=MESSAGES)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="a gateway keeps no models"):
        await stand.ollama.pull(MODEL)
    with pytest.raises(ollama.ResponseError, match="a gateway keeps no models"):
        await stand.ollama.delete(MODEL)
    with pytest.raises(ollama.ResponseError, match="temperature"):
        await stand.ollama.chat(model=MODEL, messages=MESSAGES, options={"temperature": "hot"})  # type: ignore[dict-item]
