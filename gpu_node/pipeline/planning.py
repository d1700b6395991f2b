"""New plans over the devices that are here, and what the fleet and its events are told of them.

Thin: what to do about a plan is `replan`'s to decide. Must not know workers beyond what they hold, nor threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpu_node.device_fleet import DeviceFleet
from gpu_node.devices import Device
from gpu_node.errors import NodeError
from gpu_node.pipeline.course import Course
from gpu_node.pipeline.lineup import LineUp
from gpu_node.pipeline.replan import Decision, Keep, Situation, decide, kept_layers
from gpu_node.pipeline.split_model import PlanDevices
from gpu_node.plan_picture import Picture
from gpu_node.split_plan import DoesNotFit


class Planning:
    def __init__(self, name: str, fleet: DeviceFleet, plan: PlanDevices) -> None:
        """`name` of the model, under which it holds memory of devices."""
        self._name, self._fleet, self._plan = name, fleet, plan

    def decide(self, course: Course) -> tuple[Decision, tuple[Device, ...]]:
        """What is to be done now, and over which devices; `course` has seen them then."""
        course.seen = self._fleet.epoch
        devices = self._fleet.present()
        course.replans += 1
        found = self.found(devices)
        if isinstance(found, DoesNotFit) and course.broken and course.loss:
            found = DoesNotFit(f"{course.loss}. {found}", found.short_bytes, found.remedies)
        leaving = frozenset(one.name for one in self._fleet.devices if one.state == "leaving")
        present = {device.name: device.budget_bytes for device in devices}
        plan = None if course.broken else course.plan
        decision = decide(Situation(plan, course.budgets, present, leaving, found))
        if isinstance(decision, Keep):
            self._tell_unused([] if plan is None else [stage.device for stage in plan.stages])
        return decision, devices

    def found(self, devices: Sequence[Device]) -> Picture | DoesNotFit:
        """Whatever else keeps a plan from being made is a reason why it does not fit."""
        try:
            return self.made(devices)
        except DoesNotFit as error:
            return error
        except NodeError as error:
            return DoesNotFit(str(error), 0)

    def made(self, devices: Sequence[Device]) -> Picture:
        """Raises `DoesNotFit`, and whatever else the planner does."""
        if not devices:
            raise DoesNotFit(f"there is no device left for {self._name}", 0)
        return self._plan(devices)

    def tell_planned(self, picture: Picture, why: str, held: Mapping[str, tuple[int, int]]) -> None:
        """`held`: the layers that workers have, by device."""
        kept, layers = kept_layers(held, picture.plan), picture.sizes.layers
        detail = f"{why}; {kept} of {layers} layers stay where they are" if why else f"of {layers}"
        for stage in picture.plan.stages:
            self._fleet.note(stage.device, "planned", f"layers {stage.first} to {stage.behind - 1}: {detail}")

    def tell_switched(self, lineup: LineUp) -> None:
        self._fleet.hold(self._name, lineup.held_bytes)
        for seat in lineup.seats:
            self._fleet.note(seat.device.name, "switched", f"layers {seat.plan.first} to {seat.plan.behind - 1}")
        self._tell_unused(lineup.names)

    def _tell_unused(self, used: Sequence[str]) -> None:
        """Whoever added a device learns that it was thought of: once, and not where another model has a use for it."""
        for device in self._fleet.devices:
            idle = device.state == "present" and not device.held and device.name not in used
            if idle and not device.reason and device.wanted_bytes is None:
                self._fleet.refuse(device.name, f"{self._name} runs no better with it")

    def tell_nothing_runs(self) -> None:
        self._fleet.hold(self._name, {})
