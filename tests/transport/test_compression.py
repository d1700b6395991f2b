"""Compressing only where it was measured to pay: by line, by kind of payload, by signal."""

from __future__ import annotations

import os

from tests.fakes.manual_clock import ManualClock
from tests.transport.pair import pair
from transport.compression import Compression
from wire.compression import SAMPLE_BYTES, SMALLEST_BYTES
from wire.frames import FrameType

T = FrameType
TEXT = b"the same words again and again, " * 2000
NOISE = os.urandom(len(TEXT))


class SlowCodec:
    """Takes its time on the clock; makes of everything a tenth, of noise nothing less."""

    def __init__(self, clock: ManualClock, bytes_per_second: float = 1e8) -> None:
        self.clock, self.bytes_per_second = clock, bytes_per_second
        self.samples: list[int] = []

    def compress(self, data, /) -> bytes:
        self.samples.append(len(data))
        self.clock.now += len(data) / self.bytes_per_second
        return bytes(data) if NOISE.startswith(data) else bytes(len(data) // 10)

    def decompress(self, data, size: int, /) -> bytes:
        raise AssertionError("nobody asks for it")


def compression(speed: float | None = 1e6, allowed: bool = True) -> tuple[Compression, SlowCodec]:
    clock = ManualClock()
    codec = SlowCodec(clock)
    made = Compression(codec, clock.clock.monotonic)
    made.allowed = allowed
    if speed:
        made.measured(int(speed), 1.0)
    return made, codec


def test_it_pays_on_a_slow_line() -> None:
    made, codec = compression(1e6)
    assert made.pays(T.PUSH, T.DATA, (b"head", TEXT))
    assert codec.samples == [SAMPLE_BYTES]


def test_it_does_not_pay_on_a_fast_line() -> None:
    made, _ = compression(1e9)
    assert not made.pays(T.PUSH, T.DATA, (TEXT,))


def test_a_line_that_was_never_measured_is_taken_as_fast_and_not_sampled() -> None:
    made, codec = compression(None)
    assert not made.pays(T.PUSH, T.DATA, (TEXT,))
    assert codec.samples == []


def test_nothing_is_compressed_before_both_agree() -> None:
    made, codec = compression(allowed=False)
    assert not made.pays(T.PUSH, T.DATA, (TEXT,))
    assert codec.samples == []


def test_small_payloads_are_not_even_sampled() -> None:
    made, codec = compression()
    assert not made.pays(T.GENERATE, T.TOKENS, (bytes(SMALLEST_BYTES - 1),))
    assert made.pays(T.GENERATE, T.TOKENS, (bytes(SMALLEST_BYTES // 2), bytes(SMALLEST_BYTES // 2)))
    assert len(codec.samples) == 1


def test_each_kind_of_payload_is_learned_apart() -> None:
    made, _ = compression()
    assert made.pays(T.PUSH, T.DATA, (TEXT,))
    assert not made.pays(T.READ, T.DATA, (NOISE,))
    assert made.pays(T.PUSH, T.DATA, (TEXT,))


def test_what_never_pays_is_sampled_more_and_more_seldom() -> None:
    made, codec = compression()
    for _ in range(600):
        assert not made.pays(T.READ, T.DATA, (NOISE,))
    assert 3 < len(codec.samples) < 12


def test_a_weak_signal_makes_it_pay_where_it_did_not() -> None:
    made, _ = compression(1.2e8)
    assert not made.pays(T.PUSH, T.DATA, (TEXT,))
    made.signal_dbm = -85
    assert made.signal_dbm == made.link.signal_dbm == -85
    assert made.pays(T.PUSH, T.DATA, (TEXT,))
    made.signal_dbm = -40
    assert not made.pays(T.PUSH, T.DATA, (TEXT,))


async def test_frames_of_a_slow_line_are_compressed_and_arrive_whole() -> None:
    async with pair(compress=True) as both:
        ours, theirs = await both.ask(T.READ)
        driver = both.server.driver
        room = bytearray(len(TEXT))
        ours.receive_into(memoryview(room))
        driver.line_measured(100_000, 1.0)
        assert driver.link.bytes_per_second == 100_000
        before = driver.sent_bytes
        await theirs.send(T.DATA, TEXT, ends=True)
        frame = await ours.receive()
        assert frame.placed and room == TEXT
        assert driver.sent_bytes - before < len(TEXT) / 10


async def test_who_sends_may_decide_by_itself() -> None:
    async with pair(compress=True) as both:
        driver = both.server.driver
        for compress, most in ((True, 5000), (False, 200_000), (None, 200_000)):
            ours, theirs = await both.ask(T.GENERATE)
            before = driver.sent_bytes
            await theirs.send(T.TOKENS, TEXT, ends=True, compress=compress)
            assert (await ours.receive()).payload == TEXT
            assert (driver.sent_bytes - before < most) and (driver.sent_bytes - before > most / 4 - 2000)


async def test_a_request_may_be_compressed_too_and_the_signal_is_told() -> None:
    async with pair(compress=True) as both:
        driver = both.client.driver
        driver.signal_dbm = -70
        assert driver.signal_dbm == driver.link.signal_dbm == -70
        driver.line_measured(100_000, 1.0)
        before = driver.sent_bytes
        stream = await driver.open(T.GENERATE, TEXT, ends=True)
        await stream.drain()
        assert driver.sent_bytes - before < len(TEXT) / 10
        _, frame = await both.server.requests.get()
        assert frame.payload == TEXT
