"""Buffers of relay clients on a real GPU: in and out, zeros first, memory back."""

import torch

from gpu_node.relay.device_memory import CudaCard, DeviceMemory

SIZE = (5 << 20) + 77


async def test_bytes_go_in_and_out_and_the_memory_comes_back() -> None:
    before = torch.cuda.memory_allocated()
    memory = DeviceMemory(SIZE, CudaCard())
    assert torch.cuda.memory_allocated() >= before + SIZE
    assert not any([any(part) async for part in memory.parts(0, SIZE, 1 << 20)])
    data = torch.randint(0, 256, (SIZE,), dtype=torch.uint8).numpy().tobytes()
    landing = memory.landing(0, SIZE)
    for start in range(0, SIZE, 700_001):
        await landing.put(start, data[start : start + 700_001])
    await landing.settle()
    assert b"".join([bytes(part) async for part in memory.parts(0, SIZE, 1 << 20)]) == data
    assert b"".join([bytes(part) async for part in memory.parts(100, 3 << 20, 1 << 20)]) == data[100 : 100 + (3 << 20)]
    del landing
    gone: list[int] = []
    memory.close(lambda: gone.append(1))
    assert gone and torch.cuda.memory_allocated() == before
