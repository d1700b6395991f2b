"""Care for phones: what they tell of battery and heat, and what that means for the work they get. Pure; reads nothing.

Whoever hears a phone (over adb, from the reporter on the phone) parses its words here and tells the registry
`NodeCondition`; the registry decides by `care`, routing follows. Knows no node, no clock and no socket.
"""

from server.care.battery import parse_dumpsys_battery, parse_termux_battery
from server.care.care import UNTROUBLED, Care, CareLimits, decide
from server.care.condition import THERMAL_WORDS, Condition, renewed
from server.care.memory import Rest, RestMemory
from server.care.pace import Pace
from server.care.thermal import parse_dumpsys_thermal, parse_thermal_report

__all__ = [
    "THERMAL_WORDS",
    "UNTROUBLED",
    "Care",
    "CareLimits",
    "Condition",
    "Pace",
    "Rest",
    "RestMemory",
    "decide",
    "parse_dumpsys_battery",
    "parse_dumpsys_thermal",
    "parse_termux_battery",
    "parse_thermal_report",
    "renewed",
]
