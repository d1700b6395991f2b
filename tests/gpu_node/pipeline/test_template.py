"""What may be copied, and what a copy does not share with the others. Copies themselves are made in `test_nursery`."""

from __future__ import annotations

import random
import re
import socket
import threading

import numpy
import torch

from gpu_node.pipeline.template import reseed, unfitness


def test_copies_draw_numbers_of_their_own() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(numpy.random.random()), float(torch.rand(1))

    def seeded() -> None:
        random.seed(1)
        numpy.random.seed(1)
        torch.manual_seed(1)

    seeded()
    same = drawn()
    seeded()
    assert drawn() == same
    seeded()
    reseed()
    assert not set(drawn()) & set(same)


def test_what_has_threads_or_holds_something_is_not_copied() -> None:
    """As this process, which has more descriptors than a template."""
    one, other = socket.socketpair()
    with one, other:
        assert re.fullmatch(r"it (has \d+ threads|holds .+)", unfitness(one))
        waiting = threading.Event()
        thread = threading.Thread(target=waiting.wait)
        thread.start()
        assert re.fullmatch(r"it has \d+ threads", unfitness(one))
        waiting.set()
        thread.join()
