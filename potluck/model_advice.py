"""Which model for which phone: the table by RAM, what was measured on which chip, and the advice that follows. Pure.

`RAM_LINES` is the table of `phone_setup.sh`, which cannot import it, and of docs/phones.md; a test holds all equal.
Speeds by chip are other people's measurements, each with its source; what is said of another model is an estimate.
Must not know the gateway or the terminal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import median

READABLE_TOKENS_PER_SECOND = 5.0  # about as fast as people read; a slower model is passed over for a smaller one
BITS = 4  # of a weight, in what the table names
_BETWEEN_WORDS = re.compile(r"[^0-9A-Za-z]+")


@dataclass(frozen=True, slots=True)
class RamLine:
    """`below_mb` is the memory that Android tells (MemTotal, MiB) below which the line applies; the last has no end."""

    ram_gb: int  # as sold
    below_mb: int
    model: str
    millions: int  # of parameters
    download_mb: int
    largest_millions: int  # at 4 bits
    others: tuple[str, ...]


# Half of a phone's RAM is what Termux can count on; 0.8 billion parameters were seen to take 1.2 GB, 3.8 3.4 GB.
RAM_LINES = (
    RamLine(2, 2600, "smollm2:135m", 135, 271, 360, ("smollm2:360m",)),
    RamLine(3, 3300, "qwen2.5:0.5b", 494, 398, 600, ("smollm2:360m", "qwen3:0.6b")),
    RamLine(4, 5000, "gemma3:1b", 1000, 815, 1000, ("qwen3:0.6b", "tinyllama")),
    RamLine(6, 7000, "qwen2.5:1.5b", 1540, 986, 2000, ("llama3.2:1b", "smollm2:1.7b")),
    RamLine(8, 10500, "llama3.2:3b", 3210, 2019, 4000, ("qwen2.5:3b", "gemma3:4b")),
    RamLine(12, 999999, "qwen2.5:7b", 7620, 4683, 8000, ("llama3.1:8b", "qwen3:8b")),
)


# What the others are to download, in MB, by Ollama's library.
OTHER_DOWNLOADS_MB = {
    "smollm2:360m": 726,
    "qwen3:0.6b": 523,
    "tinyllama": 638,
    "llama3.2:1b": 1321,
    "smollm2:1.7b": 1820,
    "qwen2.5:3b": 1930,
    "gemma3:4b": 3338,
    "llama3.1:8b": 4921,
    "qwen3:8b": 5226,
}


@dataclass(frozen=True, slots=True)
class Measurement:
    """Tokens/s of one model on one chip, with the program that ran it and who says so."""

    engine: str
    model: str
    millions: int
    tokens_per_second: float
    source: str
    bits: int = BITS

    def expected(self, millions: int) -> float:
        """Of another model at 4 bits: telling reads all weights for each token, so speed goes with their size."""
        return self.tokens_per_second * self.millions * self.bits / (millions * BITS)


@dataclass(frozen=True, slots=True)
class Chip:
    name: str
    codes: tuple[str, ...]  # as phones tell it (ro.soc.model, ro.board.platform), in small letters
    measured: tuple[Measurement, ...]


CHIPS = (
    Chip(
        "Snapdragon 8 Elite Gen 5",
        ("sm8850", "canoe"),
        (
            Measurement("llama.rn, CPU", "Qwen3 1.7B Q4_0", 1700, 30.4, "a-ghorbani/pocketpal-ai#702"),
            Measurement("llama.rn, OpenCL", "Gemma 3 1B Q4_0", 1000, 47.7, "a-ghorbani/pocketpal-ai#702"),
        ),
    ),
    Chip(
        "Snapdragon 8 Gen 3",
        ("sm8650", "pineapple"),
        (
            Measurement("llama.cpp, OpenCL", "Qwen 1.5B", 1500, 27.3, "ggml-org/llama.cpp#14337"),
            Measurement("T-MAC, CPU", "Llama-2 7B W4", 6740, 6.6, "microsoft/T-MAC#32"),
        ),
    ),
    Chip(
        "Snapdragon 8 Gen 2",
        ("sm8550", "kalama"),
        (
            Measurement("Ollama in Termux", "qwen2:1.5b", 1540, 7.0, "ollama/ollama#1006"),
            Measurement("not stated", "Gemma 3 1B Q4_K_M", 1000, 26.0, "mvpfactory.io"),
            Measurement("not stated", "Gemma 3 4B Q4_K_M", 4300, 11.0, "mvpfactory.io"),
        ),
    ),
    Chip(
        "Exynos 2400",
        ("s5e9945",),
        (Measurement("Cactus", "Gemma 1B int8", 1000, 20.0, "cactus-compute/cactus#25", bits=8),),
    ),
    Chip(
        "Tensor G2",
        ("gs201",),
        (Measurement("Ollama, 2 threads on the big cores", "tinyllama", 1100, 24.0, "ollama/ollama#721"),),
    ),
    Chip(
        "Tensor G1",
        ("gs101",),
        (Measurement("llama.cpp, Vulkan", "2B Q4", 2000, 6.8, "elizaOS/eliza#11734"),),
    ),
)


@dataclass(frozen=True, slots=True)
class Advice:
    """`expected` is the range of tokens/s that the chip's measurements lead to; None where there are none."""

    line: RamLine  # what fits the memory
    taken: RamLine  # whose model is advised: smaller where the chip would be too slow
    chip: Chip | None
    expected: tuple[float, float] | None
    others: tuple[str, ...]  # of the line that is taken, those that fit half of the memory

    @property
    def model(self) -> str:
        return self.taken.model


def line_for(ram_gb: float) -> RamLine:
    """The line of a phone with so much, as printed on the box; phones of odd sizes fall as phone_setup.sh has it."""
    return next((line for line in RAM_LINES if ram_gb * 1000 < line.below_mb), RAM_LINES[-1])


def chip_named(words: str) -> Chip | None:
    """By its code or its name, in any spelling: `Qualcomm SM8550-AB`, `Snapdragon 8 Gen 2 for Galaxy`, `tensor g2`."""
    single = [_plain(word) for word in _BETWEEN_WORDS.split(words)]
    for chip in CHIPS:
        if any(word.startswith(code) for word in single for code in chip.codes):
            return chip
    wanted = _plain(words)
    return next((chip for chip in CHIPS if re.search(rf"{_plain(chip.name)}(?!\d)", wanted)), None)


def recommend(ram_gb: float, chip: Chip | None = None) -> Advice:
    """The largest model of the table that fits the memory and, where the chip is known, is told at reading speed."""
    line = line_for(ram_gb)
    fitting = [one for one in RAM_LINES if one.ram_gb <= line.ram_gb]
    taken = line
    if chip is not None:
        fast = [one for one in fitting if _likely(chip, one) >= READABLE_TOKENS_PER_SECOND]
        taken = fast[-1] if fast else fitting[0]
    others = tuple(other for other in taken.others if OTHER_DOWNLOADS_MB[other] <= ram_gb * 1000 / 2)
    return Advice(line, taken, chip, None if chip is None else _range(chip, taken), others)


def _likely(chip: Chip, line: RamLine) -> float:
    return median(one.expected(line.millions) for one in chip.measured)


def _range(chip: Chip, line: RamLine) -> tuple[float, float]:
    found = [one.expected(line.millions) for one in chip.measured]
    return min(found), max(found)


def _plain(words: str) -> str:
    return "".join(character for character in words.casefold() if character.isalnum())
