"""The code of y = x W^T for weights in 4 or 8-bit codes and x rounded to 8 bits for every 32 numbers.

The idea of llama.cpp's repacked kernels: eight rows of a weight lie interleaved, four columns of each next to one
another, so that a lane sums one row, nothing is added across lanes, and one stream of memory is read from end to end.
Sums of products are whole numbers and the same with any instructions. Must not know torch; callers have checked shapes.

Measured on one AVX2 core, 3072 x 576, weights out of memory, microseconds for 1, 4 and 8 rows of x: 4 bits with minima
56, 95, 182; 8 bits 105, 164, 310; torch's product with 16-bit weights 444 for one. Code that loops over a group as it
lies in a GGUF file, compiled the same way, took 1126 and 856.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from gpu_node.engine.products.kernels.availability import Dots, Target
from gpu_node.engine.products.kernels.emitter import F32, I8, I16, I32, Emitter, Value, Variable, lanes
from gpu_node.engine.products.kernels.numbers import KIND_BYTES, ROUNDING, Kind, load_numbers

GROUP = 32  # numbers of x that share a scale
PANEL_ROWS = 8  # rows of a weight that lie interleaved
BATCH = 4  # rows of x that a panel is unpacked once for
PREFETCH_BYTES = 4096
# Groups of smaller numbers than this count as nothing: the inverse of a scale must be finite.
LEAST_SCALE = 1e-30


@dataclass(frozen=True, slots=True)
class PanelLayout:
    """For each group of 32 columns: eight scales, eight minima if there are any, then the codes of eight rows."""

    bits: int
    minima: bool
    scales: Kind  # "f16" or "f32"

    @property
    def name(self) -> str:
        return f"packed{self.bits}{'m' if self.minima else ''}_{self.scales}"

    @property
    def scale_bytes(self) -> int:
        return PANEL_ROWS * KIND_BYTES[self.scales]

    @property
    def codes_at(self) -> int:
        return self.scale_bytes * (2 if self.minima else 1)

    @property
    def group_bytes(self) -> int:
        return self.codes_at + PANEL_ROWS * GROUP * self.bits // 8


class QuantisedCode:
    """Arguments: panels, rows, groups, codes of x, scales of x, sums of x, rows of x, y, stride of y, bias or 0, adds.

    Codes of x lie as [rows of x, groups, 32], scales and sums (of the rounded numbers) as [rows of x, groups].
    """

    def __init__(self, name: str, layout: PanelLayout, target: Target) -> None:
        self.e = Emitter(name, target.triple)
        self.layout = layout
        self.dots = Dot(self.e, target.dots)
        (
            self.panels,
            self.rows,
            self.groups,
            self.codes,
            self.scales,
            self.sums,
            self.batch,
            self.y,
            self.y_stride,
            self.bias,
            self.adds,
        ) = self.e.arguments(11)

    def write(self) -> str:
        e = self.e
        begin, end = e.share((self.rows + (PANEL_ROWS - 1)) // PANEL_ROWS)
        rest = self.batch % BATCH
        with e.loop(begin, end) as panel:
            with e.loop(0, self.batch, BATCH) as item:
                self._panel(panel, item, BATCH)
            for count in range(1, BATCH):
                with e.when(rest.equals(count)):
                    self._panel(panel, self.batch - rest, count)
        return e.finish()

    def _panel(self, panel: Value, item: Value, items: int) -> None:
        e = self.e
        totals = [e.variable(e.constant(lanes(F32), 0.0)) for _ in range(items)]
        start = self.panels + panel * self.groups * self.layout.group_bytes
        with e.loop(0, self.groups) as group:
            address = start + group * self.layout.group_bytes
            self._group(address, [(item + i) * self.groups + group for i in range(items)], totals)
        self._store(panel * PANEL_ROWS, item, [total.get() for total in totals])

    def _group(self, address: Value, places: list[Value], totals: list[Variable]) -> None:
        e, layout = self.e, self.layout
        for line in range(0, layout.group_bytes, 64):
            e.prefetch(address + (PREFETCH_BYTES + line))
        inputs = [self.codes + place * GROUP for place in places]
        codes = address + layout.codes_at
        dot = self.dots.four_bits if layout.bits == 4 else self.dots.eight_bits
        scale = load_numbers(e, address, layout.scales)
        for place, total, whole in zip(places, totals, dot(codes, inputs), strict=True):
            factor = scale * e.splat(e.load(self.scales + place * 4, F32))
            total.set(e.fused(e.number(whole, lanes(F32)), factor, total.get()))
        if layout.minima:
            minimum = load_numbers(e, address + layout.scale_bytes, layout.scales)
            for place, total in zip(places, totals, strict=True):
                total.set(e.fused(minimum, e.splat(e.load(self.sums + place * 4, F32)), total.get()))

    def _store(self, row: Value, item: Value, sums: list[Value]) -> None:
        e = self.e
        for i, value in enumerate(sums):
            target = self.y + ((item + i) * self.y_stride + row) * 4
            whole = self.rows >= row + PANEL_ROWS
            with e.when(whole):
                self._store_whole(target, row, value)
            with e.when(whole.equals(False)):
                self._store_rest(target, row, value)

    def _store_whole(self, target: Value, row: Value, value: Value) -> None:
        e = self.e
        total = e.variable(value)
        with e.when(e.integer(0) < self.bias):
            total.set(total.get() + e.load(self.bias + row * 4, value.type))
        with e.when(e.integer(0) < self.adds):
            total.set(total.get() + e.load(target, value.type))
        e.store(target, total.get())

    def _store_rest(self, target: Value, row: Value, value: Value) -> None:
        """The last panel's rows that the weight has; it was filled up with zeros."""
        e = self.e
        kept = e.room(F32, PANEL_ROWS)
        e.store(kept, value)
        with e.loop(0, self.rows - row) as index:
            self._store_whole(target + index * 4, row + index, e.load(kept + index * 4, F32))


class Dot:
    """Sums over 32 columns of eight interleaved rows, as eight 32-bit integers."""

    def __init__(self, emitter: Emitter, dots: Dots) -> None:
        self.e = emitter
        self.dots = dots

    def four_bits(self, codes: Value, inputs: list[Value]) -> list[Value]:
        """Codes 0..15: 32 bytes hold eight columns of each row, the first four in the low halves.

        16-bit sums hold a group: 16 products of at most 15 * 127.
        """
        e = self.e
        bytes_ = lanes(I8, 32)
        sums: list[Value | None] = [None] * len(inputs)
        for step in range(GROUP // 8):
            packed = e.load(codes + 32 * step, bytes_)
            high = e.cast((e.cast(packed, lanes(I16, 16)) >> 4), bytes_) & 15
            for half, weight in enumerate((packed & 15, high)):
                for i, start in enumerate(inputs):
                    x = self._four(start + 8 * step + 4 * half)
                    sums[i] = self._unsigned(sums[i], weight, x)
        return [self._whole(total) for total in sums if total is not None]

    def eight_bits(self, codes: Value, inputs: list[Value]) -> list[Value]:
        """Signed codes: 32 bytes hold four columns of each row."""
        e = self.e
        sums: list[Value | None] = [None] * len(inputs)
        for step in range(GROUP // 4):
            weight = e.load(codes + 32 * step, lanes(I8, 32))
            for i, start in enumerate(inputs):
                product = self._signed(weight, self._four(start + 4 * step))
                before = sums[i]
                sums[i] = product if before is None else before + product
        return [total for total in sums if total is not None]

    def _four(self, address: Value) -> Value:
        """Four codes of x for every row."""
        return self.e.cast(self.e.splat(self.e.load(address, I32)), lanes(I8, 32))

    def _unsigned(self, before: Value | None, weight: Value, x: Value) -> Value:
        e = self.e
        if self.dots == "vnni":
            start = e.constant(lanes(I32), 0) if before is None else before
            return self._vnni(start, weight, x)
        if self.dots == "avx2":
            pairs = e.call("llvm.x86.avx2.pmadd.ub.sw", lanes(I16, 16), (weight, x), suffix="")
        else:
            pairs = self._pairs(e.widen(weight, lanes(I16, 32)) * e.widen(x, lanes(I16, 32), signed=True))
        return pairs if before is None else before + pairs

    def _whole(self, total: Value) -> Value:
        """Neighbouring 16-bit sums together in 32 bits; VNNI has done that already."""
        e = self.e
        if self.dots == "vnni":
            return total
        if self.dots == "avx2":
            ones = e.constant(lanes(I16, 16), 1)
            return e.call("llvm.x86.avx2.pmadd.wd", lanes(I32), (total, ones), suffix="")
        return self._pairs(e.widen(total, lanes(I32, 16), signed=True))

    def _signed(self, weight: Value, x: Value) -> Value:
        """The instructions want one side without sign: the weight's sign goes to x, 128 * 127 * 2 still fits."""
        e = self.e
        if self.dots == "portable":
            products = e.widen(weight, lanes(I16, 32), signed=True) * e.widen(x, lanes(I16, 32), signed=True)
            return self._pairs(self._pairs(e.widen(products, lanes(I32, 32), signed=True)))
        magnitude = Value(e, e.builder.call(_absolute(e), [weight.raw, ir.Constant(ir.IntType(1), 0)]))
        turned = e.call("llvm.x86.avx2.psign.b", lanes(I8, 32), (x, weight), suffix="")
        if self.dots == "vnni":
            return self._vnni(e.constant(lanes(I32), 0), magnitude, turned)
        pairs = e.call("llvm.x86.avx2.pmadd.ub.sw", lanes(I16, 16), (magnitude, turned), suffix="")
        return e.call("llvm.x86.avx2.pmadd.wd", lanes(I32), (pairs, e.constant(lanes(I16, 16), 1)), suffix="")

    def _vnni(self, before: Value, weight: Value, x: Value) -> Value:
        return self.e.call("llvm.x86.avx512.vpdpbusd.256", lanes(I32), (before, weight, x), suffix="")

    def _pairs(self, value: Value) -> Value:
        count = value.type.count
        even, odd = (self.e.shuffle(value, None, range(start, count, 2)) for start in (0, 1))
        return even + odd


def _absolute(e: Emitter) -> ir.Function:
    kind = ir.FunctionType(lanes(I8, 32), (lanes(I8, 32), ir.IntType(1)))
    known = e.module.globals.get("llvm.abs.v32i8")
    return known if known is not None else ir.Function(e.module, kind, "llvm.abs.v32i8")


def write_quantiser(name: str, target: Target) -> str:
    """Arguments: x, stride of x, rows, groups, codes, scales, sums. Rounds as llama.cpp's Q8_1 does: scale = max / 127.

    A group with NaN or infinity gets a scale of NaN, so that no product with it looks sound.
    """
    e = Emitter(name, target.triple)
    x, stride, rows, groups, codes, scales, sums = e.arguments(7)
    begin, end = e.share(rows * groups)
    with e.loop(begin, end) as place:
        row, group = place // groups, place % groups
        start = x + (row * stride + group * GROUP) * 4
        parts = [e.load(start + 32 * index, lanes(F32)) for index in range(4)]
        largest, poison = e.magnitude(parts[0]), parts[0] * 0.0
        for part in parts[1:]:
            largest = e.larger(e.magnitude(part), largest)
            poison = e.fused(part, e.constant(lanes(F32), 0.0), poison)
        scale = e.maximum(largest) / 127.0
        inverse = e.select(scale > LEAST_SCALE, e.like(scale, 1.0) / scale, 0.0)
        rounded = [part * e.splat(inverse) + ROUNDING for part in parts]
        for index, part in enumerate(rounded):
            e.store(codes + place * GROUP + 8 * index, e.narrow(e.cast(part, lanes(I32)), lanes(I8)))
        wholes = [part - ROUNDING for part in rounded]
        total = e.total((wholes[0] + wholes[1]) + (wholes[2] + wholes[3]))
        final = scale + e.total(poison)
        e.store(scales + place * 4, final)
        e.store(sums + place * 4, final * total)
    return e.finish()
