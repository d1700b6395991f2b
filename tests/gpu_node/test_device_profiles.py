"""What a probe writes is read back as it was; anything else is refused, or is not the probe's."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_node.device_profiles import (
    OPERATIONS_OF_LAYER,
    BadRecord,
    Findings,
    FoundDevice,
    LeftOut,
    kept_findings,
    kept_text,
    line_of,
    read_line,
)
from gpu_node.devices import DeviceProfile, parse_devices

CPU = FoundDevice("cpu", 0, "a processor", "AMD", "", "", 1000, 400, 2e10, 1e11, 3e-6, 2)
CARD = FoundDevice("cuda", 1, "a card", "NVIDIA", "570.1", "GPU-1", 9000, 8000, 9e11, 1e14, 5e-6)
FINDINGS = Findings((CPU, CARD), (LeftOut("cuda:0", "it did not answer within 30 s"),))
KEY = {"torch": "2", "processor": ["x", 2, 0]}


@pytest.mark.parametrize("told", [CPU, CARD, replace(CPU, bytes_per_second=None), FINDINGS.left_out[0]])
def test_a_line_is_read_as_it_was_told(told: FoundDevice | LeftOut) -> None:
    assert read_line(line_of(told)) == told


@pytest.mark.parametrize("text", ["cpu", "mps", "cuda:1", "rocm:0"])
def test_a_card_has_the_name_by_which_plans_look_for_it(text: str) -> None:
    (device,) = parse_devices(text)
    assert replace(CPU, kind=device.kind, number=device.number).card == device.card


@given(st.text())
def test_what_libraries_print_is_not_the_probes(text: str) -> None:
    try:
        assert read_line(text) is None
    except BadRecord:
        assert text.startswith("{")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "tpu"}, {"number": -1}, {"number": True}, {"free_bytes": "8"}, {"bytes_per_second": float("inf")},
        {"bytes_per_second": -1.0}, {"name": None}, {"threads": 1.5}, {"more": 1},
    ],
)  # fmt: skip
def test_a_broken_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadRecord):
        read_line(json.dumps({"device": {**asdict(CPU), **change}}))
    with pytest.raises(BadRecord):
        read_line('{"device": 3}')


def test_findings_are_kept_under_their_key_and_not_for_ever() -> None:
    text = kept_text(FINDINGS, KEY, 100.0)
    assert kept_findings(text, KEY, 150.0, 60.0) == FINDINGS
    assert kept_findings(text, {**KEY, "torch": "3"}, 150.0, 60.0) is None
    assert kept_findings(text, KEY, 161.0, 60.0) is None
    assert kept_findings(text, KEY, 99.0, 60.0) is None, "from a clock that was set back"
    for torn in (text[:50], "[]", json.dumps({**json.loads(text), "devices": 1})):
        with pytest.raises(BadRecord):
            kept_findings(torn, KEY, 150.0, 60.0)
    assert kept_findings(json.dumps({**json.loads(text), "format": 0}), KEY, 150.0, 60.0) is None


def test_a_profile_is_what_plans_are_made_from() -> None:
    assert FINDINGS.profiles == {
        "cpu": DeviceProfile(2e10, 3e-6 * OPERATIONS_OF_LAYER),
        "cuda:1": DeviceProfile(9e11, 5e-6 * OPERATIONS_OF_LAYER),
    }
    assert replace(CPU, bytes_per_second=None).profile is None
    assert FINDINGS.of_card("cuda:1") is CARD and FINDINGS.of_card("cuda:0") is None
