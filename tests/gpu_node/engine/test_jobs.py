"""Every request has one end, and what has ended leaves nothing behind."""

from __future__ import annotations

import pytest

from gpu_node.engine.generation import Generation, PreparedGeneration
from gpu_node.engine.jobs import DEATHS_OF_ONE, Jobs
from gpu_node.engine.mailbox import Outlet
from gpu_node.engine.planned import Limits
from gpu_node.engine.reading import EmbeddingJob
from gpu_node.engine.scheduler import Scheduler
from gpu_node.engine.sequence import EmbeddingRequest
from gpu_node.engine.stats import Counters
from gpu_node.errors import GenerationFailed, NodeBusy, NodeStopping
from tests.fakes.scripted_runner import ByteVocabulary
from tests.gpu_node.engine.desk import ASK, AtOnce, Client


class Desk:
    def __init__(self, **limits: int) -> None:
        self.scheduler = Scheduler(Limits(4, 256, **limits))
        self.counters = Counters()
        self.jobs = Jobs(self.scheduler, lambda: 1.0, self.counters)
        self.loop = AtOnce()
        self.outlet = Outlet(self.loop)

    def ask(self, prompt: str) -> Client:
        client = Client(self.outlet)
        prepared = PreparedGeneration(ASK, tuple(prompt.encode()), (None,), 0.0)
        client.job = Generation(prepared, client, ByteVocabulary())
        self.jobs.submit(client.job)
        return client

    def embed(self, count: int) -> Client:
        client = Client(self.outlet)
        texts = [(number + 1, 2) for number in range(count)]
        client.job = EmbeddingJob(EmbeddingRequest(("",) * count, 100), texts, client)
        self.jobs.submit(client.job)
        return client


def test_a_request_begins_with_its_sequences_and_ends_without() -> None:
    desk = Desk()
    assert not desk.jobs and desk.jobs.empty
    client = desk.ask("hello")
    assert desk.jobs and set(desk.jobs.samples) == desk.jobs.fresh == {1}
    desk.jobs.cancel(client.job)
    desk.jobs.cancel(client.job)
    desk.jobs.publish()
    assert desk.jobs.empty and not desk.scheduler.busy and not client.heard and desk.counters.cancelled == 1


def test_a_sample_that_finishes_last_ends_its_request() -> None:
    desk = Desk()
    client = desk.ask("hello")
    desk.jobs.finish_sample(desk.jobs.samples[1], 2.0)
    desk.jobs.publish()
    assert client.done.output_tokens == 0 and desk.jobs.empty and desk.counters.done == 1


def test_who_fails_hears_of_it_and_nobody_else() -> None:
    desk = Desk()
    bad, good = desk.ask("bad"), desk.ask("good")
    desk.jobs.fail_sequence(1, GenerationFailed("so it is"))
    desk.jobs.fail_sequence(1, GenerationFailed("it is gone already"))
    desk.jobs.fail_sequence(77, GenerationFailed("nobody"))
    desk.jobs.publish()
    assert str(bad.end) == "so it is" and not good.heard and desk.counters.failed == 1
    desk.jobs.fail_all(NodeStopping())
    desk.jobs.publish()
    assert isinstance(good.end, NodeStopping) and desk.jobs.empty


def test_a_full_line_refuses() -> None:
    desk = Desk(max_running=1, max_waiting=0)
    desk.ask("first")
    refused = desk.ask("second")
    desk.jobs.publish()
    assert isinstance(refused.end, NodeBusy)


def test_a_few_texts_at_a_time_and_the_next_when_one_is_read() -> None:
    desk = Desk()
    client = desk.embed(40)
    job = client.job
    assert isinstance(job, EmbeddingJob)
    under_way = set(desk.jobs.readings)
    assert len(under_way) == job.at_once < 40
    desk.jobs.finish_reading(min(under_way))
    assert len(desk.jobs.readings) == job.at_once and len(job.pending) == 40 - job.at_once - 1


@pytest.mark.parametrize("others", [0, 3])
def test_who_was_in_the_step_at_each_death_is_taken_for_the_reason(others: int) -> None:
    desk = Desk()
    bad = desk.ask("bad")
    for number in range(DEATHS_OF_ONE - 1):
        desk.jobs.suspect([1, *([number + 2] if others else [])])
        desk.ask("another")
    desk.jobs.publish()
    assert not bad.heard
    desk.jobs.suspect([1])
    desk.jobs.publish()
    assert "died of this request" in str(bad.end) and desk.counters.failed == 1


def test_whoever_asked_from_a_loop_that_is_closed_is_given_up() -> None:
    desk = Desk()
    client = desk.ask("hello")
    desk.loop.closed = True
    client.tell(GenerationFailed("nobody hears"))
    desk.jobs.publish()
    assert desk.jobs.empty and not desk.scheduler.busy
