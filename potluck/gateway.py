"""The Python clients of a gateway: `Gateway` and, for asyncio, `AsyncGateway`.

Both carry out the calls of `calls.py`; what is written twice here is I/O and nothing else. Every error is a
`PotluckError`. Knows nothing of terminals and reads no environment.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import httpx

from .answers import Answer, BatchItem
from .asking import AskOptions, Message
from .calls import (
    DEFAULT_URL,
    Call,
    ask_call,
    batch_call,
    batch_stream_call,
    client_settings,
    health_call,
    load_call,
    models_call,
    nodes_call,
    stream_call,
    unload_call,
)
from .fleet import Health, NodeHealth
from .flows import AsyncFlow, Flow
from .leftovers import AsyncLeftovers, Leftovers
from .records import AnswerReading, BatchReading, Reading
from .seam import translated
from .streams import AsyncBatchStream, AsyncStream, BatchStream, Stream
from .timeouts import Timeouts

Result = TypeVar("Result")
Event = TypeVar("Event")
BatchRequest = str | Mapping[str, Any]

__all__ = ["DEFAULT_URL", "AsyncGateway", "Gateway"]


class Gateway:
    """One gateway. Keeps connections open between calls: use it in a `with` block or `close()` it.

    Safe to use from several threads. `transport` replaces the network, for tests and for special TLS settings.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeouts: Timeouts | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = base_url.rstrip("/")
        self._timeouts = timeouts or Timeouts()
        self._leftovers = Leftovers()
        self._client = httpx.Client(transport=transport, **client_settings(self.url, api_key))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections, also those of streams that are still read."""
        self._leftovers.close()
        self._client.close()

    def ask(
        self, prompt: str | None = None, *, messages: Sequence[Message] | None = None, **options: Unpack[AskOptions]
    ) -> Answer:
        """The whole answer to a prompt, or to a chat given as `messages`."""
        return self._call(ask_call(prompt, messages, options, self._timeouts))

    def stream(
        self, prompt: str | None = None, *, messages: Sequence[Message] | None = None, **options: Unpack[AskOptions]
    ) -> Stream:
        """The tokens of an answer as they come. Nothing is sent before the first one is asked for."""
        call = stream_call(prompt, messages, options, self._timeouts)
        reading = AnswerReading()
        return Stream(self._flow(call, reading), reading)

    @overload
    def batch(
        self, requests: Sequence[BatchRequest], *, stream: Literal[False] = False, **options: Unpack[AskOptions]
    ) -> list[BatchItem]: ...
    @overload
    def batch(
        self, requests: Sequence[BatchRequest], *, stream: Literal[True], **options: Unpack[AskOptions]
    ) -> BatchStream: ...
    def batch(
        self, requests: Sequence[BatchRequest], *, stream: bool = False, **options: Unpack[AskOptions]
    ) -> list[BatchItem] | BatchStream:
        """Many requests, spread over the fleet: texts, or mappings with their own options.

        The results come in the order of the requests; with `stream=True` as they finish, each with its `index`.
        """
        if not stream:
            return self._call(batch_call(requests, options, self._timeouts)) if requests else []
        call = batch_stream_call(requests, options, self._timeouts)
        return BatchStream(self._flow(call, BatchReading(len(requests))))

    def health(self) -> Health:
        """The gateway's state and that of every node; also when no node can answer."""
        return self._call(health_call(self._timeouts))

    def nodes(self) -> tuple[NodeHealth, ...]:
        return self._call(nodes_call(self._timeouts))

    def models(self) -> list[str]:
        """The names of all models in the fleet."""
        return self._call(models_call(self._timeouts))

    def load(self, model: str, *, node: str | None = None, **options: Any) -> Mapping[str, Any]:
        """Bring a model into memory, on the node of this name or id, else on the fittest; what the node told of it."""
        return self._call(load_call(model, node, options, self._timeouts))

    def unload(self, model: str, *, node: str | None = None) -> Mapping[str, Any]:
        """Let a model go, on one node or on all that have it."""
        return self._call(unload_call(model, node, self._timeouts))

    def _call(self, call: Call[Result]) -> Result:
        self._leftovers.close()
        with translated(self.url):
            return call.read(self._client.request(call.method, call.path, json=call.body, timeout=call.timeout))

    def _flow(self, call: Call[Any], reading: Reading[Event]) -> Flow[Event]:
        return Flow(lambda: self._open(call), reading, self.url, self._leftovers)

    def _open(self, call: Call[Any]) -> httpx.Response:
        self._leftovers.close()
        request = self._client.build_request(call.method, call.path, json=call.body, timeout=call.timeout)
        return self._client.send(request, stream=True)


class AsyncGateway:
    """The same for asyncio: use it in an `async with` block or `aclose()` it."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeouts: Timeouts | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = base_url.rstrip("/")
        self._timeouts = timeouts or Timeouts()
        self._leftovers = AsyncLeftovers()
        self._client = httpx.AsyncClient(transport=transport, **client_settings(self.url, api_key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections, also those of streams that are still read."""
        await self._leftovers.close()
        await self._client.aclose()

    async def ask(
        self, prompt: str | None = None, *, messages: Sequence[Message] | None = None, **options: Unpack[AskOptions]
    ) -> Answer:
        """The whole answer to a prompt, or to a chat given as `messages`."""
        return await self._call(ask_call(prompt, messages, options, self._timeouts))

    def stream(
        self, prompt: str | None = None, *, messages: Sequence[Message] | None = None, **options: Unpack[AskOptions]
    ) -> AsyncStream:
        """The tokens of an answer as they come. Nothing is sent before the first one is asked for."""
        call = stream_call(prompt, messages, options, self._timeouts)
        reading = AnswerReading()
        return AsyncStream(self._flow(call, reading), reading)

    @overload
    def batch(
        self, requests: Sequence[BatchRequest], *, stream: Literal[False] = False, **options: Unpack[AskOptions]
    ) -> Awaitable[list[BatchItem]]: ...
    @overload
    def batch(
        self, requests: Sequence[BatchRequest], *, stream: Literal[True], **options: Unpack[AskOptions]
    ) -> AsyncBatchStream: ...
    def batch(
        self, requests: Sequence[BatchRequest], *, stream: bool = False, **options: Unpack[AskOptions]
    ) -> Awaitable[list[BatchItem]] | AsyncBatchStream:
        """`await` it for the results in order; with `stream=True` iterate it as they finish."""
        if not stream:
            return self._batch(requests, options)
        call = batch_stream_call(requests, options, self._timeouts)
        return AsyncBatchStream(self._flow(call, BatchReading(len(requests))))

    async def health(self) -> Health:
        """The gateway's state and that of every node; also when no node can answer."""
        return await self._call(health_call(self._timeouts))

    async def nodes(self) -> tuple[NodeHealth, ...]:
        return await self._call(nodes_call(self._timeouts))

    async def models(self) -> list[str]:
        """The names of all models in the fleet."""
        return await self._call(models_call(self._timeouts))

    async def load(self, model: str, *, node: str | None = None, **options: Any) -> Mapping[str, Any]:
        """Bring a model into memory, on the node of this name or id, else on the fittest; what the node told of it."""
        return await self._call(load_call(model, node, options, self._timeouts))

    async def unload(self, model: str, *, node: str | None = None) -> Mapping[str, Any]:
        """Let a model go, on one node or on all that have it."""
        return await self._call(unload_call(model, node, self._timeouts))

    async def _batch(self, requests: Sequence[BatchRequest], options: Mapping[str, Any]) -> list[BatchItem]:
        return await self._call(batch_call(requests, options, self._timeouts)) if requests else []

    async def _call(self, call: Call[Result]) -> Result:
        with translated(self.url):
            return call.read(await self._client.request(call.method, call.path, json=call.body, timeout=call.timeout))

    def _flow(self, call: Call[Any], reading: Reading[Event]) -> AsyncFlow[Event]:
        return AsyncFlow(lambda: self._open(call), reading, self.url, self._leftovers)

    async def _open(self, call: Call[Any]) -> httpx.Response:
        request = self._client.build_request(call.method, call.path, json=call.body, timeout=call.timeout)
        return await self._client.send(request, stream=True)
