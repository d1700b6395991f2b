"""What Android and Termux print, by variant: written after the documented formats, each trap of the field in one."""

from __future__ import annotations

PLAIN = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Max charging current: 500000
  Max charging voltage: 5000000
  Charge counter: 2211000
  status: 2
  health: 2
  present: true
  level: 71
  scale: 100
  voltage: 4021
  temperature: 314
  technology: Li-ion
"""

# Vendors add lines, one of them twice in another case, and other sections follow.
SAMSUNG = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Dock powered: false
  Max charging current: 0
  Charge counter: 3120000
  status: 3
  health: 2
  present: true
  level: 14
  scale: 100
  voltage: 3725
  temperature: 402
  technology: Li-ion
  batteryMiscEvent: 0
  LED Charging: true
  current now: -421
  charge counter: 3120
Battery Info : [SOC: 14]
  mSavedBatteryAsoc: 91
  temperature: 999
  level: 3
"""

SET_BY_HAND = PLAIN.replace("state:\n", "state:\n  (UPDATES STOPPED -- use 'reset' to restart)\n")

TELEVISION_BOX = """Current Battery Service state:
  AC powered: true
  USB powered: false
  status: 2
  health: 2
  present: true
  level: 100
  scale: 100
  voltage: 13
  temperature: 26
"""

NO_BATTERY = PLAIN.replace("present: true", "present: false").replace("level: 71", "level: 0")

THERMAL = """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 2
\tkilled: false
\tbroadcasts count: -1
ThermalStatusListeners:
\tcallbacks: 3
\tkilled: false
\tbroadcasts count: -1
Thermal Status: 2
Cached temperatures:
\tTemperature{mValue=38.1, mType=3, mName=skin, mStatus=2}
\tTemperature{mValue=0.0, mType=4, mName=usb, mStatus=0}
HAL Ready: true
HAL connection:
\tThermalHAL 2.0 connected: yes
Current temperatures from HAL:
\tTemperature{mValue=56.2, mType=0, mName=AP, mStatus=0}
\tTemperature{mValue=39.0, mType=3, mName=skin, mStatus=2}
Current cooling devices from HAL:
\tCoolingDevice{mValue=1, mType=2, mName=thermal-cpufreq-0}
Temperature static thresholds from HAL:
\tTemperatureThreshold{mType=3, mName=skin, mHotThrottlingThresholds=[NaN, NaN, 37.0, 43.0, 45.0, 47.0, 55.0]}
"""

WITHOUT_HAL = """IsStatusOverride: false
Thermal Status: 0
Cached temperatures:
HAL Ready: false
"""

TERMUX = """{
  "present": true,
  "technology": "Li-ion",
  "health": "GOOD",
  "plugged": "PLUGGED_USB",
  "status": "CHARGING",
  "temperature": 33.2,
  "voltage": 4243,
  "current": -312500,
  "percentage": 88,
  "level": 88,
  "scale": 100,
  "charge_counter": 3312000
}"""
