"""What happens over time: turns, bounds, clients that leave, failures in the middle, the end of the node."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gpu_node.api.access import rules_of
from gpu_node.load_wish import LoadWish
from tests.gpu_node.scripted import Script
from tests.gpu_node.serving import NAME, SLOTS, Fleet, Served, serving, until_true

USER = {"role": "user", "content": "q"}


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def until(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), 60)


async def test_nothing_is_sent_before_the_first_token() -> None:
    async with serving(Script(hold_at=0), real=True) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(raw_request(served, "/api/chat", messages=[USER]))
        await until(served.script.held)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.05)
        served.script.go_on.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()
        await served.until_free()


def raw_request(served: Served, path: str, **body: object) -> bytes:
    data = json.dumps({"model": NAME, **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_work_within_one_token(stream: bool) -> None:
    script = Script([f"{n} " for n in range(500)], hold_at=3)
    async with serving(script, real=True) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(raw_request(served, "/api/chat", messages=[USER], stream=stream))
        await until(script.held)
        writer.close()
        await writer.wait_closed()
        await served.until_free()
        assert script.told == 3
        script.hold_at = None
        assert (await served.post("/api/chat", messages=[USER])).status_code == 200


async def test_a_client_that_leaves_the_queue_is_never_served() -> None:
    script = Script(hold_at=0)
    async with serving(script, real=True) as served:
        running = [asyncio.create_task(served.post("/api/chat", messages=[USER])) for _ in range(SLOTS)]
        await until_true(lambda: script.running == SLOTS)
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(raw_request(served, "/api/chat", messages=[USER]))
        await until_true(lambda: script.waiting == 1)
        writer.close()
        await writer.wait_closed()
        await until_true(lambda: script.waiting == 0)
        script.go_on.set()
        assert [(await task).status_code for task in running] == [200] * SLOTS
    assert script.told == SLOTS * 3


async def test_requests_run_together_and_one_too_many_is_refused() -> None:
    script = Script(hold_at=0)
    async with serving(script, fleet=Fleet(max_waiting=1)) as served:
        tasks = [asyncio.create_task(served.post("/api/chat", messages=[USER])) for _ in range(SLOTS + 1)]
        await until_true(lambda: script.running == SLOTS and script.waiting == 1)
        refused = await served.post("/api/chat", messages=[USER])
        health = (await served.client.get("/health")).json()
        script.go_on.set()
        assert [(await task).status_code for task in tasks] == [200] * (SLOTS + 1)
    assert refused.status_code == 503
    assert refused.json()["error"] == "server busy, please try again.  maximum pending requests exceeded"
    assert (health["in_flight"], health["waiting"], health["slots"]) == (SLOTS + 1, 1, SLOTS)


async def test_thirty_two_clients_at_once_each_get_their_own_answer() -> None:
    script = Script([f"{n} " for n in range(20)])
    async with serving(script, fleet=Fleet(wish=LoadWish(max_running=32, kv_bytes=100))) as served:
        bodies = [{"messages": [{**USER, "content": "q" * n}], "stream": bool(n % 2)} for n in range(32)]
        replies = await asyncio.gather(*(served.post("/api/chat", **body) for body in bodies))
    last = [lines(reply.text)[-1] for reply in replies]
    assert [one["prompt_eval_count"] for one in last] == [len("<user>\n<assistant>") + n for n in range(32)]
    assert script.most > 4, "they ran side by side"
    assert not served.host.slots.busy


async def test_the_slot_is_free_before_the_client_sees_the_end() -> None:
    async with serving(real=True) as served:
        busy: list[bool] = []
        async with served.client.stream("POST", "/api/chat", json={"model": NAME, "messages": [USER]}) as reply:
            async for line in reply.aiter_lines():
                if json.loads(line)["done"]:
                    busy.append(served.host.slots.busy)
    assert busy == [False]


async def test_a_failure_in_the_middle_is_the_last_line_of_a_whole_body() -> None:
    script = Script()
    script.fail_at = 2
    async with serving(script) as served:
        streamed = await served.post("/api/chat", messages=[USER])
        whole = await served.post("/api/chat", messages=[USER], stream=False)
    assert streamed.status_code == 200
    assert [list(record)[-1] for record in lines(streamed.text)] == ["done", "done", "error"]
    assert "the script says so" in lines(streamed.text)[-1]["error"]
    assert whole.status_code == 500
    assert "the script says so" in whole.json()["error"]


async def test_a_failure_before_the_first_token_has_its_status() -> None:
    script = Script()
    script.fail_at = 0
    async with serving(script) as served:
        reply = await served.post("/api/chat", messages=[USER])
    assert (reply.status_code, list(reply.json())) == (500, ["error"])


async def test_a_stop_ends_running_streams_with_an_error_line_and_waiting_requests_with_503() -> None:
    script = Script(hold_at=1)
    async with serving(script, real=True) as served:
        running = [asyncio.create_task(served.post("/api/chat", messages=[USER])) for _ in range(SLOTS)]
        await until_true(lambda: script.told == SLOTS)
        waiting = asyncio.create_task(served.post("/api/chat", messages=[USER]))
        await until_true(lambda: script.waiting == 1)
        served.stop()
        streamed, refused = [await task for task in running], await waiting
    assert [lines(reply.text)[-1] for reply in streamed] == [{"error": "the node is shutting down"}] * SLOTS
    assert refused.status_code == 503


async def test_urgency_and_caller_reach_the_engine() -> None:
    keys = rules_of(("anna:one", "ben:two"), (), ())
    async with serving(rules=keys) as served:
        headers = {"X-API-Key": "two"}
        body = {"model": NAME, "messages": [USER], "priority": 5, "deadline_s": 30}
        await served.client.post("/api/chat", json=body, headers=headers)
    (request,) = served.script.requests
    assert (request.priority, request.deadline, request.caller, request.cache_salt) == (5, 30.0, "ben", "ben")


@pytest.mark.parametrize("keys", [(), ("anna:one",)])
async def test_cached_prompts_are_shared_where_there_is_nobody_to_hide_them_from(keys: tuple[str, ...]) -> None:
    async with serving(rules=rules_of(keys, (), ())) as served:
        await served.client.post("/api/chat", json={"model": NAME, "messages": [USER]}, headers={"X-API-Key": "one"})
    (request,) = served.script.requests
    assert (request.caller, request.cache_salt) == ("anna" if keys else "127.0.0.1", "")


async def test_who_asks_for_numbers_is_known_too() -> None:
    keys = rules_of(("anna:one", "ben:two"), (), ())
    async with serving(rules=keys) as served:
        headers = {"X-API-Key": "two"}
        for path, body in (
            ("/api/embed", {"input": ["a"]}),
            ("/api/embeddings", {"prompt": "a"}),
            ("/v1/embeddings", {"input": "a"}),
            ("/v1/embeddings", {"input": [3, 4]}),
            ("/api/infer", {"ids": [3, 4]}),
        ):
            reply = await served.client.post(path, json={"model": NAME, **body}, headers=headers)
            assert reply.status_code == 200, path
    requests: list[Any] = [*served.script.embeddings, *served.script.inferences]
    assert [(request.caller, request.cache_salt) for request in requests] == [("ben", "ben")] * 5
