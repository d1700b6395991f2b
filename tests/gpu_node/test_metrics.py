"""The exposition read back with Prometheus' own parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from gpu_node.engine.stats import Histogram
from gpu_node.metrics import buckets_of
from tests.gpu_node.serving import NAME, Served, serving


async def samples(served: Served) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    reply = await served.client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def of(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"potluck_node_{name}", frozenset(labels.items())


async def test_what_the_engine_counts_is_told_under_its_models_name() -> None:
    async with serving() as served:
        counters = served.script.counters
        counters.output_tokens, counters.cached_prompt_tokens, counters.restarts = 12, 5, 1
        counters.count_step(rows=3, tokens=40)
        counters.first_token.observe(0.2)
        served.script.running = 2
        await served.residents.reserve("session 1", "cpu", 7)
        found = await samples(served)
        served.script.running = 0
    assert found[of("output_tokens_total", model=NAME)] == 12
    assert found[of("prefix_hit_tokens_total", model=NAME)] == 5
    assert found[of("engine_restarts_total", model=NAME)] == 1
    assert found[of("running_requests", model=NAME)] == 2
    assert found[of("last_batch_size", model=NAME)] == 3
    assert found[of("batch_size_sum", model=NAME)] == 3
    assert found[of("first_token_seconds_bucket", model=NAME, le="0.1")] == 0
    assert found[of("first_token_seconds_bucket", model=NAME, le="0.25")] == 1
    assert found[of("first_token_seconds_count", model=NAME)] == 1
    assert found[of("model_loaded", model=NAME)] == 1
    assert found[of("memory_budget_bytes", device="cpu")] == 10**12
    assert found[of("model_memory_bytes", model=NAME, device="cpu", kind="cache")] == 1024 * 2
    weights = found[of("model_memory_bytes", model=NAME, device="cpu", kind="weights")]
    assert found[of("buffer_memory_bytes", device="cpu")] == 7
    assert found[of("memory_free_bytes", device="cpu")] == 10**12 - weights - 1024 * 2 - 7


async def test_responses_are_counted_by_route_and_no_caller_makes_series() -> None:
    async with serving() as served:
        await served.client.get("/live")
        await served.client.get("/v1/models/nothing")
        for path in ("/api/x", "/api/y", "/v1/z"):
            await served.client.get(path)
        await served.post("/v1/completions", prompt="p", model="nothing")
        found = await samples(served)
    counts = {labels: value for (name, labels), value in found.items() if name == "potluck_node_http_responses_total"}
    assert counts == {
        frozenset({("route", "/live"), ("status", "200")}): 1,
        frozenset({("route", "/v1/models/{id}"), ("status", "404")}): 1,
        frozenset({("route", "other"), ("status", "404")}): 3,
        frozenset({("route", "/v1/completions"), ("status", "404")}): 1,
    }


def test_buckets_end_in_everything() -> None:
    assert buckets_of(Histogram((0.5, 1.0), (1, 1, 3), 7.0)) == [("0.5", 1.0), ("1.0", 1.0), ("+Inf", 3.0)]
