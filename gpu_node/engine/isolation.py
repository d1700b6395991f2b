"""Computing a step so that one bad row harms only itself.

When the runner fails with several rows, each is computed again alone; writing the same keys and values into the same
slots twice changes nothing. Must not know the scheduler, nor what an error means to a request.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpu_node.engine.step import Choice, ModelRunner, Pick, Row, Step
from gpu_node.errors import DeviceOutOfMemory, StageLost

log = logging.getLogger("gpu_node.engine")


@dataclass(frozen=True, slots=True)
class Computed:
    choices: Sequence[Choice]  # one a pick, in order
    arrays: dict[int, Any]
    errors: dict[int, str] = field(default_factory=dict)  # by row: it could not be computed


def compute(runner: ModelRunner, step: Step, picks: Sequence[Pick]) -> Computed:
    """Raises `StageLost`, and `DeviceOutOfMemory` where the step as a whole does not fit; what else goes wrong is
    a row's own."""
    try:
        result = runner.run(step, picks)
    except (DeviceOutOfMemory, StageLost):
        raise
    except Exception as error:  # a model may raise anything; the request that caused it must be found
        log.exception("a step of %d rows failed", len(step.rows))
        if len(step.rows) == 1:
            return Computed([Choice(error=told(error))] * len(picks), {}, {0: told(error)})
        return _one_by_one(runner, step, picks)
    return Computed(result.choices, result.arrays)


def told(error: BaseException) -> str:
    return f"an error was encountered while running the model: {error}"


def _one_by_one(runner: ModelRunner, step: Step, picks: Sequence[Pick]) -> Computed:
    choices: list[Choice] = [Choice(error="not computed")] * len(picks)
    computed = Computed(choices, {})
    for index, row in enumerate(step.rows):
        mine = [number for number, pick in enumerate(picks) if pick.row == index]
        try:
            result = runner.run(_alone(step, row), [replace(picks[number], row=0) for number in mine])
        except StageLost:
            raise
        except Exception as error:  # this row's own; running out of memory with one row included
            computed.errors[index] = told(error)
            continue
        for number, choice in zip(mine, result.choices, strict=True):
            choices[number] = choice
        if 0 in result.arrays:
            computed.arrays[index] = result.arrays[0]
    return computed


def _alone(step: Step, row: Row) -> Step:
    """Only with the copies that this row writes to: repeating another's could undo what that row has written."""
    blocks = set(row.blocks)
    return Step((row,), tuple(copy for copy in step.copies if copy.target in blocks))
