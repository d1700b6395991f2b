"""The table of devices under events in any order: a machine that plays all of them at random."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpu_node.device_changes import (
    Add,
    Ask,
    Event,
    Hold,
    Lose,
    Recover,
    Refuse,
    Remove,
    Resize,
    Wait,
    after,
)
from gpu_node.device_losses import MOST_LOSSES
from gpu_node.device_table import NEXT, STATES, DeviceTable, Happening
from gpu_node.devices import parse_devices
from gpu_node.errors import NodeError, RequestError, UsageError
from tests.gpu_node.test_device_table import MIB, see, table_of

NAMES = st.sampled_from(["cpu:0", "cpu:1", "cpu:2", "cpu:3", "cuda:0", "cuda:1", "cuda:9"])
SIZES = st.integers(1, 64).map(lambda size: size * MIB)
MODELS = st.sampled_from(["a", "b"])


class TableMachine(RuleBasedStateMachine):
    """Whatever comes in whatever order: states follow the table, and nothing is promised that is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.now = table_of("cpu:8MiB,cpu:8MiB,cuda:0", joins=True), 0.0

    def do(self, event: Event) -> bool:
        before = self.table
        try:
            self.table, told = after(before, event, self.now)
        except NodeError as error:
            assert isinstance(error, RequestError | UsageError)
            assert isinstance(event, Add | Ask | Remove | Resize), "only people are refused"
            return False
        self.check_moves(before, told)
        return True

    def check_moves(self, before: DeviceTable, told: tuple[Happening, ...]) -> None:
        reachable = {(state, state) for state in STATES} | {(old, new) for (old, _), new in NEXT.items()}
        reachable |= {("present", "gone"), ("leaving", "gone")}  # in two steps, where nothing is held
        spoken = {one.device for one in told}
        for one in self.table.devices:
            old = before.find(one.name)
            assert old is not None or one.state == "present"
            if old is not None:
                assert (old.state, one.state) in reachable
                assert old.state == one.state or one.name in spoken, "no change of state is silent"

    @rule(seconds=st.sampled_from([0.5, 6.0, 70.0, 1000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.do(Wait())

    @rule(size=SIZES, kind=st.sampled_from(["cpu", "cuda"]), number=st.integers(0, 1), room=SIZES)
    def add(self, size: int, kind: str, number: int, room: int) -> None:
        device = replace(parse_devices("cpu:1MiB" if kind == "cpu" else f"cuda:{number}")[0], budget_bytes=size)
        free = self.table.cpu_room(room)
        if self.do(Add(device, room)) and kind == "cpu":
            assert size <= free

    @rule(name=NAMES)
    def ask(self, name: str) -> None:
        if self.do(Ask(name)):
            assert self.table.named(name).state == "present"

    @rule(name=NAMES, force=st.booleans())
    def remove(self, name: str, force: bool) -> None:
        if self.do(Remove(name, force)):
            assert name not in [one.name for one in self.table.present]
            assert any(one.state in ("present", "lost") for one in self.table.devices)

    @rule(name=NAMES, size=SIZES)
    def resize(self, name: str, size: int) -> None:
        if self.do(Resize(name, size)):
            assert self.table.named(name).planned.budget_bytes == size

    @rule(name=NAMES)
    def lose(self, name: str) -> None:
        assert self.do(Lose(name, "it died"))
        assert name not in [one.name for one in self.table.present]

    @rule(name=NAMES)
    def recover(self, name: str) -> None:
        assert self.do(Recover(name))

    @rule(name=NAMES)
    def refuse(self, name: str) -> None:
        assert self.do(Refuse(name, "it does not fit"))
        found = self.table.find(name)
        assert found is None or found.state != "leaving"

    @rule(model=MODELS, holds=st.dictionaries(NAMES, SIZES, max_size=3))
    def hold(self, model: str, holds: dict[str, int]) -> None:
        assert self.do(Hold(model, tuple(holds.items())))
        here = {one.name for one in self.table.devices}
        assert {one.name: dict(one.held)[model] for one in self.table.devices if model in dict(one.held)} == {
            name: size for name, size in holds.items() if name in here
        }

    @rule(cards=st.sets(st.sampled_from(["cuda:0", "cuda:1"])))
    def see(self, cards: set[str]) -> None:
        assert self.do(see(*sorted(cards)))

    @precondition(lambda self: any(one.state == "leaving" for one in self.table.devices))
    @rule()
    def drain(self) -> None:
        for model in ("a", "b"):
            self.do(Hold(model))
        assert all(one.state != "leaving" for one in self.table.devices)

    @invariant()
    def names_are_unique_and_each_state_makes_sense(self) -> None:
        names = [one.name for one in self.table.devices]
        assert len(set(names)) == len(names)
        for one in self.table.devices:
            assert one.until is None or one.state == "lost"
            assert one.state != "leaving" or one.held, "who holds nothing has left"
            assert one.wanted_bytes is None or (one.state == "present" and one.wanted_bytes < one.held_bytes)
            assert len(one.lost_at) <= MOST_LOSSES
            assert not one.forced or one.state in ("leaving", "gone")

    @invariant()
    def parts_of_a_card_are_stated(self) -> None:
        for one in self.table.around:
            same = [other for other in self.table.around if other.device.card == one.device.card]
            assert len(same) == 1 or all(other.device.budget_bytes is not None for other in same)


TableMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestTable = TableMachine.TestCase
