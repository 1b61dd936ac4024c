"""Understand what `nvpmodel -q` and `/etc/nvpmodel.conf` say of a Jetson's power modes."""

from __future__ import annotations

import re

from edgekd.values.power import BoardReading, PowerMode, puzzling

_MOST_CHARACTERS = 1 << 17  # the file of an AGX Orin has 40 kB
_MODE = re.compile(r"^(?:NVPM VERB: Current mode: )?NV Power Mode:\s*(?P<name>\S.{0,60}?)\s*$")
_NUMBER = re.compile(r"^\d{1,3}$")
_FAN = re.compile(r"^(?:NVPM VERB: )?(?:Current mode: )?NV Fan Mode:\s*(?P<name>\S.{0,60}?)\s*$")
_KNOWN = re.compile(r"^NVPM VERB: (?:Config file: |parsing done for |PARAM |Current mode: )")
_DEFINED = re.compile(
    r"^[ \t]*<[ \t]*POWER_MODEL[ \t]+ID=(?P<id>\d{1,3})[ \t]+NAME=(?P<name>\S{1,60}?)[ \t]*>", re.MULTILINE
)


def parse_nvpmodel(text: str) -> BoardReading:
    """Read the answer to `nvpmodel -q`, with or without `--verbose`; its warnings are in `unknown`."""
    name, number, fan, unknown = "", None, "", []
    for line in text[:_MOST_CHARACTERS].splitlines():
        stripped = line.strip()
        if found := _MODE.match(stripped):
            name = found["name"]
        elif found := _FAN.match(stripped):
            fan = found["name"]
        elif name and number is None and _NUMBER.match(stripped):
            number = int(stripped)
        elif stripped and not _KNOWN.match(stripped):
            unknown.append(stripped)
    return BoardReading(
        mode=PowerMode(name=name, id=number) if name else None,
        fan=fan,
        unknown=puzzling("nvpmodel", unknown),
    )


def parse_modes(conf: str) -> tuple[PowerMode, ...]:
    """List the modes that the text of nvpmodel.conf defines, in its order."""
    return tuple(
        PowerMode(name=found["name"], id=int(found["id"]))
        for found in _DEFINED.finditer(conf[:_MOST_CHARACTERS])
    )


def reboot_needed(text: str) -> bool:
    """Say whether `nvpmodel -m` refused because the mode can only be entered by a reboot."""
    return "reboot required" in text.lower()
