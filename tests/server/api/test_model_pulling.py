"""A model pulled onto real fake phones: progress, single failures, broken downloads, and a caller that leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from server.api.model_pulling import Pulling, PullWish, read_pull
from server.backends import Backends
from server.errors import RequestInvalid
from server.nodes import NodeId
from server.pulls import PAUSES_SECONDS
from server.registry import NodeListed, NodeProbed, NodeUnlisted, ProbeFailed, Registry
from tests.fakes.phone import FakeModel, FakePhone, Fault, PhoneSettings
from tests.server.api.gateway import Answer, Call, Gateway, fleet, gateway, post, report, spec, until
from tests.server.api.pulling_stand import PATH, of

NEW = FakeModel("qwen:1b", size=1_000_000)
OLD = FakeModel("smollm2:135m")


class Phones:
    """Phones behind one gateway, by name."""

    def __init__(self, phones: dict[str, FakePhone], backends: Backends, made: Gateway) -> None:
        self.phones, self.backends, self.made = phones, backends, made
        self.registry = made.services.registry
        self.pauses: list[float] = []

    def __getitem__(self, name: str) -> FakePhone:
        return self.phones[name]

    async def pull(self, **body: Any) -> Answer:
        return await post(self.made.app, PATH, {"model": "qwen:1b", **body})

    async def tried(self, *names: str) -> list[dict[str, Any]]:
        """With pauses that are noted and not waited for."""

        async def note(seconds: float) -> None:
            self.pauses.append(seconds)

        pulling = Pulling(self.made.services, note)
        return [record async for record, _ in pulling.steps(PullWish("qwen:1b", names))]

    def models(self, name: str) -> list[str]:
        node = self.registry.node(NodeId(name))
        assert node is not None
        return list(node.models)


@asynccontextmanager
async def phones(**each: dict[str, Any]) -> AsyncIterator[Phones]:
    """Each has the old model and can pull the new one, unless its settings say otherwise."""
    backends, registry = Backends({}), Registry()
    running: dict[str, FakePhone] = {}
    try:
        for name, settings in each.items():
            phone = FakePhone(PhoneSettings(**{"models": (OLD,), "library": (NEW,), "seed": len(running), **settings}))
            await phone.start()
            running[name] = phone
            node = spec(name, host=phone.host, port=phone.port)
            registry.emit(NodeListed(node, 0.0))
            registry.emit(NodeProbed(node.id, await backends["ollama"].probe(node, 5.0), 0.0))
        yield Phones(running, backends, gateway(registry=registry, backends=backends, operations=backends.operations))
    finally:
        for phone in running.values():
            await phone.stop()
        await backends.aclose()


async def test_progress_of_each_phone_and_the_model_can_be_routed_at_once() -> None:
    async with phones(kitchen={}, attic={}) as here:
        answer = await here.pull(all=True)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
        lines = answer.lines()
        for name in ("kitchen", "attic"):
            told = of(lines, name)
            assert [one["status"] for one in told[:2]] == ["waiting", "pulling manifest"]
            weights = [one for one in told if one.get("total") == NEW.size]
            assert weights[-1]["completed"] == NEW.size and weights[0]["digest"].startswith("sha256:")
            assert [one["status"] for one in told[-3:]] == ["verifying sha256 digest", "writing manifest", "success"]
            assert here.models(name) == ["smollm2:135m", "qwen:1b"]
        assert lines[-1] == {
            "status": "done",
            "model": "qwen:1b",
            "pulled": lines[-1]["pulled"],
            "had": [],
            "failed": {},
        }
        assert sorted(lines[-1]["pulled"]) == ["attic", "kitchen"]
        (asked,) = [seen.json for seen in here["attic"].log if seen.name == "pull"]
        assert asked == {"model": "qwen:1b", "stream": True}


async def test_one_phones_failure_stops_no_other() -> None:
    each = {"full": {"free_bytes": 500_000}, "bare": {"library": (OLD,)}, "fine": {}, "has": {"models": (NEW,)}}
    async with phones(**each) as here:
        lines = (await here.pull(all=True)).lines()
        assert of(lines, "full")[-1]["status"] == of(lines, "bare")[-1]["status"] == "error"
        last = lines[-1]
        assert (last["pulled"], last["had"], sorted(last["failed"])) == (["fine"], ["has"], ["bare", "full"])
        assert last["failed"]["full"].startswith("its storage is full (")
        assert last["failed"]["bare"].startswith("the library has no such model (")
        assert of(lines, "full")[-1]["error"] == last["failed"]["full"]
        assert here.models("full") == ["smollm2:135m"]


async def test_a_newer_copy_is_pulled_and_counts_as_pulled() -> None:
    async with phones(kitchen={"models": (FakeModel("qwen:1b", digest="0" * 64),)}) as here:
        assert (await here.pull(all=True)).lines()[-1]["pulled"] == ["kitchen"]
        assert (await here.pull(all=True)).lines()[-1]["had"] == ["kitchen"]


async def test_nodes_that_keep_their_models_themselves_are_told_so_and_stop_nobody() -> None:
    async with phones(kitchen={}) as here:
        for other, found in (
            (spec("vllm", kind="openai"), report("m")),
            (spec("tower"), report("m", gpu_node=True)),
            (spec("desk", kind="relay"), report("m")),
            (spec("drained", enabled=False), None),
        ):
            here.registry.emit(NodeListed(other, 0.0))
            if found is not None:
                here.registry.emit(NodeProbed(other.id, found, 0.0))
        lines = (await here.pull(nodes=["vllm", "kitchen", "tower", "desk", "drained", "KITCHEN"])).lines()
        assert lines[-1]["pulled"] == ["kitchen"]
        assert {name: words.split(",")[0] for name, words in lines[-1]["failed"].items()} == {
            "vllm": "it is a server that keeps its models as it likes",
            "tower": "it is a GPU node",
            "desk": "it is a GPU node",
            "drained": "it is drained: the fleet file says to leave it alone",
        }
        assert (await here.pull(all=True)).lines()[-1] == {
            "status": "done", "model": "qwen:1b", "pulled": [], "had": ["kitchen"], "failed": {},
        }  # fmt: skip


async def test_so_many_at_once_and_no_more() -> None:
    slow = {"pull_bytes_per_second": 50_000_000.0}  # 3 MB a line: each part is two lines, 60 ms apart
    async with phones(**{f"p{number}": slow for number in range(5)}) as here:
        most = 0
        call = Call("POST", PATH, {"model": "qwen:1b", "all": True, "at_once": 2})
        task = asyncio.create_task(call.run(here.made.app))
        while not task.done():
            running = sum(phone.counters.in_flight for phone in here.phones.values())
            most = max(most, running)
            await asyncio.sleep(0.002)
        assert most == 2
        assert len((await task).lines()[-1]["pulled"]) == 5


async def test_a_download_that_breaks_off_goes_on_where_it_stopped() -> None:
    async with phones(kitchen={}) as here:
        phone = here["kitchen"]
        phone.fail(Fault.cut(after_tokens=4), times=1, paths="pull")
        phone.fail(Fault.error_line(2, "max retries exceeded: unexpected EOF"), times=1, paths="pull")
        lines = await here.tried("kitchen")
        assert lines[-1]["pulled"] == ["kitchen"]
        again = [one for one in lines if one["status"] == "trying again"]
        assert [one["in_seconds"] for one in again] == here.pauses == [1.0, 1.0]  # each brought something
        assert "unexpected EOF" in again[1]["reason"]
        weights = [one.get("completed", 0) for one in of(lines, "kitchen") if one.get("total") == NEW.size]
        assert weights == sorted(weights)  # nothing was loaded twice


async def test_without_a_network_it_is_given_up_after_a_while() -> None:
    async with phones(kitchen={"pull_error": "dial tcp: lookup registry: no such host"}) as here:
        lines = await here.tried("kitchen")
        assert here.pauses == list(PAUSES_SECONDS)
        assert lines[-1]["failed"]["kitchen"].startswith("it does not reach the library")
        assert here["kitchen"].counters.requests["pull"] == len(PAUSES_SECONDS) + 1


async def test_a_phone_that_goes_away_and_comes_back_elsewhere_is_found_there() -> None:
    async with phones(kitchen={}, attic={}) as here:
        here["kitchen"].fail(Fault.cut(after_tokens=3), paths="pull")

        async def move(seconds: float) -> None:
            attic = here["attic"]  # takes the place of the same phone with another address
            for moment in range(3):
                here.registry.emit(ProbeFailed(NodeId("kitchen"), "no answer", float(moment)))
            here.registry.emit(NodeListed(spec("kitchen", host=attic.host, port=attic.port), 9.0))

        pulling = Pulling(here.made.services, move)
        lines = [record async for record, _ in pulling.steps(PullWish("qwen:1b", ("kitchen",)))]
        assert lines[-1]["pulled"] == ["kitchen"]
        assert [seen.name for seen in here["attic"].log].count("pull") == 1


async def test_a_phone_that_stays_away_and_one_that_is_removed() -> None:
    async with phones(kitchen={}) as here:
        await here["kitchen"].stop_listening()
        lines = await here.tried("kitchen")
        assert "cannot connect" in lines[-1]["failed"]["kitchen"] and here.pauses == list(PAUSES_SECONDS)
        for moment in range(3):
            here.registry.emit(ProbeFailed(NodeId("kitchen"), "no route", float(moment)))
        here.pauses.clear()
        lines = await here.tried("kitchen")
        assert lines[-1]["failed"] == {"kitchen": "it does not answer: no route"} and here.pauses == []
        here.registry.emit(NodeUnlisted(NodeId("kitchen"), 1.0))
        assert (await here.tried("kitchen"))[-1]["failed"] == {"kitchen": "it is leaving the fleet"}


async def test_a_caller_that_leaves_ends_the_pulls_and_what_came_is_kept() -> None:
    slow = {"pull_bytes_per_second": 100_000.0}
    async with phones(kitchen=slow, attic=slow) as here:
        call = Call("POST", PATH, {"model": "qwen:1b", "all": True})
        task = asyncio.create_task(call.run(here.made.app))
        both = here.phones.values()
        await until(lambda: all(any(phone.state.partial.values()) for phone in both))
        call.gone.set()
        await task
        for phone in both:
            await phone.idle()
            assert phone.counters.cancelled == 1
            assert sum(phone.state.partial.values()) > 0
        assert not call.complete


async def test_without_a_stream_the_last_word_alone() -> None:
    async with phones(kitchen={}, full={"free_bytes": 1}) as here:
        answer = await here.pull(all=True, stream=False)
        assert answer.status == 200
        assert answer.json()["pulled"] == ["kitchen"] and list(answer.json()["failed"]) == ["full"]


async def test_two_of_one_name_are_told_apart() -> None:
    async with phones(one={}, two={}) as here:
        for name in ("one", "two"):
            phone = here[name]
            here.registry.emit(NodeListed(spec(name, name="Pixel", host=phone.host, port=phone.port), 1.0))
        assert sorted((await here.pull(all=True)).lines()[-1]["pulled"]) == ["one", "two"]
        refused = await here.pull(nodes=["Pixel"])
        assert refused.status == 400 and "several nodes" in refused.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        {}, {"model": "a"}, {"model": "", "all": True}, {"model": "a", "all": False}, {"model": "a", "nodes": []},
        {"model": "a", "nodes": ["x"], "all": True}, {"model": "a", "nodes": "x"}, {"model": "a", "nodes": [1]},
        {"model": "a", "all": True, "at_once": 0}, {"model": "a", "all": True, "at_once": 65},
        {"model": "a", "all": 1}, {"model": "a", "all": True, "insecure": True}, {"model": "a\x1b", "all": True},
        {"model": "a" * 300, "all": True},
    ],
)  # fmt: skip
def test_what_nobody_can_mean(body: Any) -> None:
    with pytest.raises(RequestInvalid):
        read_pull(body)


async def test_who_is_not_there_is_said_before_anything_is_begun() -> None:
    made = gateway()
    assert (await post(made.app, PATH, {"model": "a", "nodes": ["nobody"]})).status == 404
    assert (await post(made.app, PATH, {"model": "auto", "all": True})).status == 400
    only_servers = gateway(registry=fleet((spec("vllm", kind="openai"), report("m"))))
    assert (await post(only_servers.app, PATH, {"model": "a", "all": True})).status == 503


async def test_it_is_a_call_like_others() -> None:
    made = gateway(api_keys="a:secret")
    assert (await post(made.app, PATH, {"model": "a", "all": True})).status == 401
    outside = {"client": ("203.0.113.7", 1)}
    assert (await post(gateway().app, PATH, {"model": "a", "all": True}, **outside)).status == 403
    page = {"headers": {"origin": "http://evil.example", "content-type": "text/plain"}}
    assert (await post(gateway().app, PATH, {"model": "a", "all": True}, **page)).status == 403


async def test_ollamas_own_pull_names_the_new_way() -> None:
    refused = await post(gateway().app, "/api/pull", {"model": "a"})
    assert refused.status == 501 and "/api/models/pull" in refused.json()["error"]
