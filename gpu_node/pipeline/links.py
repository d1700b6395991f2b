"""The byte stream between two stages: tensors behind their 64-byte headers, heartbeats in between, over one socket.

Blocking sockets and threads: one gather write out, receiving into buffers that were there before, nothing copied.
Invariants: every frame carries the plan's epoch and its place in the sequence; a frame of an older epoch is dropped,
one of a newer epoch ends the link; whatever goes wrong ends the link, and every later call raises the same error. Who
receives notices a silent peer by itself; who only sends has `heart.Heart` listen for it. Must not know torch or plans.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from gpu_node.pipeline.counters import Counts, LinkCounters
from gpu_node.pipeline.ends import EPOCH_MOST, USUAL, LinkEnds, LinkSettings
from gpu_node.pipeline.errors import LinkClosed, LinkError, LinkFault, LinkSilent
from gpu_node.pipeline.headers import HeaderReader, HeaderWriter
from gpu_node.pipeline.sockets import prepare, send_some, shut_down, waiting_bytes
from transport.codec import crc32
from wire.errors import OutOfBounds, RemoteError
from wire.frames import Buffer
from wire.tensors import (
    TENSOR_HEADER_SIZE,
    DType,
    TensorFlags,
    TensorHeader,
    check_piece,
    flat_view,
    pack_tensor_header,
)

SEQUENCE_MASK = 0xFFFF_FFFF
_CHECKED = int(TensorFlags.CHECKED)  # operators of a Flag take longer than everything around them


class Frame(NamedTuple):
    """`data` is a view of the link's own buffer, or of the caller's: valid until the second `receive` after it."""

    header: TensorHeader
    data: memoryview


class Link:
    """One thread may send while another one receives. `rooms` are the two buffers (pinned ones, where that helps)."""

    def __init__(
        self,
        line: socket.socket,
        ends: LinkEnds,
        settings: LinkSettings = USUAL,
        *,
        rooms: Sequence[Buffer] = (),
        peer_frame_bytes: int | None = None,
    ) -> None:
        """Takes the socket over. Raises `OutOfBounds` for rooms that cannot be used."""
        self.ends, self.settings = ends, settings
        self._line, self._epoch = line, ends.epoch
        self._rooms = _checked_rooms(rooms or (bytearray(settings.frame_bytes), bytearray(settings.frame_bytes)))
        self._most_sent = settings.frame_bytes if peer_frame_bytes is None else peer_frame_bytes
        self._head = memoryview(bytearray(TENSOR_HEADER_SIZE))
        self._sending, self._receiving, self._ending = threading.Lock(), threading.Lock(), threading.Lock()
        self._end: LinkError | None = None
        self._next_room = self._next_sent = self._next_received = 0
        self._answer_due = False
        self._read_bytes = self._listened_bytes = 0
        self._counts = Counts()
        self._writer, self._reader = HeaderWriter(), HeaderReader()
        self._beat = _beat_of(self._epoch)
        prepare(line, settings.silence_seconds)

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def most_bytes(self) -> int:
        """Of a frame that the other side takes."""
        return self._most_sent

    @property
    def end(self) -> LinkError | None:
        """Why it is over; None while it is not."""
        return self._end

    @property
    def counters(self) -> LinkCounters:
        return self._counts.taken()

    def renew(self, epoch: int) -> None:
        """The link goes on in a newer plan: what is under way from the older one will be dropped."""
        if not self._epoch < epoch <= EPOCH_MOST:
            raise OutOfBounds(f"epoch {epoch} does not follow {self._epoch}")
        with self._sending:
            self._epoch, self._beat = epoch, _beat_of(epoch)

    def send(self, header: TensorHeader, *buffers: Buffer) -> None:
        """One frame, whose bytes are those of `buffers` one after the other; they may be changed once it returns.

        Epoch, sequence and, where the flag CHECKED is set, the checksum are the link's to fill in. A header that is
        sent again as the same object costs the least. Raises `LinkError`, and `OutOfBounds` for what no frame can be;
        then nothing was sent.
        """
        self.send_frames((header, buffers))

    def send_frames(self, *frames: tuple[TensorHeader, Sequence[Buffer]]) -> None:
        """Several frames in one write: what describes a step and the states it is about cost no more than one."""
        began = time.perf_counter_ns()
        parts: list[Buffer] = []
        size = 0
        with self._sending:
            self._raise_end()
            for number, (header, buffers) in enumerate(frames):
                size += self._add_frame(parts, header, buffers, self._next_sent + number)
            self._write(parts)
            counts = self._counts
            self._next_sent += len(frames)
            self._answer_due = True
            counts.frames_sent += len(frames)
            counts.bytes_sent += size
            counts.sending_nanoseconds += time.perf_counter_ns() - began

    def receive(self, into: Buffer | None = None, within_seconds: float | None = None) -> Frame:
        """The next frame of this epoch. Blocks; `within_seconds` bounds that, while heartbeats come.

        `into` receives the bytes instead of the link's own buffers. Raises `LinkError`: `LinkSilent` when nothing
        comes for the settings' time, or nothing but heartbeats within the caller's.
        """
        deadline = None if within_seconds is None else time.monotonic() + within_seconds
        with self._receiving:
            while True:
                self._fill(self._head, deadline, in_frame=False)
                began = time.perf_counter_ns()
                header = self._read_header()
                if header is None:
                    self._counts.beats_received += 1
                    self._check_deadline(deadline)
                elif header.epoch == self._epoch:
                    return self._receive_frame(header, into, deadline, began)
                else:
                    self._skip(header, deadline)

    def beat(self) -> bool:
        """Say that this side lives. Never blocks; False where a frame under way says so already, or nothing fits."""
        if self._end is not None or not self._sending.acquire(blocking=False):
            return False
        try:
            sent = self._line.send(self._beat, socket.MSG_DONTWAIT)
            if sent < len(self._beat):
                self._write([memoryview(self._beat)[sent:]])
            self._counts.beats_sent += 1
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            self.fail(_closed_by(error))
            return False
        finally:
            self._sending.release()

    def listen(self) -> bool:
        """Take in the heartbeats that wait; whether anything came since the last time, or waits for its receiver.

        Never blocks and never raises: an end that is seen here is what the next call raises.
        """
        if self._end is not None:
            return False
        if not self._receiving.acquire(blocking=False):
            return True  # whoever receives notices silence by itself
        try:
            while self._take_beat():
                pass
            return True  # a frame waits, or a part of one
        except BlockingIOError:
            return self._read_bytes != self._listened_bytes
        except LinkError as error:
            self.fail(error)
        except OSError as error:
            self.fail(_closed_by(error))
        finally:
            self._listened_bytes = self._read_bytes
            self._receiving.release()
        return False

    def fail(self, error: LinkError) -> LinkError:
        """End it for this reason; who waits in it wakes up. The first reason stays, and is returned."""
        with self._ending:
            if self._end is None:
                self._end = error
                shut_down(self._line)
            return self._end

    def close(self) -> None:
        """May be called twice, and from any thread."""
        self.fail(LinkClosed("the link was closed on this side"))
        self._line.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add_frame(self, parts: list[Buffer], header: TensorHeader, buffers: Sequence[Buffer], sequence: int) -> int:
        """Its header and bytes at the end of `parts`; how many bytes these are."""
        views = [flat_view(buffer) for buffer in buffers]
        size = sum([view.nbytes for view in views])
        if size != header.size or not size:
            raise OutOfBounds(f"a frame of {header.size} bytes, and {size} are given; without any it is a heartbeat")
        if size > self._most_sent:
            raise OutOfBounds(f"a frame of {size} bytes; the other side takes {self._most_sent} at most")
        checksum = 0
        if int(header.flags) & _CHECKED:
            for view in views:
                checksum = crc32(view, checksum)
        parts.append(self._writer.write(header, self._epoch, sequence & SEQUENCE_MASK, checksum))
        parts += views
        return size

    def _write(self, parts: list[Buffer]) -> None:
        whole, seen = False, -1
        try:
            while parts:
                try:
                    parts = send_some(self._line, parts)
                except BlockingIOError:
                    seen = self._check_life(seen)
            whole = True
        except OSError as error:
            raise self.fail(_closed_by(error)) from error
        finally:
            if not whole:  # half a frame is out, and nothing can follow it
                self.fail(LinkClosed("the link was left in the middle of a frame"))

    def _check_life(self, seen: int) -> int:
        """The other side takes nothing. While signs of life come from it, it works; else it is gone."""
        self._raise_end()
        heard = self._read_bytes + waiting_bytes(self._line)
        if heard == seen:
            raise self.fail(LinkSilent("the other side takes nothing and says nothing"))
        return heard

    def _fill(self, room: memoryview, deadline: float | None, in_frame: bool) -> None:
        self._raise_end()
        done, size = 0, room.nbytes
        while done < size:
            try:
                count = self._line.recv_into(room[done:] if done else room)
            except BlockingIOError:
                seconds = self.settings.silence_seconds
                raise self.fail(LinkSilent(f"the other side has said nothing for {seconds} s")) from None
            except OSError as error:
                raise self.fail(_closed_by(error, in_frame or done > 0)) from error
            if not count:
                self._raise_end()
                raise self.fail(LinkClosed("the other side is gone", in_frame or done > 0))
            done += count
            self._read_bytes += count
            if done < size:
                self._check_deadline(deadline)

    def _read_header(self) -> TensorHeader | None:
        """None for a heartbeat."""
        try:
            header = self._reader.read(self._head)
        except RemoteError as error:
            raise self.fail(LinkFault(f"no frame begins like this: {error}")) from error
        if not header.size:
            return None
        if header.sequence != self._next_received & SEQUENCE_MASK:
            expected = self._next_received & SEQUENCE_MASK
            raise self.fail(LinkFault(f"frame {header.sequence} came where {expected} was due"))
        if header.size > self._rooms[0].nbytes:
            raise self.fail(LinkFault(f"a frame of {header.size} bytes; {self._rooms[0].nbytes} are the most"))
        self._next_received += 1
        return header

    def _receive_frame(self, header: TensorHeader, into: Buffer | None, deadline: float | None, began: int) -> Frame:
        if into is None:
            room = self._rooms[self._next_room]
            self._next_room ^= 1
        else:
            room = flat_view(into)
        if room.nbytes < header.size:
            raise self.fail(LinkFault(f"a frame of {header.size} bytes where {room.nbytes} were awaited"))
        data = room[: header.size]
        self._fill(data, deadline, in_frame=True)
        if int(header.flags) & _CHECKED:
            try:
                check_piece(header, data, crc32)
            except RemoteError as error:
                raise self.fail(LinkFault(str(error))) from error
        counts = self._counts
        counts.frames_received += 1
        counts.bytes_received += header.size
        counts.round_trips += self._answer_due
        self._answer_due = False
        counts.receiving_nanoseconds += time.perf_counter_ns() - began
        return Frame(header, data)

    def _skip(self, header: TensorHeader, deadline: float | None) -> None:
        if header.epoch > self._epoch:
            raise self.fail(LinkFault(f"a frame of epoch {header.epoch} came in epoch {self._epoch}"))
        self._fill(self._rooms[self._next_room][: header.size], deadline, in_frame=True)
        self._counts.frames_dropped += 1

    def _take_beat(self) -> bool:
        """One heartbeat that is here whole. A frame stays where it is, for whoever receives."""
        flags = socket.MSG_DONTWAIT
        count = self._line.recv_into(self._head, 0, flags | socket.MSG_PEEK)
        if not count:
            raise LinkClosed("the other side is gone")
        if count < TENSOR_HEADER_SIZE or self._peeked().size:
            return False
        self._read_bytes += self._line.recv_into(self._head, 0, flags)
        self._counts.beats_received += 1
        return True

    def _peeked(self) -> TensorHeader:
        try:
            return self._reader.read(self._head)
        except RemoteError as error:
            raise LinkFault(f"no frame begins like this: {error}") from error

    def _check_deadline(self, deadline: float | None) -> None:
        if deadline is not None and time.monotonic() > deadline:
            raise self.fail(LinkSilent("the other side lives, and its answer has not come in time"))

    def _raise_end(self) -> None:
        if self._end is not None:
            raise self._end


def _checked_rooms(rooms: Sequence[Buffer]) -> tuple[memoryview, memoryview]:
    views = [flat_view(room) for room in rooms]
    if len(views) != 2 or views[0].nbytes != views[1].nbytes or any(view.readonly for view in views):
        raise OutOfBounds("a link has two buffers of the same size, to be written into")
    return views[0], views[1]


def _beat_of(epoch: int) -> bytes:
    return pack_tensor_header(TensorHeader(DType.UINT8, (0,), 0, epoch=epoch, flags=TensorFlags.LAST), crc32)


def _closed_by(error: OSError, in_frame: bool = False) -> LinkClosed:
    return LinkClosed(f"the connection is broken: {error.strerror or error}", in_frame)
