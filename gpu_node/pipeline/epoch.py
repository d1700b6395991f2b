"""One epoch of a stage: its two links, made in the order that cannot wait in a circle, and how it ends.

A stage admits the one before it first and then goes to the one behind it; the head goes to the first stage and admits
the last one. So each waits for one that has begun. Must not know parts or steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from gpu_node.pipeline.errors import LinkClosed, LinkError, LinkRefused, LinkSilent
from gpu_node.pipeline.gate import Gate, connect_link
from gpu_node.pipeline.links import Link
from gpu_node.pipeline.orders import Take, ring_ends
from gpu_node.pipeline.step_frames import RING_SETTINGS

# So often it is looked whether another epoch was asked for meanwhile. Who connects begins anew each time.
ADMIT_SECONDS, CONNECT_SECONDS = 0.1, 1.0
# A neighbour that is still in an older epoch refuses; it is asked again after so long.
PAUSE_SECONDS = 0.01


class Epoch:
    """`end` may be called from any thread; whoever waits in a link of it, or for one, then raises `LinkError`."""

    def __init__(self, take: Take, steps_before: int = 0) -> None:
        """`steps_before`: of earlier epochs."""
        self.take, self.steps_before = take, steps_before
        self.over = threading.Event()
        self.reason = ""
        self._lock = threading.Lock()
        self._links: list[Link] = []

    @property
    def links(self) -> tuple[Link, ...]:
        with self._lock:
            return tuple(self._links)

    @property
    def link_microseconds(self) -> int:
        """What receiving and handing on has taken so far; waiting for a neighbour is nobody's cost."""
        counters = [link.counters for link in self.links]
        return sum(one.receiving_microseconds + one.sending_microseconds for one in counters)

    def end(self, reason: str) -> None:
        """The first reason stays."""
        with self._lock:
            self.reason = self.reason or reason
            self.over.set()
            for link in self._links:
                link.fail(LinkClosed(reason))

    def close(self) -> None:
        """By the thread that made the links, when nobody uses them any more."""
        self.end("the epoch is over")
        for link in self.links:
            link.close()

    def join(self, gate: Gate, token: str) -> tuple[Link, Link]:
        """The link of the stage before, and that of the stage behind. Raises `LinkError`."""
        take, place = self.take, self.take.next_place
        admitted, made = ring_ends(take.stage, take.stages, take.epoch)
        before = self._keep(self._until(lambda left: gate.admit([admitted], min(left, ADMIT_SECONDS))))
        behind = self._keep(
            self._until(lambda left: connect_link(place, made, token, RING_SETTINGS, min(left, CONNECT_SECONDS)))
        )
        return before, behind

    def _keep(self, link: Link) -> Link:
        with self._lock:
            self._links.append(link)
            if self.over.is_set():
                link.fail(LinkClosed(self.reason))
        return link

    def _until(self, attempt: Callable[[float], Link]) -> Link:
        """Tries for as long as the order says, in slices, since no attempt can be broken off."""
        deadline = time.monotonic() + self.take.links_seconds
        last: LinkError = LinkSilent("a neighbour did not come")
        while (left := deadline - time.monotonic()) > 0:
            if self.over.is_set():
                raise LinkClosed(self.reason)
            try:
                return attempt(left)
            except LinkSilent as error:
                last = error
            except LinkRefused as error:
                last = error
                self.over.wait(PAUSE_SECONDS)
        raise last
