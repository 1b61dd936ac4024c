"""Understand what a Raspberry Pi's firmware answers to `vcgencmd`.

Bits of get_throttled: Raspberry Pi documentation, computers/os.adoc, `vcgencmd`.
"""

from __future__ import annotations

import re

from edgekd.values.power import BoardReading, Clock, Rail, Temperature, puzzling

_MOST_CHARACTERS = 1 << 14
_REASONS = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")  # bits 0 to 3
_PAST = 16  # the same reasons, since the machine started
_UNDERSTOOD = sum(1 << bit | 1 << (bit + _PAST) for bit in range(len(_REASONS)))

_THROTTLED = re.compile(r"^throttled=0x(?P<bits>[0-9a-fA-F]{1,8})$")
_FREQUENCY = re.compile(r"^frequency\(\d{1,3}\)=(?P<hz>\d{1,12})$")
_CELSIUS = re.compile(r"^temp=(?P<celsius>-?\d{1,4}(?:\.\d{1,6})?)'C$")
_VOLTS = re.compile(r"^volt=(?P<volts>\d{1,4}(?:\.\d{1,9})?)V$")
_CHANNEL = re.compile(
    r"^(?P<rail>[0-9A-Z][0-9A-Z_]{0,40})_(?P<kind>[AV]) (?:current|volt)\(\d{1,3}\)=(?P<value>\d{1,6}\.\d{1,12})[AV]$"
)


def parse_vcgencmd(text: str) -> BoardReading:
    """Read answers to get_throttled, `measure_clock arm`, measure_temp, measure_volts and pmic_read_adc, a line each."""
    bits, unknown, clocks, temperatures, volts = 0, [], [], [], None
    channels: dict[str, dict[str, float]] = {}
    for line in text[:_MOST_CHARACTERS].splitlines():
        stripped = line.strip()
        if found := _THROTTLED.match(stripped):
            bits = int(found["bits"], 16)
        elif found := _FREQUENCY.match(stripped):
            clocks.append(Clock(name="arm", current_mhz=int(found["hz"]) / 1e6))
        elif found := _CELSIUS.match(stripped):
            temperatures.append(Temperature(zone="soc", celsius=float(found["celsius"])))
        elif found := _VOLTS.match(stripped):
            volts = float(found["volts"])
        elif found := _CHANNEL.match(stripped):
            channels.setdefault(found["rail"], {})[found["kind"]] = float(found["value"])
        elif stripped:
            unknown.append(stripped)
    if bits & ~_UNDERSTOOD:
        unknown.append(f"throttled bits {bits & ~_UNDERSTOOD:#x}")
    return BoardReading(
        clocks=tuple(clocks),
        temperatures=tuple(temperatures),
        core_volts=volts,
        held_back=_reasons(bits),
        was_held_back=_reasons(bits >> _PAST),
        rails=tuple(
            Rail(name=name, power_mw=each["A"] * each["V"] * 1e3)
            for name, each in channels.items()
            if {"A", "V"} <= each.keys()  # EXT5V and BATT have no current
        ),
        unknown=puzzling("vcgencmd", unknown),
    )


def _reasons(bits: int) -> tuple[str, ...]:
    return tuple(reason for bit, reason in enumerate(_REASONS) if bits >> bit & 1)
