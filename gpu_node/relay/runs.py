"""RUN: a loaded model on ids or on a tensor of the session; logits or hidden states go back, or stay here.

Invariants: a model that is not loaded is not brought in for it; what is read stays as long as it is read; the result
is sent from where the engine put it. Must not know how a model computes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace

from gpu_node.engine.sequence import Inference, InferenceRequest
from gpu_node.errors import ContextExceeded, RequestError
from gpu_node.host import ModelHost
from gpu_node.relay.buffers import Buffer
from gpu_node.relay.call import RelayCall
from gpu_node.relay.host_memory import Memory
from gpu_node.relay.inputs import are_ids, ids_of, tokens_in, vectors_of
from gpu_node.relay.models import Models
from gpu_node.relay.tensor_stream import PART_BYTES, parts_of, send_piece
from gpu_node.relay.translation import Asker
from wire import frames
from wire.messages_memory import Alloc, FromBuffer, Output, Run
from wire.tensors import DType, TensorFlags, TensorHeader

OUTPUTS = {Output.LOGITS: "logits", Output.HIDDEN: "hidden"}


# Results up to this size stand in no account while they are sent: a stream's queue takes as much in any case. Larger
# ones are the session's until a slow reader has them.
UNBOOKED_BYTES = 4 * PART_BYTES


class Runs:
    def __init__(self, models: Models, unbooked_bytes: int = UNBOOKED_BYTES) -> None:
        self._models, self._unbooked_bytes = models, unbooked_bytes

    async def handle(self, call: RelayCall) -> None:
        asked = call.message(Run)
        self._check_loaded(asked.model)
        async with AsyncExitStack() as until_sent:
            async with self._models.hold(asked.model, call.stream.send) as host, _request(call, asked, host) as request:
                found = await host.engine.infer(request)
                size = len(found.data)
                if not asked.keep_as and size > self._unbooked_bytes:
                    await until_sent.enter_async_context(call.session.buffers.borrowed(size))
            if asked.keep_as:
                await _keep(call, asked.keep_as, found)
            else:
                header = TensorHeader(DType.FLOAT32, found.shape, size, flags=TensorFlags.LAST)
                await send_piece(call.stream, header, parts_of([found.data]), checked=False)

    def _check_loaded(self, name: str) -> None:
        host = self._models.residents.find(name)
        if not host.ready and host.state != "loading":
            raise RequestError(f"{host.name} is not loaded: LOAD it first", status=409, field="model")


@asynccontextmanager
async def _request(call: RelayCall, asked: Run, host: ModelHost) -> AsyncIterator[InferenceRequest]:
    asker = Asker(call.session.owner, asked.caller, asked.cache_salt)
    output = OUTPUTS[asked.output]
    plain = InferenceRequest((), output, asked.last_only, asker.turns, asker.salt)  # type: ignore[arg-type]
    if not isinstance(asked.inputs, FromBuffer):
        _check_length(len(asked.inputs.ids), host)
        yield replace(plain, ids=asked.inputs.ids)
        return
    buffer = call.session.buffers.get(asked.inputs.handle)
    _check_length(tokens_in(buffer.dtype, buffer.shape), host)
    with buffer.use() as memory:
        yield await _from_buffer(buffer, memory, plain)


async def _from_buffer(buffer: Buffer, memory: Memory, plain: InferenceRequest) -> InferenceRequest:
    data = await _whole(memory, buffer.size_bytes)
    if are_ids(buffer.dtype):
        return replace(plain, ids=await asyncio.to_thread(ids_of, buffer.dtype, data))
    return replace(plain, embeddings=await asyncio.to_thread(vectors_of, buffer.dtype, buffer.shape, data))


def _check_length(tokens: int, host: ModelHost) -> None:
    if tokens > host.context_tokens:
        raise ContextExceeded()  # beyond the positions that the model knows its numbers mean nothing


async def _whole(memory: Memory, size_bytes: int) -> frames.Buffer:
    """Where it lies, when that is on the host."""
    async with aclosing(memory.parts(0, size_bytes, max(size_bytes, 1))) as parts:
        async for part in parts:
            return part
    return b""


async def _keep(call: RelayCall, handle: int, found: Inference) -> None:
    """Into a buffer of the session, which is made unless it is there already."""
    buffers = call.session.buffers
    allocated = await buffers.alloc(Alloc(handle, DType.FLOAT32, found.shape))
    buffer = buffers.get(handle)
    with buffer.use() as memory:
        landing = memory.landing(0, buffer.size_bytes)
        for start, part in _cut(memoryview(found.data)):
            await landing.put(start, part)
            await asyncio.sleep(0)  # others get their turn
        await landing.settle()
    await call.stream.send_message(allocated, ends=True)


def _cut(data: memoryview) -> Generator[tuple[int, memoryview], None, None]:
    for start in range(0, len(data), PART_BYTES):
        yield start, data[start : start + PART_BYTES]
