"""EMBED: one vector a text, in as many frames as they take."""

from __future__ import annotations

import array
import sys
from collections.abc import Iterator, Sequence

from gpu_node.engine.sequence import Embeddings
from gpu_node.errors import RequestError
from gpu_node.relay.call import RelayCall
from gpu_node.relay.models import Models
from gpu_node.relay.translation import Asker, embedding_of, keep_alive_of
from wire.limits import LARGEST_PAYLOAD
from wire.messages_work import Embed, Vectors

FLOAT_BYTES = 4
# Leaves room for the fields beside the numbers.
VECTORS_BYTES = LARGEST_PAYLOAD - 256


class EmbeddingRequests:
    def __init__(self, models: Models) -> None:
        self._models = models

    async def handle(self, call: RelayCall) -> None:
        asked = call.message(Embed)
        keep_alive_of(asked.keep_alive_seconds)
        if not all(asked.texts):
            raise RequestError("a text is empty", field="texts")
        asker = Asker(call.session.owner, asked.caller, asked.cache_salt)
        async with self._models.hold(asked.model, call.stream.send, asked.keep_alive_seconds) as host:
            runner = host.engine.runner
            if runner is not None and asked.dimensions > runner.embedding_length:
                raise RequestError(f"{host.name} has {runner.embedding_length} dimensions", field="dimensions")
            found = await host.engine.embed(embedding_of(asked, asker, host.context_tokens))
        for vectors, last in frames_of(found):
            await call.stream.send_message(vectors, ends=last)


def frames_of(found: Embeddings) -> Iterator[tuple[Vectors, bool]]:
    """The vectors in frames that fit, and which of them is the last."""
    total, width = len(found.vectors), len(found.vectors[0])
    step = max(VECTORS_BYTES // (width * FLOAT_BYTES), 1)
    for first in range(0, total, step):
        data = little_endian(found.vectors[first : first + step])
        yield Vectors(first, total, width, data, found.prompt_tokens), first + step >= total


def little_endian(vectors: Sequence[Sequence[float]]) -> bytes:
    numbers = array.array("f")
    for vector in vectors:
        numbers.extend(vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
