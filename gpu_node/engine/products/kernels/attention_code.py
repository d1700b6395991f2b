"""The code of attention over a paged cache, without gathering it.

Each token of the step goes through its own row's blocks up to its own position, so pieces of prompts are causal as
decoding is. A block is read once for all query heads that share its keys and values; the softmax is carried from block
to block with a running maximum and sum (Milakov and Gimelshein, 2018; FlashAttention). Must not know torch.

Measured on one AVX2 core, 9 heads on 3 of 64, bfloat16, 512 positions: 50 to 65 us a token and layer, some 10 ns a
position and head. Fetching the next block ahead took a third off that where the cache lies in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpu_node.engine.products.kernels.availability import Target
from gpu_node.engine.products.kernels.emitter import F32, I64, LANES, Emitter, Value, lanes
from gpu_node.engine.products.kernels.numbers import KIND_BYTES, Kind, exponential, hyperbolic_tangent, load_numbers

LONGEST_BLOCK = 256  # tokens
MOST_NUMBERS = 16384  # of one head in one block; two such pieces lie on the stack
MOST_SHARING = 128  # query heads of one key head
WIDE = 8  # vectors of a value that are summed up at a time, in registers
CACHE_LINE = 64
NOTHING = float("-inf")
ARGUMENTS = 25


@dataclass(frozen=True, slots=True)
class _Span:
    """Which tokens of one block are seen, and where one head's keys and values of it lie in single precision."""

    first: Value
    end: Value
    keys: Value
    key_step: Value  # from token to token, bytes
    values: Value
    value_step: Value


class AttentionCode:
    """Arguments, in order, are the names that `__init__` gives them; strides count numbers, sizes multiples of 8.

    `rows` and `positions` [tokens] say whose table and how far a token looks; `window` is huge where there is none;
    `cap` and `sinks` are 0 where there are none.
    """

    def __init__(self, name: str, kind: Kind, target: Target) -> None:
        e = self.e = Emitter(name, target.triple)
        self.kind = kind
        self.bytes = KIND_BYTES[kind]
        (self.q, self.q_stride, self.tokens, self.rows, self.positions) = e.arguments(5)
        (self.tables, self.table_stride, self.block_tokens) = (e.argument(index) for index in range(5, 8))
        self.keys, *self.key_strides = (e.argument(index) for index in range(8, 12))  # of block, token, head
        self.values, *self.value_strides = (e.argument(index) for index in range(12, 16))
        (self.kv_heads, self.sharing, self.key_size, self.value_size) = (e.argument(index) for index in range(16, 20))
        self.scale, self.cap = (e.float_bits(e.argument(index)) for index in (20, 21))
        self.window, self.sinks, self.y = (e.argument(index) for index in (22, 23, 24))
        self.y_stride = e.argument(ARGUMENTS)
        self.scores = e.room(F32, LONGEST_BLOCK)
        wide = self.kind != "f32"
        self.rooms = [e.room(F32, MOST_NUMBERS) if wide else None for _ in range(2)]
        self.maxima, self.sums = e.room(F32, MOST_SHARING), e.room(F32, MOST_SHARING)

    def write(self) -> str:
        e = self.e
        begin, end = e.share(self.tokens * self.kv_heads)
        with e.loop(begin, end) as unit:
            self._unit(unit // self.kv_heads, unit % self.kv_heads)
        return e.finish()

    def _unit(self, token: Value, head: Value) -> None:
        e = self.e
        first_head = head * self.sharing
        query = self.q + (token * self.q_stride + first_head * self.key_size) * 4
        result = self.y + (token * self.y_stride + first_head * self.value_size) * 4
        self._start(first_head, result)
        end = e.load(self.positions + token * 8, I64) + 1
        begin = e.larger(end - self.window, e.integer(0))
        table = self.tables + e.load(self.rows + token * 8, I64) * self.table_stride * 8
        size = self.block_tokens
        stop = (end + (size - 1)) // size
        with e.loop(begin // size, stop) as index:
            with e.when(index + 1 < stop):
                self._prefetch(e.load(table + index * 8 + 8, I64), head)
            span = self._span(
                e.load(table + index * 8, I64),
                head,
                e.larger(begin - index * size, e.integer(0)),
                e.smaller(end - index * size, size),
            )
            with e.loop(0, self.sharing) as sharer:
                self._score(query + sharer * self.key_size * 4, span)
                before = self._weigh(sharer, span)
                self._collect(result + sharer * self.value_size * 4, span, before)
        self._finish(result)

    def _prefetch(self, block: Value, head: Value) -> None:
        """The next block lies anywhere: no processor guesses where, and waiting for it costs more than computing."""
        e = self.e
        pools = ((self.keys, self.key_strides, self.key_size), (self.values, self.value_strides, self.value_size))
        for pool, (of_block, of_token, of_head), size in pools:
            start = pool + (block * of_block + head * of_head) * self.bytes
            with e.loop(0, self.block_tokens) as token, e.loop(0, size * self.bytes, CACHE_LINE) as byte:
                e.prefetch(start + token * of_token * self.bytes + byte)

    def _start(self, first_head: Value, result: Value) -> None:
        """A sink takes part in the sum as a score without value."""
        e = self.e
        with e.loop(0, self.sharing) as sharer:
            e.store(self.maxima + sharer * 4, e.constant(F32, NOTHING))
            e.store(self.sums + sharer * 4, e.constant(F32, 0.0))
            with e.when(e.integer(0) < self.sinks):
                e.store(self.maxima + sharer * 4, e.load(self.sinks + (first_head + sharer) * 4, F32))
                e.store(self.sums + sharer * 4, e.constant(F32, 1.0))
        with e.loop(0, self.sharing * self.value_size, LANES) as index:
            e.store(result + index * 4, e.constant(lanes(F32), 0.0))

    def _span(self, block: Value, head: Value, first: Value, end: Value) -> _Span:
        """16-bit numbers are widened once for all query heads that share them."""
        e = self.e
        pools = ((self.keys, self.key_strides, self.key_size), (self.values, self.value_strides, self.value_size))
        places = []
        for room, (pool, (of_block, of_token, of_head), size) in zip(self.rooms, pools, strict=True):
            start, step = pool + (block * of_block + head * of_head) * self.bytes, of_token * self.bytes
            if room is None:
                places += [start, step]
                continue
            with e.loop(first, end) as token, e.loop(0, size, LANES) as index:
                part = load_numbers(e, start + token * step + index * self.bytes, self.kind)
                e.store(room + (token * size + index) * 4, part)
            places += [room, size * 4]
        return _Span(first, end, *places)

    def _score(self, query: Value, span: _Span) -> None:
        """Eight tokens at a time; what lies before the span's beginning or behind its end counts for nothing."""
        e = self.e
        with e.loop(span.first & -LANES, span.end + (LANES - 1), LANES) as index:
            scores = self._eight_dots(query, span.keys + index * span.key_step, span.key_step) * e.splat(self.scale)
            capped = e.variable(scores)
            with e.when(self.cap > 0.0):
                cap = e.splat(self.cap)
                capped.set(hyperbolic_tangent(e, scores / cap) * cap)
            place = e.splat(index) + e.counting()
            inside = (place >= e.splat(span.first)) & (place < e.splat(span.end))
            e.store(self.scores + index * 4, e.select(inside, capped.get(), NOTHING))

    def _eight_dots(self, query: Value, key: Value, step: Value) -> Value:
        e = self.e
        sums = [e.variable(e.constant(lanes(F32), 0.0)) for _ in range(LANES)]
        with e.loop(0, self.key_size, LANES) as index:
            q = e.load(query + index * 4, lanes(F32))
            for number, total in enumerate(sums):
                k = e.load(key + step * number + index * 4, lanes(F32))
                total.set(e.fused(q, k, total.get()))
        four = [e.totals([total.get() for total in sums[start : start + 4]]) for start in (0, 4)]
        return e.shuffle(four[0], four[1], range(LANES))

    def _weigh(self, sharer: Value, span: _Span) -> Value:
        """Scores become weights under the new maximum; gives the factor for what was collected under the old one."""
        e = self.e
        begin, end = span.first & -LANES, span.end + (LANES - 1)
        old = e.load(self.maxima + sharer * 4, F32)
        best = e.variable(e.splat(old))
        with e.loop(begin, end, LANES) as index:
            best.set(e.larger(e.load(self.scores + index * 4, lanes(F32)), best.get()))
        new = e.maximum(best.get())
        total = e.variable(e.constant(lanes(F32), 0.0))
        with e.loop(begin, end, LANES) as index:
            weight = exponential(e, e.load(self.scores + index * 4, lanes(F32)) - e.splat(new))
            e.store(self.scores + index * 4, weight)
            total.set(total.get() + weight)
        before = exponential(e, old - new)
        e.store(self.maxima + sharer * 4, new)
        e.store(self.sums + sharer * 4, e.fused(e.load(self.sums + sharer * 4, F32), before, e.total(total.get())))
        return before

    def _collect(self, result: Value, span: _Span, before: Value) -> None:
        wide = self.value_size - self.value_size % (WIDE * LANES)
        with self.e.loop(0, wide, WIDE * LANES) as index:
            self._add_values(result, index, span, (before, WIDE))
        with self.e.loop(wide, self.value_size, LANES) as index:
            self._add_values(result, index, span, (before, 1))

    def _add_values(self, result: Value, index: Value, span: _Span, how: tuple[Value, int]) -> None:
        """Slots outside the span are not read: a weight of nothing times NaN would be NaN."""
        e = self.e
        before, count = how
        places = [result + (index + vector * LANES) * 4 for vector in range(count)]
        sums = [e.variable(e.load(place, lanes(F32)) * e.splat(before)) for place in places]
        with e.loop(span.first, span.end) as token:
            weight = e.splat(e.load(self.scores + token * 4, F32))
            address = span.values + token * span.value_step + index * 4
            for vector, total in enumerate(sums):
                value = e.load(address + vector * LANES * 4, lanes(F32))
                total.set(e.fused(weight, value, total.get()))
        for place, total in zip(places, sums, strict=True):
            e.store(place, total.get())

    def _finish(self, result: Value) -> None:
        e = self.e
        with e.loop(0, self.sharing) as sharer:
            factor = e.splat(e.constant(F32, 1.0) / e.load(self.sums + sharer * 4, F32))
            start = result + sharer * self.value_size * 4
            with e.loop(0, self.value_size, LANES) as index:
                e.store(start + index * 4, e.load(start + index * 4, lanes(F32)) * factor)
