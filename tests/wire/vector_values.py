"""The values behind the vectors: names, what they are, and what nobody may accept."""

from __future__ import annotations

import math
from typing import Any

from wire.beacon import Address, Announcement, Probe
from wire.messages_memory import Alloc, Allocated, Free, FromBuffer, InlineIds, Output, Read, Run
from wire.messages_session import (
    Ack,
    Cancel,
    Error,
    ErrorCode,
    Goodbye,
    GoodbyeReason,
    Hello,
    Ping,
    Pong,
    Welcome,
)
from wire.messages_stats import (
    DeviceRecord,
    EventRecord,
    HolderRecord,
    ModelRecord,
    PipelineRecord,
    ResidentRecord,
    StageRecord,
    Stats,
)
from wire.messages_work import (
    Bounds,
    ChatMessage,
    ChatPrompt,
    Chunk,
    Done,
    Embed,
    FinishReason,
    Generate,
    Given,
    JsonGuide,
    Load,
    Loaded,
    LogitBias,
    Logprob,
    Phase,
    Progress,
    Push,
    PushFile,
    RegexGuide,
    Sampling,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    Tokens,
    Unload,
    Vectors,
)
from wire.tensors import DType, TensorFlags, TensorHeader

NONCE = bytes(range(32))
KEY = bytes(range(32, 64))
DIGEST = bytes(range(64, 96))
TOKEN = "correct horse battery staple"

MESSAGES: dict[str, Any] = {
    "HELLO/first": Hello((1,), "laptop", NONCE, ("lz4",), signal_dbm=-61),
    "HELLO/proof-and-session": Hello((1,), "laptop", NONCE, ("lz4",), DIGEST, KEY),
    "WELCOME/challenge": Welcome(1, "tower", KEY),
    "WELCOME/session": Welcome(
        1, "tower", KEY, ("lz4",), DIGEST, NONCE, True, bytes(range(16)), 1_900_000_000_000, 300, 30
    ),
    "PING/empty": Ping(),
    "PING/echo": Ping(b"12345678", -70),
    "PONG/echo": Pong(b"12345678", -70),
    "CANCEL": Cancel(),
    "ERROR/no-room": Error(
        ErrorCode.NO_ROOM, "3 GiB are wanted, 1 GiB is free", 1500, (("free_bytes", 1 << 30), ("exact", True))
    ),
    "ERROR/plain": Error(ErrorCode.CANCELLED),
    "GOODBYE/finished": Goodbye(GoodbyeReason.FINISHED),
    "GOODBYE/stopping": Goodbye(GoodbyeReason.STOPPING, "back in a minute"),
    "LOAD": Load("smollm2:135m", (("context_tokens", 2048), ("keep_alive_seconds", 7.5)), -1),
    "PROGRESS": Progress(Phase.READING, 50 << 20, 98 << 20, "model.safetensors"),
    "LOADED": Loaded("smollm2:135m", 2048, 270_000_000, 3, (("dtype", "bfloat16"), ("shape", (30, 576)))),
    "UNLOAD": Unload("smollm2:135m"),
    "PUSH": Push("org/tiny", (PushFile("config.json", 900, DIGEST), PushFile("model.safetensors", 1 << 33, KEY))),
    "GENERATE/text": Generate("m", TextPrompt("hi")),
    "GENERATE/tokens-to-the-end": Generate("m", TokenPrompt((1, 128_000)), Sampling(temperature=0.0), Bounds(0, -2)),
    "GENERATE/everything": Generate(
        "m",
        ChatPrompt((ChatMessage("system", "Kurz."), ChatMessage("user", "Grüße 🙂")), (5, 6)),
        Sampling(0.5, 50, 0.95, 0.05, 1.0, 0.25, -0.25, -1, -7, 0.75, (LogitBias(9, -100.0),), 2, JsonGuide("{}")),
        Bounds(4096, 100, -1, False, False, 3, True),
        ("\n\n", "END"),
        2,
        -5,
        60_000,
        "anna",
        "salt",
        (Given((7, 8), 11), Given()),
        bytes(range(16)),
        17,
        300.0,
        True,
    ),
    "GENERATE/for-ever": Generate("m", TextPrompt("hi"), keep_alive_seconds=math.inf),
    "GENERATE/pattern": Generate("m", TextPrompt(""), Sampling(guide=RegexGuide("[0-9]+"))),
    "TOKENS/one": Tokens(5, 4, "a", (7,)),
    "TOKENS/text-alone": Tokens(300, 299, "🙂"),
    "TOKENS/logprobs": Tokens(
        0, 0, "a", (7,), 1, (TokenLogprob(Logprob(7, -0.5), (Logprob(7, -0.5, "a"), Logprob(8, -math.inf))),)
    ),
    "DONE/plain": Done(6, FinishReason.STOP, 12, 5, 1_000_000, 250_000_000),
    "DONE/two": Done(
        6, FinishReason.STOP, 12, 5, 1, 2, 3, (FinishReason.STOP, FinishReason.LENGTH), context=(1, 2, 3), load_ns=4
    ),
    "EMBED": Embed("m", ("one", "two"), 512, False, False, 256, "anna", "salt", 0.0),
    "VECTORS": Vectors(0, 2, 2, bytes.fromhex("0000803f 00000040 00004040 00008040"), 4),
    "ALLOC/matrix": Alloc(1, DType.FLOAT16, (4096, 4096), "cuda:0"),
    "ALLOC/scalar": Alloc(2, DType.INT64),
    "ALLOCATED": Allocated(1, DType.FLOAT16, (4096, 4096), "cuda:0", 7 << 30),
    "FREE": Free((1, 4_294_967_295)),
    "READ": Read(1, 1 << 20, 1 << 16, True),
    "ACK/plain": Ack(1 << 25),
    "ACK/offer": Ack(0, (900, 0)),
    "RUN/ids": Run("m", InlineIds((1, 2, 3))),
    "RUN/buffer": Run("m", FromBuffer(1), Output.HIDDEN, True, 2, "anna", "salt"),
    "STATS/question": Stats(),
    "STATS/answer": Stats((("uptime_seconds", 1.5), ("devices", ("cpu", b"\x00\xff", False, (1, -1))), ("free", -1))),
    "STATS/everything": Stats(
        (("version", "0.1.0"), ("slots", 8)),
        (
            ModelRecord(
                "smollm2:135m",
                "sha256:00ff",
                270_000_000,
                "safetensors",
                "llama",
                "134.5M",
                "BF16",
                1_900_000_000.5,
                8192,
                ("completion", "tools"),
                (("temperature", 0.5), ("stop", ("<end>",))),
            ),
            ModelRecord("org/tiny"),
        ),
        (
            ResidentRecord("smollm2:135m", "ready", 8192, 270_000_000, 1 << 28, 8, 2, 1, 299.5, "cuda:0"),
            ResidentRecord("org/tiny", "loading"),
        ),
        (DeviceRecord("NVIDIA X", "cuda", 24 << 30, 20 << 30, 4 << 30), DeviceRecord("cpu", "cpu")),
        (HolderRecord("session 3", "buffers", 1 << 20, "live"), HolderRecord("smollm2:135m", "model")),
    ),
    "STATS/split": Stats(
        pipelines=(
            PipelineRecord(
                "smollm2:135m", "changing", 3, "", 2, 1, 900, 1800, 0.0045, 0.004, 2.5, 1, 12 << 20, 1 << 20, 2, 1
            ),
            PipelineRecord("org/tiny", "broken", error="it does not fit: short by 0.10 GB"),
        ),
        events=(EventRecord(1_900_000_000.25, "cpu:1", "lost", "its process ended"), EventRecord(0.0, "", "planned")),
        stages=(
            StageRecord(
                "smollm2:135m",
                0,
                "cpu:0",
                "cpu",
                "running",
                0,
                18,
                150 << 20,
                40 << 20,
                5 << 20,
                0,
                12 << 20,
                220 << 20,
                7,
                9,
                900,
                12.5,
                82.25,
            ),
            StageRecord("smollm2:135m", 1, "cuda:1", "cuda", "loading", 18, 30),
            StageRecord("smollm2:135m", 2, "cpu:2", "cpu", "present", lent_bytes=12 << 20, budget_bytes=0),
        ),
    ),
    "DATA/chunk": Chunk(1, 1 << 32, DIGEST, b"some bytes of a file"),
}
# What a newer sender or one that leaves nothing out may send for the same value.
ALSO: dict[str, tuple[str, str]] = {
    "GENERATE/newer-fields-in-the-prompt": ("016d 02 07 02 6869 6e657765", "GENERATE/text"),
    "STATS/count-of-none": ("00", "STATS/question"),
    "GOODBYE/unknown-is-fault": ("e707 00", ""),
    "TOKENS/newer-fields-at-the-end": ("05 04 0161 01 00000007 00 00 ffff", "TOKENS/one"),
}
OTHERWISE: dict[str, Any] = {"GOODBYE/unknown-is-fault": Goodbye(GoodbyeReason.FAULT)}
REFUSED: dict[str, str] = {
    "TOKENS/ends-within-a-field": "05 04 05 61",
    "TOKENS/lacks-position": "05",
    "TOKENS/number-not-in-its-shortest-form": "8500 04",
    "TOKENS/number-wider-than-64-bits": "ffffffffffffffffff02 04",
    "TOKENS/text-is-not-utf-8": "05 04 01ff",
    "TOKENS/more-ids-than-bytes": "05 04 00 ffff0f 00000007",
    "TOKENS/logprobs-for-no-ids": "05 04 00 00 00 01 09 08 07 bfe0000000000000",
    "GENERATE/unknown-prompt": "016d 04 00",
    "GENERATE/no-samples": "016d 02 03 026869 00 00 00 00",
    "FREE/none": "00",
    "FREE/handle-0": "01 00",
    "HELLO/short-nonce": "0101 00 1f" + "00" * 31,
    "STATS/name-twice": "02 0161 0101 0161 0100",
    "STATS/too-deep": "01 0161 0601 0601 0601 0601 0100",
    "STATS/stage-without-a-device": "00 00 00 00 00 00 00 01 05 0161 00 00 00",
    "STATS/event-before-1970": "00 00 00 00 00 00 01 0b bff0000000000000 00 0161",
    "PUSH/upwards": "026f6b 01 26 04 2e2e2f61 01 20" + "00" * 32,
    "PUSH/absolute-model": "022f61 01 23 0161 01 20" + "00" * 32,
    "PUSH/file-twice": "0161 02 23 0161 01 20" + "00" * 32 + "23 0141 01 20" + "00" * 32,
    "VECTORS/not-whole": "00 01 03 0d" + "00" * 13,
    "ALLOC/rank-7": "01 10 07 01010101010101",
    "ALLOC/unknown-type": "01 7f 00",
}

TENSORS: dict[str, TensorHeader] = {
    "scalar": TensorHeader(DType.FLOAT64, (), 8, flags=TensorFlags.LAST),
    "empty": TensorHeader(DType.INT32, (0, 5), 0),
    "whole-matrix": TensorHeader(DType.FLOAT16, (4096, 4096), 1 << 25, batch=7, flags=TensorFlags.LAST),
    "second-piece-with-crc": TensorHeader(
        DType.BFLOAT16,
        (1, 2, 3, 4, 5, 6),
        440,
        1000,
        3,
        9,
        (10, 20),
        1,
        TensorFlags.CHECKED | TensorFlags.LAST,
        0xDEADBEEF,
    ),
    "far-in-a-large-one": TensorHeader(DType.FLOAT32, (1 << 31, 1 << 10), 4096, 1 << 42, sequence=0xFFFF_FFFF),
}

BEACONS: dict[str, tuple[Probe | Announcement, str | None]] = {
    "probe-open": (Probe(bytes(range(16)), 1_900_000_000_000, "laptop"), None),
    "probe-signed": (Probe(bytes(range(16)), 1_900_000_000_000, "laptop"), TOKEN),
    "announcement-signed": (
        Announcement(
            bytes(range(16, 32)), 1_900_000_000_000, 9, 1_900_000_001_000, "tower",
            (Address("192.0.2.7", 8765), Address("2001:db8::7", 8765)), ("smollm2:135m",), True, 8 << 30, 24 << 30,
            0.25, bytes(range(16)), False, True,
        ),
        TOKEN,
    ),
    "announcement-open-leaving": (
        Announcement(bytes(16), 1, 2, 3, "", (Address("127.0.0.1", 8765),), leaving=True), None,
    ),
}  # fmt: skip
# Name, place and the value it has there instead; all but the first with a CRC that is right for it.
BROKEN_TENSORS = (
    ("wrong-crc", 8, 1), ("magic", 0, 0), ("version", 1, 0x22), ("reserved-flag", 1, 0x16), ("unknown-type", 2, 0xFF),
    ("rank-7", 3, 7), ("dimension-beyond-the-rank", 55, 1), ("beyond-the-tensor", 31, 1), ("layers-backwards", 5, 1),
    ("unmarked-checksum", 59, 1),
)  # fmt: skip
