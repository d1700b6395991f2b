"""Processors that stages share: how many threads each has, so that all together are no more than one would have.

Must not know torch, plans or workers.
"""

from __future__ import annotations

from gpu_node.engine.control_groups import granted_processors
from gpu_node.inventory import machine


def threads_each(told: int, sharers: int) -> int:
    """Of each of so many that compute on the CPU. `told`: of all together, 0: as many as there are processors. 0 where
    nothing is to be shared: torch decides."""
    if sharers < 2:
        return told
    usable = machine().usable_cores
    return max((told or min(usable, granted_processors() or usable)) // sharers, 1)
