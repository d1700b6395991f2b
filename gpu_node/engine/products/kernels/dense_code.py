"""The code of y = x W^T for few rows of x, weights of 16 or 32 bits as they lie in a model's file.

Four rows of the weight at a time, for up to four rows of x: every weight is read once for four of x, and widened in a
register. A tile of four by one to three keeps its sums in twelve registers; four rows of x go in two tiles of two
weight rows. Must not know torch; whoever calls has checked shapes.

Measured on one AVX2 core, 3072 x 576, weights out of memory, microseconds for 1, 4 and 8 rows: bfloat16 205, 250, 530,
float32 400, 520, 450 to 660; torch with float32 579, 1230, 1360, with bfloat16 444, 1830 and (widened) 1930. Reading
ahead takes a third off one row of bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpu_node.engine.products.kernels.availability import Target
from gpu_node.engine.products.kernels.emitter import F32, LANES, Emitter, Value, lanes
from gpu_node.engine.products.kernels.numbers import KIND_BYTES, Kind, load_numbers

TILE_ROWS = 4
# Far enough ahead to hide the memory's latency, near enough to stay in the nearest cache (measured, see `dense`).
PREFETCH_BYTES = 8192


class DenseCode:
    """Arguments: weights, rows, columns, x, stride of x, rows of x, y, stride of y, bias or 0, whether y is added to.

    Strides in numbers. `columns` is a multiple of 8.
    """

    def __init__(self, name: str, kind: Kind, target: Target) -> None:
        self.e = Emitter(name, target.triple)
        self.kind = kind
        (
            self.weights,
            self.rows,
            self.columns,
            self.x,
            self.x_stride,
            self.batch,
            self.y,
            self.y_stride,
            self.bias,
            self.adds,
        ) = self.e.arguments(10)

    def write(self) -> str:
        e = self.e
        begin, end = e.share(self.rows, TILE_ROWS)
        whole = end - end % TILE_ROWS
        whole = e.larger(whole, begin)
        with e.loop(begin, whole, TILE_ROWS) as row:
            self._full_rows(row)
        with e.loop(whole, end) as row, e.loop(0, self.batch) as item:
            self._tile(row, 1, item, 1)
        return e.finish()

    def _full_rows(self, row: Value) -> None:
        e = self.e
        rest = self.batch % 4
        fours = self.batch - rest
        with e.loop(0, fours, 4) as item:
            self._tile(row, 2, item, 4)
            self._tile(row + 2, 2, item, 4)
        for count in (1, 2, 3):
            with e.when(rest.equals(count)):
                self._tile(row, TILE_ROWS, fours, count)

    def _tile(self, row: Value, rows: int, item: Value, items: int) -> None:
        e = self.e
        size = KIND_BYTES[self.kind]
        zero = e.constant(lanes(F32), 0.0)
        sums = [[e.variable(zero) for _ in range(items)] for _ in range(rows)]
        starts = [self.weights + (row + r) * self.columns * size for r in range(rows)]
        inputs = [self.x + (item + i) * self.x_stride * 4 for i in range(items)]
        with e.loop(0, self.columns, LANES) as column:
            if rows > 1:
                self._prefetch(starts[0], column, rows)
            values = [load_numbers(e, start + column * 4, "f32") for start in inputs]
            for r, start in enumerate(starts):
                weight = load_numbers(e, start + column * size, self.kind)
                for i, value in enumerate(values):
                    sums[r][i].set(e.fused(weight, value, sums[r][i].get()))
        self._store(row, item, [[sums[r][i].get() for r in range(rows)] for i in range(items)])

    def _prefetch(self, start: Value, column: Value, rows: int) -> None:
        """A tile's rows are one piece of memory; its steps walk through the piece some way ahead, line by line."""
        step = rows * KIND_BYTES[self.kind] * LANES
        for line in range(0, step, 64):
            self.e.prefetch(start + column * (step // LANES) + (PREFETCH_BYTES + line))

    def _store(self, row: Value, item: Value, sums: Sequence[Sequence[Value]]) -> None:
        e = self.e
        for i, vectors in enumerate(sums):
            target = self.y + ((item + i) * self.y_stride + row) * 4
            if len(vectors) == TILE_ROWS:
                self._store_one(target, row, e.totals(vectors))
            elif len(vectors) == 1:
                self._store_one(target, row, e.total(vectors[0]))
            elif i % 2 == 0:
                four = e.totals([*vectors, *sums[i + 1]])
                self._store_one(target, row, e.shuffle(four, None, (0, 1)))
                self._store_one(target + self.y_stride * 4, row, e.shuffle(four, None, (2, 3)))

    def _store_one(self, target: Value, row: Value, value: Value) -> None:
        e = self.e
        total = e.variable(value)
        with e.when(e.integer(0) < self.bias):
            total.set(total.get() + e.load(self.bias + row * 4, value.type))
        with e.when(e.integer(0) < self.adds):
            total.set(total.get() + e.load(target, value.type))
        e.store(target, total.get())
