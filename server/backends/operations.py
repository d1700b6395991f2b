"""What our own GPU nodes do besides answering: tell their devices and models, load and unload. JSON in, JSON out.

Told by the probe (`ProbeReport.gpu_node`), so that no other server is ever asked for these paths. As in the backends,
whatever a node says, only `NodeError`s are raised, and nothing is repeated. Knows nothing of placement.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any, Protocol

import orjson

from server.backends.base import Patience, encoded
from server.backends.faults import MAX_ERROR_BYTES, error_of_status
from server.backends.node_http import NodeHttp, Request
from server.backends.node_keys import key_of
from server.errors import NodeBroken
from server.nesting import is_too_deep, might_be_too_deep
from server.nodes import NodeSpec

MAX_ANSWER_BYTES = 4 * 1024 * 1024  # a list of all models that a node knows
MAX_LINE_BYTES = 64 * 1024  # one step of a loading, or what has been loaded

Record = dict[str, Any]


class Operations(Protocol):
    async def ask(self, spec: NodeSpec, path: str, timeout_seconds: float) -> Record:
        """The object that a GET gives."""
        ...

    async def order(self, spec: NodeSpec, path: str, body: Mapping[str, Any], timeout_seconds: float) -> Record:
        """The object that a POST gives."""
        ...

    def lines(
        self, spec: NodeSpec, path: str, body: Mapping[str, Any], patience: Patience
    ) -> AsyncGenerator[Record, None]:
        """The objects that a POST gives one by one. Closing the iterator closes the connection."""
        ...


class NodeOperations:
    def __init__(self, http: NodeHttp, secrets: Mapping[str, str]) -> None:
        self._http = http
        self._secrets = secrets

    async def ask(self, spec: NodeSpec, path: str, timeout_seconds: float) -> Record:
        return await self._fetch(Request(spec, "GET", path, key=key_of(spec, self._secrets)), timeout_seconds)

    async def order(self, spec: NodeSpec, path: str, body: Mapping[str, Any], timeout_seconds: float) -> Record:
        return await self._fetch(self._post(spec, path, body), timeout_seconds)

    async def lines(
        self, spec: NodeSpec, path: str, body: Mapping[str, Any], patience: Patience
    ) -> AsyncGenerator[Record, None]:
        end = asyncio.get_running_loop().time() + patience.total
        connection = await self._http.open(self._post(spec, path, body), patience, end)
        lines = Lines(spec.address)
        try:
            if connection.status != 200:
                said = await connection.read_all(MAX_ERROR_BYTES)
                raise error_of_status(spec.address, connection.status, connection.headers, said)
            while True:
                connection.expect("load", patience.between_tokens, end)
                data = await connection.read()
                for record in lines.feed(data) if data else lines.finish():
                    yield record
                if not data:
                    return
        finally:
            self._http.close(connection)

    def _post(self, spec: NodeSpec, path: str, body: Mapping[str, Any]) -> Request:
        return Request(spec, "POST", path, encoded(body), key_of(spec, self._secrets))

    async def _fetch(self, request: Request, timeout_seconds: float) -> Record:
        spec = request.spec
        answer = await self._http.fetch_soon(request, timeout_seconds, MAX_ANSWER_BYTES, "total")
        if answer.status != 200:
            raise error_of_status(spec.address, answer.status, answer.headers, answer.body)
        return _object(spec.address, answer.body)


class OperationsByKind:
    """The operations of a node, however it is reached."""

    def __init__(self, http: Operations, relay: Callable[[], Operations]) -> None:
        """`relay` gives the operations over the protocol, made when the first such node is there."""
        self._http, self._relay = http, relay

    async def ask(self, spec: NodeSpec, path: str, timeout_seconds: float) -> Record:
        return await self._of(spec).ask(spec, path, timeout_seconds)

    async def order(self, spec: NodeSpec, path: str, body: Mapping[str, Any], timeout_seconds: float) -> Record:
        return await self._of(spec).order(spec, path, body, timeout_seconds)

    def lines(
        self, spec: NodeSpec, path: str, body: Mapping[str, Any], patience: Patience
    ) -> AsyncGenerator[Record, None]:
        return self._of(spec).lines(spec, path, body, patience)

    def _of(self, spec: NodeSpec) -> Operations:
        return self._relay() if spec.kind == "relay" else self._http


class Lines:
    """One object a line, sans-IO: bytes in, objects out, however the network cuts them."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._half = b""

    def feed(self, data: bytes) -> Iterator[Record]:
        """Raises NodeBroken for a line that is no object, or endless."""
        *lines, self._half = (self._half + data).split(b"\n")
        if len(self._half) > MAX_LINE_BYTES:
            raise NodeBroken(f"{self._address} sent a line of more than {MAX_LINE_BYTES} bytes")
        return (_object(self._address, line) for line in lines if line.strip())

    def finish(self) -> Iterator[Record]:
        """The body has ended well: a last line may have come without its line break."""
        return self.feed(b"\n")


def _object(address: str, body: bytes) -> Record:
    try:
        record = orjson.loads(body)
    except orjson.JSONDecodeError as problem:
        raise NodeBroken(f"{address} answered with something that is no JSON: {problem}") from problem
    if not isinstance(record, dict):
        raise NodeBroken(f"{address} answered with something that is no object")
    if might_be_too_deep(body) and is_too_deep(record):  # it is passed on, and could not be written
        raise NodeBroken(f"{address} answered with something nested too deeply")
    return record
