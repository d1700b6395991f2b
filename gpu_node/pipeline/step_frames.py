"""A step on the ring of stages, and its answer: which frames they are, for both sides of every link of the ring.

    head -> first stage             [step]
    stage -> next stage             [step][hidden states, in pieces]      or  [step][failure]
    last stage -> head              [output, in pieces]  or  [one zero byte: no output]  or  [failure]

A step is `step_message`'s bytes, hidden states and outputs are single precision in rows, a failure is one JSON object.
Invariants: what belongs to one step is one write and names the step's number; every step gets exactly one answer, in
order, so that the ring goes on after a failure; whatever is neither ends the link, before it is computed with; rows
come into the caller's room without a copy. Must not know torch, layers or the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gpu_node.pipeline.ends import LinkSettings
from gpu_node.pipeline.errors import LinkFault
from gpu_node.pipeline.links import Frame, Link
from gpu_node.pipeline.order_codec import TEXT_MOST, OrderCodec
from gpu_node.pipeline.step_message import StepBounds, StepMessage, unpack_step
from wire.errors import BadPayload
from wire.frames import Buffer
from wire.tensors import DType, TensorFlags, TensorHeader, flat_view

# Of every link of the ring. Who is frozen is judged by the head, over the control links, and within half a second; here
# a process that loads, or one that a person has stopped for a moment, breaks nothing.
RING_SETTINGS = LinkSettings(silence_seconds=10.0)
NUMBER_BYTES = 4
FAILURE_BYTES = 1 << 14
NO_OUTPUT = b"\0"
FailureKind = Literal["out_of_memory", "blocks_lost", "error"]


@dataclass(frozen=True, slots=True)
class StepFailure:
    """Why a stage could not compute a step; the stage lives on."""

    stage: int
    device: str
    kind: FailureKind
    message: str

    @classmethod
    def of(cls, stage: int, device: str, kind: FailureKind, error: BaseException) -> StepFailure:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        # Half of the letters may be written with six of them.
        return cls(stage, device, kind, text[: TEXT_MOST // 8].replace("\0", " "))

    def pack(self) -> bytes:
        return _FAILURES.pack(self)


_FAILURES = OrderCodec((StepFailure,))


class Room:
    """Memory that is received into, again and again; it grows, and never more than it is asked for."""

    def __init__(self, allocate: Callable[[int], Buffer] = bytearray) -> None:
        """`allocate`: pinned memory, where rows go on to a GPU."""
        self._allocate = allocate
        self._view = memoryview(b"")

    @property
    def bytes(self) -> int:
        return self._view.nbytes

    def of(self, size: int) -> memoryview:
        """At least so many bytes, and room for a failure; what was here before is overwritten, or lies elsewhere."""
        if self._view.nbytes < max(size, FAILURE_BYTES):
            self._view = flat_view(self._allocate(max(size, FAILURE_BYTES)))
        return self._view


@dataclass(frozen=True, slots=True)
class Rows:
    """Numbers in single precision, [rows, width], as they lie in memory."""

    rows: int
    width: int
    data: Buffer

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.width


@dataclass(frozen=True, slots=True)
class Work:
    """A step that came. `data` is valid until the second one after it, `hidden` until the room is used again."""

    message: StepMessage
    data: memoryview
    hidden: Rows | None = None  # None: this is the first stage, or
    failure: bytes | None = None  # a stage before has failed, as this says


def send_step(link: Link, data: Buffer, number: int) -> None:
    """From the head to the first stage. `data`: `pack_step`'s. Raises `LinkError`."""
    link.send_frames(_bytes_frame(data, number))


def send_hidden(link: Link, data: Buffer, number: int, hidden: Rows) -> None:
    """To the next stage, with the step as it came: without given embeddings, which only the first stage needs."""
    link.send_frames(_bytes_frame(data, number), *_pieces(link, hidden, number))


def send_failure(link: Link, data: Buffer | None, number: int, failure: bytes) -> None:
    """`data`: the step, to the next stage; None: this is the last stage, which answers the head."""
    step = () if data is None else (_bytes_frame(data, number),)
    link.send_frames(*step, _bytes_frame(failure, number))


def send_output(link: Link, number: int, output: Rows | None) -> None:
    """From the last stage to the head; None, or no rows: there is nothing but that it is done."""
    if output is None or not output.rows:
        link.send_frames(_bytes_frame(NO_OUTPUT, number))
    else:
        link.send_frames(*_pieces(link, output, number))


def receive_step(link: Link, bounds: StepBounds, room: Room | None) -> Work:
    """What the head, or the stage before, sends. `room`: for hidden states; None: this is the first stage.

    Blocks while the other side lives. Raises `LinkError`; what is no step of this part ends the link."""
    frame = link.receive()
    try:
        message = unpack_step(_expected_bytes(frame), bounds)
        _must(frame.header.batch == message.number, "the number of a step is not its own")
        if room is None:
            return Work(message, frame.data)
        shape = (sum(len(row.tokens) for row in message.rows), bounds.hidden_size)
        found = _received(link, shape, message.number, room)
    except BadPayload as error:
        raise link.fail(LinkFault(f"no step: {error}")) from error
    if isinstance(found, bytes):
        _failure_in(link, found)
        return Work(message, frame.data, failure=found)
    return Work(message, frame.data, hidden=found)


def receive_answer(link: Link, number: int, shape: tuple[int, int], room: Room) -> Rows | StepFailure | None:
    """What the last stage answers to this step; `shape`: rows and width that are due, no rows: None comes.

    Blocks while the other side lives; the rows are valid until the room is used again. Raises `LinkError`."""
    try:
        found = _received(link, shape, number, room)
    except BadPayload as error:
        raise link.fail(LinkFault(f"no answer: {error}")) from error
    return _failure_in(link, found) if isinstance(found, bytes) else found


def _failure_in(link: Link, data: bytes) -> StepFailure:
    try:
        failure: StepFailure = _FAILURES.unpack(data)
        return failure
    except BadPayload as error:
        raise link.fail(LinkFault(f"no answer: {error}")) from error


def _received(link: Link, shape: tuple[int, int], number: int, room: Room) -> Rows | bytes | None:
    """Rows, the bytes of a failure, or None where there are no rows."""
    size = NUMBER_BYTES * shape[0] * shape[1]
    space, done = room.of(size), 0
    while True:
        header, data = link.receive(into=space[done:])
        _must(header.batch == number, f"an answer to step {header.batch} came where that to {number} was due")
        if not done and header.dtype is DType.UINT8:
            _must(header.shape == (header.size,) and header.size <= FAILURE_BYTES, "these are no bytes of an answer")
            if bytes(data[:1]) != NO_OUTPUT:
                return bytes(data)
            _must(not size and header.size == 1, f"{shape[0]} rows of an answer are missing")
            return None
        _must(size > 0 and header.dtype is DType.FLOAT32 and header.shape == shape, f"no rows of the shape {shape}")
        _must(header.offset == done, "pieces come in their order")
        done += header.size
        _must(header.last == (done == size), "the last piece of rows is the one that makes them whole")
        if done == size:
            return Rows(*shape, space[:size])


def _expected_bytes(frame: Frame) -> memoryview:
    header = frame.header
    _must(
        header.dtype is DType.UINT8 and header.shape == (header.size,) and header.last, "a step is one frame of bytes"
    )
    return frame.data


def _bytes_frame(data: Buffer, number: int) -> tuple[TensorHeader, Sequence[Buffer]]:
    size = flat_view(data).nbytes
    return TensorHeader(DType.UINT8, (size,), size, batch=number, flags=TensorFlags.LAST), (data,)


def _pieces(link: Link, rows: Rows, number: int) -> list[tuple[TensorHeader, Sequence[Buffer]]]:
    data = flat_view(rows.data)
    most = link.most_bytes // NUMBER_BYTES * NUMBER_BYTES
    frames: list[tuple[TensorHeader, Sequence[Buffer]]] = []
    for start in range(0, data.nbytes, most):
        piece = data[start : start + most]
        flags = TensorFlags.LAST if start + piece.nbytes == data.nbytes else TensorFlags.NONE
        header = TensorHeader(DType.FLOAT32, rows.shape, piece.nbytes, start, batch=number, flags=flags)
        frames.append((header, (piece,)))
    return frames


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BadPayload(otherwise)
