import pytest

from potluck import CacheFacts, UnexpectedAnswer
from potluck.fleet import read_health, read_model_names, read_nodes
from tests.potluck.loopback import health, node


def test_every_fact_is_read():
    read = read_health(health(node("a"), node("b", breaker="open", last_error="reset", tokens_per_second=None)))
    assert (read.status, read.version, read.uptime_seconds) == ("ok", "0.1.0", 90061.0)
    assert (read.queue.waiting, read.queue.limit, read.queue.callers) == (3, 1024, 2)
    assert read.cache == CacheFacts(True, 5, 3, 6, 1)
    first, second = read.nodes
    assert first.serving
    assert (first.slots, first.in_flight, first.held_conversations) == (4, 1, 2)
    assert (first.models, first.resident) == (("qwen2.5:0.5b", "smollm2:135m"), ("qwen2.5:0.5b",))
    assert (first.reported_slots, first.gpu_node) == (None, False)
    assert not second.serving
    assert (second.last_error, second.tokens_per_second) == ("reset", None)


def test_a_broken_fleet_file_is_told():
    read = read_health(health(fleet_file={"path": "phones.json", "error": "line 3, column 5: expected ','"}))
    assert read.fleet_file.error == "line 3, column 5: expected ','"


def test_the_number_of_callers_may_come_counted():
    assert read_health(health(queue={"waiting": 1, "limit": 2, "callers": 7})).queue.callers == 7


def test_hit_rate_counts_joined_requests_as_saved():
    assert CacheFacts(True, 5, 3, 6, 1).hit_rate == pytest.approx(0.4)
    assert CacheFacts().hit_rate is None


def test_an_automatic_weight_has_no_number():
    assert read_nodes({"nodes": [node("a", weight="auto")]})[0].weight is None


def test_the_gateways_own_json_is_kept():
    assert read_health(health(extra=1)).record["extra"] == 1


@pytest.mark.parametrize("value", [None, [], {"nodes": [1]}, {"nodes": [{"id": "a"}]}])
def test_other_servers_are_recognised(value):
    with pytest.raises(UnexpectedAnswer):
        read_health(value)


def test_model_names():
    assert read_model_names({"object": "list", "data": [{"id": "a"}, {"id": "b"}]}) == ["a", "b"]
    with pytest.raises(UnexpectedAnswer):
        read_model_names({"data": ["a"]})


def test_a_gpu_node_tells_its_own_slots():
    (read,) = read_nodes({"nodes": [node("tower", slots=4, reported_slots=32, gpu_node=True)]})
    assert (read.slots, read.reported_slots, read.gpu_node) == (4, 32, True)
