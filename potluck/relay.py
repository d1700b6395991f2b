"""The Python client of a relay node, for asyncio: models, answers, tensors on the node, its figures.

One connection carries all that tasks ask at once. It is made at the first use and made anew when it is cut: what the
node holds for this client, and answers under way, survive a cut that is shorter than the node's grace. Every error is
a `PotluckError`. Imports `wire` and `transport` and no array library.
"""

from __future__ import annotations

import itertools
import os
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Unpack, overload

from transport.beacons import MOST_FOUND, Reach
from transport.beacons import discover as probe
from transport.link import Access
from transport.places import RELAY_PORT, Place
from transport.session import RelaySession, SessionSettings
from transport.tokens import shared_token
from wire.messages import Message
from wire.messages_memory import Alloc, Allocated, Free, FromBuffer, InlineIds, Output, Run
from wire.messages_session import Ack
from wire.messages_stats import Stats
from wire.messages_work import Load, Loaded, Progress, Unload, Vectors
from wire.tensors import DType

from .errors import Misuse, UnexpectedAnswer
from .relay_answers import Embeddings, FoundNode, LoadedModel, LoadProgress, NodeStats
from .relay_arrays import ArrayLike, TensorData, dtype_named, named, tensor_of
from .relay_asking import EmbedOptions, GenerateOptions, Prompt, embed_request, generate_request
from .relay_buffer import AsyncRemoteTensor
from .relay_push import offer_of, push
from .relay_seam import translated
from .relay_streams import AsyncRelayStream
from .relay_tensors import run

__all__ = ["AsyncRelay", "Inputs", "RelayPlace"]

RelayPlace = str | FoundNode | tuple[str, int]
"""`"host"`, `"host:port"`, `"[::1]:8765"`, a pair of both, or a node that `discover` has found."""

Inputs = Sequence[int] | AsyncRemoteTensor
"""Token ids, or a tensor on the node: whole numbers are ids, reals are embeddings of shape (tokens, hidden size)."""

Told = Callable[[LoadProgress], None]
Answer = TypeVar("Answer")


class AsyncRelay:
    """One node. Use it in an `async with` block, or `aclose()` it: then the node frees all that it held for us.

    `token` is the shared one; without it that of the environment (POTLUCK_NODE_TOKEN, else VRM_API_TOKEN). `tls`: a
    context of `ssl`, or True for the system's trust. Belongs to the event loop that uses it first.
    """

    def __init__(
        self,
        node: RelayPlace,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | bool | None = None,
        server_name: str | None = None,
        settings: SessionSettings | None = None,
    ) -> None:
        place = place_of(node)
        context = ssl.create_default_context() if tls is True else tls or None
        access = Access(token or shared_token(os.environ), context, server_name)
        self.place = str(place)
        self._session = RelaySession(place, access, settings or SessionSettings(name="potluck"))
        self._handles = itertools.count(1)

    @classmethod
    async def connect(cls, node: RelayPlace, **options: Any) -> Self:
        """A client that has reached the node; `options` are those of the class. Raises NodeUnreachable, KeyRefused."""
        relay = cls(node, **options)
        try:
            await relay.open()
        except BaseException:
            await relay.aclose()
            raise
        return relay

    @staticmethod
    async def discover(
        seconds: float = 1.0,
        *,
        token: str | None = None,
        enough: int = MOST_FOUND,
        places: Sequence[tuple[str, int]] = (),
        this_machine: bool = False,
    ) -> tuple[FoundNode, ...]:
        """The nodes that answer a probe within the time, or as soon as there are `enough`.

        `places` (address, UDP port) are asked besides the networks of this machine; with `this_machine` those networks
        are not asked.
        """
        reach = Reach(network=not this_machine)
        token = token or shared_token(os.environ)
        return tuple(map(FoundNode.of, await probe(token, seconds=seconds, enough=enough, places=places, reach=reach)))

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def open(self) -> None:
        """Connect now, if there is no connection. Raises NodeUnreachable, KeyRefused."""
        with translated(self.place):
            await self._session.link()

    async def aclose(self) -> None:
        """Say goodbye: the node stops what runs for us and frees what it held for us."""
        await self._session.close()

    async def ping(self) -> float:
        """Seconds there and back."""
        with translated(self.place):
            return await (await self._session.link()).ping()

    def tell_signal(self, signal_dbm: int | None) -> None:
        """The strength of this machine's Wi-Fi signal, told at the next ping; a weak one makes compression pay."""
        self._session.signal_dbm = signal_dbm

    async def load_model(
        self, model: str, *, on_progress: Told | None = None, priority: int = 0, **options: Any
    ) -> LoadedModel:
        """Make a model ready and keep it so for this client. `options` are the node's, such as `context_tokens`."""
        loaded = await self._ask(Load(model, tuple(options.items()), priority), Loaded, on_progress)
        return LoadedModel.of(loaded)

    async def unload(self, model: str) -> int:
        """Give a model back; the bytes that came free by it."""
        return (await self._ask(Unload(model), Ack)).amount

    def generate(self, model: str, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncRelayStream:
        """The answer to a text, to the messages of a chat, or to token ids; a text is a user's message unless `raw`."""
        request = generate_request(model, prompt, options)
        return AsyncRelayStream(request, self._session.generate, self.place)

    async def embed(self, model: str, texts: str | Sequence[str], **options: Unpack[EmbedOptions]) -> Embeddings:
        with translated(self.place):
            request = embed_request(model, texts, options)
        vectors = await self._ask(request, Vectors)
        return Embeddings(
            TensorData(memoryview(vectors.data), "float32", (vectors.total, vectors.dimensions)), vectors.prompt_tokens
        )

    async def tensor(
        self,
        data: ArrayLike = None,
        *,
        dtype: str | None = None,
        shape: Sequence[int] | None = None,
        device: str = "",
    ) -> AsyncRemoteTensor:
        """A tensor in the node's memory with these elements; without data one of zeros, of `dtype` and `shape`.

        Raises NoRoom, with what is free.
        """
        source = None if data is None else tensor_of(data, dtype, shape)
        if source is None and (dtype is None or shape is None):
            raise Misuse("a tensor needs data, or a dtype and a shape")
        kind = dtype_named(source.dtype if source else str(dtype))
        wanted = tuple(source.shape if source else shape or ())
        made = await self._alloc(kind, wanted, device)
        if source is not None:
            await made.put(source)
        return made

    @overload
    async def run(
        self, model: str, inputs: Inputs, *, output: Literal["logits", "hidden"] = ..., last_only: bool = ...,
        keep: Literal[False] = ...,
    ) -> TensorData: ...  # fmt: skip
    @overload
    async def run(
        self, model: str, inputs: Inputs, *, output: Literal["logits", "hidden"] = ..., last_only: bool = ...,
        keep: Literal[True],
    ) -> AsyncRemoteTensor: ...  # fmt: skip
    async def run(
        self,
        model: str,
        inputs: Inputs,
        *,
        output: Literal["logits", "hidden"] = "logits",
        last_only: bool = False,
        keep: bool = False,
    ) -> TensorData | AsyncRemoteTensor:
        """A loaded model on these inputs: float32 of shape (tokens, vocabulary or hidden size).

        With `keep` the result stays on the node, as a tensor for the next `run` or `get`.
        """
        if output not in ("logits", "hidden"):
            raise Misuse(f"output is 'logits' or 'hidden', not {output!r}")
        fed = FromBuffer(inputs.handle) if isinstance(inputs, AsyncRemoteTensor) else InlineIds(tuple(inputs))
        handle = next(self._handles) if keep else 0
        with translated(self.place):
            request = Run(model, fed, Output[output.upper()], last_only, handle)
            result = await run(self._session, request)
        if isinstance(result, Allocated):
            return AsyncRemoteTensor(self._session, self.place, result)
        header, room = result
        return TensorData(memoryview(room), named(header.dtype), header.shape)

    async def push(self, model: str, source: str | Path, *, on_progress: Told | None = None) -> int:
        """The files of a model's folder (or one file) into the node's store, under this name; their bytes in all.

        What the node has of it already is not sent; a push that was cut goes on where it stopped.
        """
        with translated(self.place):
            offer = await offer_of(model, Path(source), on_progress)
            await push(self._session, offer, on_progress)
        return offer.total_bytes

    async def stats(self) -> NodeStats:
        return NodeStats.of(await self._ask(Stats(), Stats))

    async def free(self, *tensors: AsyncRemoteTensor) -> int:
        """Give tensors back, all in one request; the bytes that came free."""
        return (await self._ask(Free(tuple(tensor.handle for tensor in tensors)), Ack)).amount if tensors else 0

    async def _alloc(self, kind: DType, shape: tuple[int, ...], device: str) -> AsyncRemoteTensor:
        with translated(self.place):
            request = Alloc(next(self._handles), kind, shape, device)
        return AsyncRemoteTensor(self._session, self.place, await self._ask(request, Allocated))

    async def _ask(self, message: Message, kind: type[Answer], on_progress: Told | None = None) -> Answer:
        def told(progress: Progress) -> None:
            if on_progress is not None:
                on_progress(LoadProgress.of(progress))

        with translated(self.place):
            answer = await self._session.ask(message, told)
        if not isinstance(answer, kind):
            raise UnexpectedAnswer(f"{type(answer).__name__} where {kind.__name__} was due")
        return answer


def place_of(node: RelayPlace) -> Place:
    """Raises Misuse for what is no address."""
    if isinstance(node, FoundNode):
        return Place(*node.addresses[0])
    host, port = node if isinstance(node, tuple) else _split(node)
    try:
        number = int(port)
    except ValueError:
        number = -1
    if not host or not 0 < number <= 0xFFFF:
        raise Misuse(f"{node!r} is no address of a node: give a host, or host:port")
    return Place(host, number)


def _split(text: str) -> tuple[str, int | str]:
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        return host, port.removeprefix(":") or RELAY_PORT
    if text.count(":") > 1:  # an IPv6 address without brackets
        return text, RELAY_PORT
    host, _, port = text.partition(":")
    return host, port or RELAY_PORT
