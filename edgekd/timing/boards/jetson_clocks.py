"""Understand what `jetson_clocks --show` says of a Jetson's clocks."""

from __future__ import annotations

import re

from edgekd.values.power import BoardReading, Clock, PowerMode, puzzling

_MOST_CHARACTERS = 1 << 16
_NAMES = {"gpu": "gpu", "gpu-gpc-0": "gpu"}  # JetPack 6 and 7 call the same thing differently
_KHZ, _HZ = 1e3, 1e6  # in a MHz: cores are given in kHz, everything else in Hz

_BOARD = re.compile(r"^SOC family:(?P<soc>\S{1,40})\s+Machine:(?P<board>.{1,100}?)\s*$")
_CLOCK = re.compile(r"^(?P<name>[A-Za-z][\w-]{0,40}):?\s+(?P<fields>.*\b(?:Min|Max|Current)Freq=.*)$")
_FIELD = re.compile(r"(?P<key>\w{1,40})=(?P<value>\S{1,40})")
_FAN = re.compile(r"^(?:FAN|Fan)\b.{0,40}?(?:[Cc]ontrol=|: ?)(?P<fan>\S.{0,60}?)\s*$")
_MODE = re.compile(r"^NV Power Mode:\s*(?P<name>\S.{0,60}?)\s*$")
_KNOWN = re.compile(r"^(?:Online CPUs:|CPU Cluster Switching:|Active GPU TPCs:|IdleStates:)")


def parse_jetson_clocks(text: str) -> BoardReading:
    """Read the answer to `jetson_clocks --show`; lines of another shape are in `unknown`."""
    soc = board = fan = mode = ""
    clocks, unknown = [], []
    for line in text[:_MOST_CHARACTERS].splitlines():
        stripped = line.strip()
        if found := _BOARD.match(stripped):
            soc, board = found["soc"], found["board"]
        elif found := _CLOCK.match(stripped):
            clocks.append(_clock(found["name"], found["fields"]))
        elif found := _FAN.match(stripped):
            fan = fan or found["fan"]
        elif found := _MODE.match(stripped):
            mode = found["name"]
        elif stripped and not _KNOWN.match(stripped):
            unknown.append(stripped)
    return BoardReading(
        soc=soc,
        board=board,
        fan=fan,
        mode=PowerMode(name=mode) if mode else None,
        clocks=tuple(clocks),
        unknown=puzzling("jetson_clocks", unknown),
    )


def _clock(name: str, text: str) -> Clock:
    said = {found["key"]: found["value"] for found in _FIELD.finditer(text)}
    a_mhz = _KHZ if re.fullmatch(r"cpu\d{1,4}", name) else _HZ
    return Clock(
        name=_NAMES.get(name.lower(), name.lower()),
        current_mhz=_mhz(said.get("CurrentFreq"), a_mhz),
        lowest_mhz=_mhz(said.get("MinFreq"), a_mhz),
        highest_mhz=_mhz(said.get("MaxFreq"), a_mhz),
        online={"0": False, "1": True}.get(said.get("Online", "")),
        governor=said.get("Governor", ""),
    )


def _mhz(said: str | None, a_mhz: float) -> float | None:
    """Read a frequency; what is no plain number was not said."""
    return int(said) / a_mhz if said is not None and re.fullmatch(r"[0-9]{1,15}", said) else None
