"""The Python client of a relay node for programs without an event loop: `Relay`.

It is `AsyncRelay` on a loop of its own in one thread, which ends with it; every method waits for its twin. Safe to use
from several threads. What is interrupted (Ctrl-C) is cancelled on the node too.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Unpack, overload

from .errors import PotluckError
from .relay import AsyncRelay, RelayPlace, Told
from .relay_answers import Embeddings, FoundNode, Generation, LoadedModel, LoadProgress, NodeStats, Piece
from .relay_arrays import ArrayLike, TensorData
from .relay_asking import EmbedOptions, GenerateOptions, Prompt
from .relay_buffer import AsyncRemoteTensor
from .relay_loop import LoopThread
from .relay_streams import AsyncRelayStream

__all__ = ["Relay", "RelayStream", "RemoteTensor"]

Result = TypeVar("Result")
Event = TypeVar("Event")


class RelayStream:
    """An answer while it is told: iterate, stop early, reach the whole of it. See `AsyncRelayStream`."""

    def __init__(self, stream: AsyncRelayStream, thread: LoopThread) -> None:
        self._stream, self._thread = stream, thread
        self._finalizer = weakref.finalize(self, thread.leave, stream)
        self._finalizer.atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        piece = self._thread.run(_next(self._stream))
        if piece is None:
            raise StopIteration
        return piece

    def events(self) -> Iterator[Piece | LoadProgress]:
        """Pieces, and what the node does before the first one."""
        events = self._stream.events()
        while (event := self._thread.run(_next(events))) is not None:
            yield event

    @property
    def text(self) -> str:
        """What has been told so far, of the first sample."""
        return self._stream.text

    @property
    def answer(self) -> Generation:
        """The whole answer; there after the last piece."""
        return self._stream.answer

    def finish(self) -> Generation:
        """Read what is left and return the whole answer."""
        return self._thread.run(self._stream.finish())

    def close(self) -> None:
        """Leave the stream; the node stops what it was doing for it. Harmless when done twice."""
        if self._finalizer.detach() is not None:
            with suppress(PotluckError):  # the client was closed before, and the stream with it
                self._thread.run(self._stream.aclose())


async def _next(events: AsyncIterator[Event]) -> Event | None:
    return await anext(events, None)


class RemoteTensor:
    """A tensor that lies in a node's memory. In a `with` block it is freed at the end. See `AsyncRemoteTensor`."""

    def __init__(self, tensor: AsyncRemoteTensor, thread: LoopThread) -> None:
        self._tensor, self._thread = tensor, thread

    def __repr__(self) -> str:
        return repr(self._tensor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    @property
    def handle(self) -> int:
        return self._tensor.handle

    @property
    def dtype(self) -> str:
        return self._tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self._tensor.shape

    @property
    def device(self) -> str:
        return self._tensor.device

    @property
    def nbytes(self) -> int:
        return self._tensor.nbytes

    @property
    def asynchronous(self) -> AsyncRemoteTensor:
        """The same tensor, for coroutines that run in the client's own loop."""
        return self._tensor

    def put(self, data: ArrayLike, **options: Any) -> None:
        """As `AsyncRemoteTensor.put`."""
        self._thread.run(self._tensor.put(data, **options))

    def get(self, into: ArrayLike = None, **options: Any) -> TensorData:
        """As `AsyncRemoteTensor.get`."""
        return self._thread.run(self._tensor.get(into, **options))

    def free(self) -> int:
        """Give it back; the bytes that came free. Harmless when done twice."""
        return self._thread.run(self._tensor.free())


class Relay:
    """One node. Use it in a `with` block, or `close()` it: then the node frees all that it held for us.

    Takes what `AsyncRelay` takes, and does what it does.
    """

    def __init__(self, node: RelayPlace, **options: Any) -> None:
        self._relay = AsyncRelay(node, **options)
        self._thread = LoopThread()

    @classmethod
    def connect(cls, node: RelayPlace, **options: Any) -> Self:
        """A client that has reached the node. Raises NodeUnreachable, KeyRefused."""
        relay = cls(node, **options)
        try:
            relay.open()
        except BaseException:
            relay.close()
            raise
        return relay

    @staticmethod
    def discover(seconds: float = 1.0, **options: Any) -> tuple[FoundNode, ...]:
        """The nodes that answer a probe within the time; `options` are those of `AsyncRelay.discover`."""
        return asyncio.run(AsyncRelay.discover(seconds, **options))

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def place(self) -> str:
        return self._relay.place

    def open(self) -> None:
        """Connect now, if there is no connection."""
        self._thread.run(self._relay.open())

    def close(self) -> None:
        """Say goodbye, and end the thread. Harmless when done twice."""
        self._thread.close(self._relay.aclose())

    def ping(self) -> float:
        """Seconds there and back."""
        return self._thread.run(self._relay.ping())

    def tell_signal(self, signal_dbm: int | None) -> None:
        """The strength of this machine's Wi-Fi signal: a weak one makes compression worth more."""
        self._relay.tell_signal(signal_dbm)

    def load_model(self, model: str, *, on_progress: Told | None = None, **options: Any) -> LoadedModel:
        """As `AsyncRelay.load_model`; `on_progress` is called in the client's own thread."""
        return self._thread.run(self._relay.load_model(model, on_progress=on_progress, **options))

    def unload(self, model: str) -> int:
        """Give a model back; the bytes that came free by it."""
        return self._thread.run(self._relay.unload(model))

    def generate(self, model: str, prompt: Prompt, **options: Unpack[GenerateOptions]) -> RelayStream:
        """As `AsyncRelay.generate`."""
        return RelayStream(self._relay.generate(model, prompt, **options), self._thread)

    def embed(self, model: str, texts: str | Sequence[str], **options: Unpack[EmbedOptions]) -> Embeddings:
        return self._thread.run(self._relay.embed(model, texts, **options))

    def tensor(self, data: ArrayLike = None, **options: Any) -> RemoteTensor:
        """As `AsyncRelay.tensor`."""
        return RemoteTensor(self._thread.run(self._relay.tensor(data, **options)), self._thread)

    @overload
    def run(
        self, model: str, inputs: Sequence[int] | RemoteTensor, *, output: Literal["logits", "hidden"] = ...,
        last_only: bool = ..., keep: Literal[False] = ...,
    ) -> TensorData: ...  # fmt: skip
    @overload
    def run(
        self, model: str, inputs: Sequence[int] | RemoteTensor, *, output: Literal["logits", "hidden"] = ...,
        last_only: bool = ..., keep: Literal[True],
    ) -> RemoteTensor: ...  # fmt: skip
    def run(
        self, model: str, inputs: Sequence[int] | RemoteTensor, *, keep: bool = False, **options: Any
    ) -> TensorData | RemoteTensor:
        """As `AsyncRelay.run`."""
        fed = inputs.asynchronous if isinstance(inputs, RemoteTensor) else inputs
        relay: Any = self._relay  # whose overloads say more than a forwarded `keep`
        result: TensorData | AsyncRemoteTensor = self._thread.run(relay.run(model, fed, keep=keep, **options))
        return RemoteTensor(result, self._thread) if isinstance(result, AsyncRemoteTensor) else result

    def push(self, model: str, source: str | Path, *, on_progress: Told | None = None) -> int:
        """As `AsyncRelay.push`; `on_progress` is called in the client's own thread."""
        return self._thread.run(self._relay.push(model, source, on_progress=on_progress))

    def stats(self) -> NodeStats:
        return self._thread.run(self._relay.stats())

    def free(self, *tensors: RemoteTensor) -> int:
        """Give tensors back, all in one request; the bytes that came free."""
        return self._thread.run(self._relay.free(*(tensor.asynchronous for tensor in tensors)))

    def submit(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine that uses `asynchronous` in the client's own loop: several requests at once, for example."""
        return self._thread.run(work)

    @property
    def asynchronous(self) -> AsyncRelay:
        """The client that this one drives, for `submit`."""
        return self._relay
