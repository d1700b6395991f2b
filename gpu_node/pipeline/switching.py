"""A line-up takes an epoch: as many blocks as its stages have room for, links made, depth measured.

Invariants: the old ring is over before; where it fails no new ring is left. Must not know fleets or why there is a new
plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gpu_node.engine.step import CacheShape
from gpu_node.errors import DeviceOutOfMemory
from gpu_node.memory.lending_policy import LendingPolicy
from gpu_node.pipeline.builder import Builder
from gpu_node.pipeline.cache_layout import layout_for
from gpu_node.pipeline.course import Course, Switch
from gpu_node.pipeline.lineup import LineUp
from gpu_node.pipeline.ring import Ring
from gpu_node.pipeline.split_model import SplitModel

# A cache that is too large for a device after all is made so much smaller, so many times.
KEPT_SHARE = 0.75
ATTEMPTS = 4

# The depth of a new ring, and tokens/s by depth.
MeasureDepth = Callable[[Ring, LineUp, CacheShape], tuple[int, Mapping[int, float]]]


class Switching:
    def __init__(
        self,
        model: SplitModel,
        measure: MeasureDepth,
        on_end: Callable[[], None],
        lending: LendingPolicy | None = None,
    ) -> None:
        """`on_end` is called, in another thread, when a ring that was made is over."""
        self._model, self._measure, self._on_end, self._lending = model, measure, on_end, lending

    def switch(self, lineup: LineUp, builder: Builder, course: Course) -> Switch:
        """Counts `course.epoch` on. Raises `DeviceOutOfMemory`, `HandLost`, `LinksFailed`, `StageLost`."""
        ring = self._taken(lineup, builder, course)
        try:
            shape = lineup.cache(self._model.options.cache.block_tokens)
            depth, depths = self._measure(ring, lineup, shape)
        except BaseException:
            ring.close()
            raise
        return Switch(lineup, ring, shape, depth, depths)

    def _taken(self, lineup: LineUp, builder: Builder, course: Course) -> Ring:
        demand, cache, most = lineup.picture.sizes.demand, self._model.options.cache, course.most_blocks
        for attempt in range(1, ATTEMPTS + 1):
            layout = layout_for(lineup.rooms, cache, demand, self._lending, most)
            course.epoch += 1
            try:
                return builder.take(lineup, course.epoch, layout, self._on_end)
            except DeviceOutOfMemory:
                if attempt == ATTEMPTS:
                    raise
                most = max(int(layout.block_count * KEPT_SHARE), 1)
        raise AssertionError("the last attempt returns or raises")
