"""What the programmable relay node answers: one `Answerer` a stream, the state of a session, the test's script."""

from __future__ import annotations

import array
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

from wire.connection import FrameReceived
from wire.frames import FrameType
from wire.limits import LARGEST_PAYLOAD
from wire.messages import Message, decode_chunk, decode_message, encode_message, frame_type
from wire.messages_memory import Alloc, Allocated, Free, FromBuffer, InlineIds, Read, Run
from wire.messages_session import Ack, Error, ErrorCode
from wire.messages_stats import Stats
from wire.messages_work import (
    Done,
    Embed,
    FinishReason,
    Generate,
    Load,
    Loaded,
    Phase,
    Progress,
    Push,
    TokenLogprob,
    Tokens,
    Unload,
    Vectors,
)
from wire.tensors import DType, TensorFlags, TensorHeader, pack_tensor_header, tensor_bytes, unpack_tensor_header

if TYPE_CHECKING:
    from tests.fakes.relay_node import RelayPeer

VOCABULARY = 16


@dataclass(frozen=True)
class Piece:
    """One TOKENS of an answer."""

    text: str
    ids: tuple[int, ...]
    sample: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Refusal:
    kind: FrameType
    error: Error


def usual_answer(request: Generate) -> Sequence[Piece]:
    return [Piece("Par", (5,)), Piece("is", (6, 7)), Piece(" is", (8,)), Piece(" nice", (9, 10)), Piece("!", (11,))]


@dataclass
class RelayScript:
    """What to answer; a test changes it while the node runs."""

    models: tuple[str, ...] = ("tiny",)
    answer: Callable[[Generate], Sequence[Piece]] = usual_answer
    progress: tuple[Progress, ...] = (Progress(Phase.READING, 5, 10), Progress(Phase.PLACING, 10, 10))
    progress_of_generate: tuple[Progress, ...] = ()
    reason: FinishReason = FinishReason.STOP
    refusals: list[Refusal] = field(default_factory=list)  # each is used up by the next request of its kind
    gate: asyncio.Semaphore | None = None  # each TOKENS takes one permit
    stats: tuple[tuple[str, Any], ...] = (("version", "0.1.0"), ("slots", 4))
    report: Stats | None = None  # the whole answer to STATS, where `stats` is not enough
    frame_bytes: int = 256 << 10  # of DATA
    lie: str = ""  # "gap", "repeat" or "short": how the next answers are wrong


@dataclass
class RelaySessionState:
    key: bytes
    jobs: dict[bytes, list[Piece]] = field(default_factory=dict)
    buffers: dict[int, tuple[Alloc, bytearray]] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    pushed: dict[str, dict[str, bytearray]] = field(default_factory=dict)


class Fail(Exception):
    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.error = Error(code, text)


class Answerer:
    """One request from its frame to the last of its answers."""

    def __init__(self, peer: RelayPeer, script: RelayScript, session: RelaySessionState, event: FrameReceived) -> None:
        self.peer, self.script, self.session = peer, script, session
        self.request, self.number = event.type, event.stream_id
        self.message: Message | None = None
        self.header: TensorHeader | None = None
        self.data: asyncio.Queue[FrameReceived] = asyncio.Queue()
        if event.type is FrameType.WRITE:
            self.header = unpack_tensor_header(event.payload, crc32)
        else:
            self.message = decode_message(event.type, event.payload)
        peer.release(event)
        self.task = asyncio.get_running_loop().create_task(self._run(), name=f"fake relay {event.type.name}")

    async def _run(self) -> None:
        for refusal in self.script.refusals:
            if refusal.kind is self.request:
                self.script.refusals.remove(refusal)
                return self.peer.fail(self.number, refusal.error)
        try:
            await self._answer()
        except Fail as failure:
            self.peer.fail(self.number, failure.error)

    async def _answer(self) -> None:
        match self.message:
            case Load():
                await self._load(self.message)
            case Unload():
                self.session.loaded = [name for name in self.session.loaded if name != self.message.model]
                await self._send(Ack(1000), ends=True)
            case Generate():
                await self._generate(self.message)
            case Embed():
                await self._embed(self.message)
            case Alloc():
                self._alloc(self.message)
                await self._send(self._allocated(self.message), ends=True)
            case Free():
                given = [self.session.buffers.pop(handle, None) for handle in self.message.handles]
                await self._send(Ack(sum(len(each[1]) for each in given if each)), ends=True)
            case Read():
                await self._read(self.message)
            case Run():
                await self._run_model(self.message)
            case Push():
                await self._push(self.message)
            case Stats():
                await self._send(self.script.report or Stats(self.script.stats), ends=True)
            case None:
                await self._write()

    async def _send(self, message: Message, ends: bool = False) -> None:
        await self.peer.send(self.number, frame_type(message), *encode_message(message), ends=ends)

    def _known(self, model: str) -> None:
        if model not in self.script.models and model not in self.session.pushed:
            raise Fail(ErrorCode.MODEL_NOT_FOUND, f"no model {model!r} here")

    async def _load(self, message: Load) -> None:
        self._known(message.model)
        for progress in self.script.progress:
            await self._send(progress)
        self.session.loaded.append(message.model)
        facts = (("vocabulary", VOCABULARY), ("hidden_size", 4), ("layers", 2), ("dtype", "float32"))
        await self._send(Loaded(message.model, 256, 1 << 20, 1, facts), ends=True)

    async def _generate(self, message: Generate) -> None:
        self._known(message.model)
        if message.job in self.session.jobs:
            pieces = self.session.jobs[message.job]
        elif message.next_index:
            raise Fail(ErrorCode.SESSION_GONE, "there is no such job")
        else:
            pieces = self._rest(message)
            if message.job:
                self.session.jobs[message.job] = pieces
        for progress in self.script.progress_of_generate:
            await self._send(progress)
        positions = {sample: len(given.ids) for sample, given in enumerate(message.given)}
        for index, piece in enumerate(pieces):
            position = positions.get(piece.sample, 0)
            positions[piece.sample] = position + len(piece.ids)
            if index < message.next_index:
                continue
            if self.script.gate is not None:
                await self.script.gate.acquire()
            number = index + {"gap": 1, "repeat": -1}.get(self.script.lie, 0) if index == 2 else index
            await self._send(Tokens(number, position, piece.text, piece.ids, piece.sample, piece.logprobs))
        if self.script.lie == "short":
            pieces = [*pieces, Piece("", ())]
        written = sum(len(piece.ids) for piece in pieces)
        await self._send(Done(len(pieces), self.script.reason, 3, written, 1000, 2000), ends=True)

    def _rest(self, message: Generate) -> list[Piece]:
        """The answer without what was given: ids that are known are skipped, a text only as far as it was told."""
        rest = []
        ids = [len(given.ids) for given in message.given] or [0] * message.samples
        told = [given.text_bytes for given in message.given] or [0] * message.samples
        for piece in self.script.answer(message):
            known, bytes_known = min(ids[piece.sample], len(piece.ids)), piece.text.encode()[: told[piece.sample]]
            ids[piece.sample] -= known
            told[piece.sample] -= len(bytes_known)
            new = replace(piece, ids=piece.ids[known:], text=piece.text.encode()[len(bytes_known) :].decode())
            if new.ids or new.text:
                rest.append(new)
        return rest

    async def _embed(self, message: Embed) -> None:
        self._known(message.model)
        half = (len(message.texts) + 1) // 2
        for first, texts in ((0, message.texts[:half]), (half, message.texts[half:])):
            if texts:
                numbers = array.array("f", [value for text in texts for value in (len(text), 1.0, 2.0)])
                last = first + len(texts) == len(message.texts)
                await self._send(Vectors(first, len(message.texts), 3, numbers.tobytes(), 9), ends=last)

    def _alloc(self, message: Alloc) -> bytearray:
        known = self.session.buffers.get(message.handle)
        if known is None:
            known = self.session.buffers[message.handle] = (message, bytearray(message.size))
        elif (known[0].dtype, known[0].shape) != (message.dtype, message.shape):
            raise Fail(ErrorCode.BAD_REQUEST, "that buffer is another")
        return known[1]

    def _allocated(self, message: Alloc) -> Allocated:
        return Allocated(message.handle, message.dtype, message.shape, message.device or "cpu", 1 << 30)

    def _buffer(self, handle: int) -> tuple[Alloc, bytearray]:
        try:
            return self.session.buffers[handle]
        except KeyError:
            raise Fail(ErrorCode.UNKNOWN_HANDLE, f"no buffer {handle}") from None

    async def _write(self) -> None:
        header = self.header
        assert header is not None
        _, room = self._buffer(header.batch)
        place, ends = header.offset, header.size == 0
        while not ends:
            event = await self.data.get()
            room[place : place + len(event.payload)] = event.payload
            place, ends = place + len(event.payload), event.ends
            self.peer.release(event)
        if place != header.offset + header.size:
            raise Fail(ErrorCode.BAD_REQUEST, "the piece has another size")
        await self._send(Ack(place - header.offset), ends=True)

    async def _read(self, message: Read) -> None:
        alloc, room = self._buffer(message.handle)
        size = message.size or len(room) - message.offset
        await self._send_tensor(alloc, room, message.offset, size, message.checksum)

    async def _send_tensor(self, alloc: Alloc, room: bytearray, offset: int, size: int, checked: bool) -> None:
        view = memoryview(room)[offset : offset + size]
        flags = TensorFlags.LAST | (TensorFlags.CHECKED if checked else TensorFlags.NONE)
        header = TensorHeader(
            alloc.dtype, alloc.shape, size, offset, batch=alloc.handle, flags=flags,
            checksum=crc32(view) if checked else 0,
        )  # fmt: skip
        await self.peer.send(self.number, FrameType.DATA, pack_tensor_header(header, crc32), ends=not size)
        step = min(self.script.frame_bytes, LARGEST_PAYLOAD)
        for start in range(0, size, step):
            part = bytes(view[start : start + step])
            await self.peer.send(self.number, FrameType.DATA, part, ends=start + step >= size)

    async def _run_model(self, message: Run) -> None:
        """The logits of token t say that the next one is t + 1; hidden states are the id four times."""
        self._known(message.model)
        match message.inputs:
            case InlineIds(ids):
                read = list(ids)
            case FromBuffer(handle):
                alloc, room = self._buffer(handle)
                whole = alloc.dtype in (DType.INT64, DType.INT32)
                code = {DType.INT64: "q", DType.INT32: "i", DType.FLOAT32: "f"}[alloc.dtype]
                values = array.array(code, bytes(room)).tolist()
                width = 1 if whole else alloc.shape[-1]
                read = [int(value) for value in values[::width]]
        read = read[-1:] if message.last_only else read
        width = VOCABULARY if message.output == 1 else 4
        rows = [[float((token + 1) % VOCABULARY == column) for column in range(VOCABULARY)] for token in read]
        if message.output != 1:
            rows = [[float(token)] * 4 for token in read]
        data = bytearray(array.array("f", [value for row in rows for value in row]).tobytes())
        result = Alloc(message.keep_as or 1, DType.FLOAT32, (len(read), width))
        assert tensor_bytes(result.dtype, result.shape) == len(data)
        if message.keep_as:
            self._alloc(result)[:] = data
            return await self._send(self._allocated(result), ends=True)
        await self._send_tensor(result, data, 0, len(data), False)

    async def _push(self, message: Push) -> None:
        files = self.session.pushed.setdefault(message.model, {})
        rooms = [files.setdefault(file.name, bytearray()) for file in message.files]
        await self._send(Ack(0, tuple(len(room) for room in rooms)))
        while True:
            event = await self.data.get()
            if len(event.payload):
                chunk = decode_chunk(event.payload)
                assert chunk.offset == len(rooms[chunk.file])
                rooms[chunk.file] += chunk.data
            ends, empty = event.ends, not len(event.payload)
            self.peer.release(event)
            if ends:
                return await self._send(Ack(sum(map(len, rooms))), ends=True)
            if not empty:
                await self._send(Ack(len(rooms[chunk.file])))
