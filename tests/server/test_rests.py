"""The log tells each change of a phone's rest once, and its readings not at all."""

from __future__ import annotations

import logging

import pytest

from server.care import Condition
from server.nodes import NodeId
from server.registry import NodeCondition, NodeGone, NodeProbed, Registry
from server.rests import log_rests, told
from tests.server.scripted_nodes import list_node, node_of, report_of


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.set_level(logging.INFO, "server.rests")
    return caplog.messages


def told_of(*readings: Condition) -> Registry:
    registry = Registry()
    registry.listen(log_rests)
    list_node(registry, "kitchen")
    for reading in readings:
        registry.emit(NodeCondition(NodeId("kitchen"), reading, reading.at))
    return registry


def test_a_rest_is_told_once_and_its_end(caplog: pytest.LogCaptureFixture, lines: list[str]) -> None:
    degrees = (36.0, 41.0, 43.5, 44.0, 42.0, 39.0, 38.0)
    told_of(*(Condition(80.0, True, celsius, 0, at=float(at)) for at, celsius in enumerate(degrees)))
    assert caplog.messages == [
        "the phone kitchen rests: hot: 43.5 °C, rests until 39 °C",
        "the phone kitchen works again: it last told 39.0 °C, thermal status none, charged to 80 %",
    ]


def test_another_reason_is_another_line(caplog: pytest.LogCaptureFixture, lines: list[str]) -> None:
    told_of(
        Condition(10.0, False, 30.0, at=1.0), Condition(9.0, False, 44.0, at=2.0), Condition(2.0, False, 44.0, at=3.0)
    )
    assert caplog.messages == [
        "the phone kitchen rests: low battery: 10 %, not charging, rests until 30 %",
        "the phone kitchen rests: hot: 44.0 °C, rests until 39 °C; low battery: 9 %, not charging, rests until 30 %",
        "the phone kitchen bears no work at all: "
        "hot: 44.0 °C, rests until 39 °C; low battery: 2 %, not charging, rests until 30 %",
    ]


def test_silence_ends_a_rest_and_is_told(caplog: pytest.LogCaptureFixture, lines: list[str]) -> None:
    registry = told_of(Condition(temperature_c=44.0, at=1.0))
    for now in (100.0, 200.0, 300.0):
        registry.emit(NodeProbed(NodeId("kitchen"), report_of(), now))
    assert len(caplog.messages) == 2
    assert caplog.messages[1] == "the phone kitchen works again: it last told 44.0 °C"


def test_a_phone_that_leaves_at_rest_says_nothing_more(caplog: pytest.LogCaptureFixture, lines: list[str]) -> None:
    registry = told_of(Condition(temperature_c=44.0, at=1.0))
    registry.emit(NodeGone(NodeId("kitchen")))
    assert len(caplog.messages) == 1
    assert told(None, node_of("kitchen")) is None
