"""What a worker learns of its own device, with a played torch: the cards of one machine, and who may ask them."""

from __future__ import annotations

from gpu_node.pipeline.surroundings import device_bytes


class Card:
    """One of torch's modules for a kind of card."""

    def __init__(self, free: int, total: int) -> None:
        self.memory, self.asked = (free, total), 0

    def is_available(self) -> bool:
        return True

    def mem_get_info(self) -> tuple[int, int]:
        self.asked += 1
        return self.memory


class Torch:
    def __init__(self) -> None:
        self.cuda, self.xpu = Card(3, 8), Card(5, 16)


def test_a_worker_tells_the_memory_of_its_own_card() -> None:
    torch = Torch()
    assert [device_bytes(name, torch) for name in ("cuda:1", "rocm:0", "xpu:2")] == [(8, 3), (8, 3), (16, 5)]


def test_a_worker_of_a_cpu_asks_no_card() -> None:
    """The asking alone would take a part of its memory."""
    torch = Torch()
    total, free = device_bytes("cpu:1", torch)
    assert 0 < free <= total and not torch.cuda.asked and not torch.xpu.asked
