"""An epoch's links are made one after the other, given up in time, and ended from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_node.pipeline.ends import HEAD, LinkEnds
from gpu_node.pipeline.epoch import Epoch
from gpu_node.pipeline.errors import LinkClosed, LinkRefused, LinkSilent
from gpu_node.pipeline.gate import Gate
from gpu_node.pipeline.orders import Take
from gpu_node.pipeline.step_frames import RING_SETTINGS
from tests.gpu_node.pipeline.pairs import beside
from tests.gpu_node.pipeline.worker_crowd import connected

TOKEN = "of this test"


def take(place: str, stage: int = 0, stages: int = 1, seconds: float = 20.0) -> Take:
    return Take(1, 1, 3, stage, stages, 4, 8, 8, place, links_seconds=seconds)


def gate(folder: Path, name: str) -> Gate:
    return Gate(str(folder / name), TOKEN, RING_SETTINGS)


def test_a_ring_of_one_admits_the_head_and_then_goes_to_it(tmp_path: Path) -> None:
    with gate(tmp_path, "own") as own, gate(tmp_path, "head") as head:
        epoch = Epoch(take(str(tmp_path / "head")))
        with (
            beside(lambda: epoch.join(own, TOKEN)) as made,
            connected(str(tmp_path / "own"), LinkEnds(HEAD, 0, 3)) as first,
            head.admit([LinkEnds(0, HEAD, 3)], 20) as last,
        ):
            made.join(60)
            assert [link.ends for link in made.value] == [first.ends, last.ends]
            assert epoch.links == made.value
            epoch.end("enough")
            assert isinstance(made.value[0].end, LinkClosed) and epoch.reason == "enough"
            epoch.end("again")
            assert epoch.reason == "enough"
        epoch.close()


def test_who_does_not_come_is_given_up(tmp_path: Path) -> None:
    with gate(tmp_path, "own") as own, pytest.raises(LinkSilent):
        Epoch(take("/none", seconds=0.02)).join(own, TOKEN)


def test_nobody_waits_for_an_epoch_that_is_over(tmp_path: Path) -> None:
    with gate(tmp_path, "own") as own:
        epoch = Epoch(take("/none", seconds=60.0))
        with beside(lambda: epoch.join(own, TOKEN)) as made:
            epoch.end("another one")
        assert isinstance(made.error, LinkClosed) and "another one" in str(made.error)


def test_a_neighbour_in_another_epoch_is_asked_again(tmp_path: Path) -> None:
    """It refuses until it is in this one."""
    with gate(tmp_path, "own") as own, gate(tmp_path, "next") as following:
        epoch = Epoch(take(str(tmp_path / "next"), 0, 2))
        with (
            beside(lambda: epoch.join(own, TOKEN)) as made,
            connected(str(tmp_path / "own"), LinkEnds(HEAD, 0, 3)),
        ):
            while not following.refused:
                with pytest.raises(LinkSilent):
                    following.admit([LinkEnds(0, 1, 2)], 0.02)
            following.admit([LinkEnds(0, 1, 3)], 20).close()
        assert made.error is None
        epoch.close()


def test_a_neighbour_that_refuses_for_good_is_told_as_such(tmp_path: Path) -> None:
    with gate(tmp_path, "own") as own, Gate(str(tmp_path / "next"), "another token", RING_SETTINGS) as following:
        epoch = Epoch(take(str(tmp_path / "next"), 0, 2, seconds=3.0))  # for the head to come, too
        with (
            beside(lambda: epoch.join(own, TOKEN)) as made,
            connected(str(tmp_path / "own"), LinkEnds(HEAD, 0, 3)),
        ):
            while made.is_alive():
                with pytest.raises(LinkSilent):
                    following.admit([LinkEnds(0, 1, 3)], 0.02)
        assert isinstance(made.error, LinkRefused | LinkSilent) and following.refused
        epoch.close()
